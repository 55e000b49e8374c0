"""Motion metrics: ObjMC in both modes, and the distance of followed boxes from those of the tracks."""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import AnyI2VWarning
from anyi2v.evaluation.following import BoxFollower, Follower
from anyi2v.evaluation.inputs import Inputs
from anyi2v.evaluation.objmc import Mode, follow, share
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.scores import Own, Score, ratio
from anyi2v.evaluation.trackers import Tracker
from anyi2v.evaluation.videos import read_shown, read_video
from anyi2v.tracks import Tracks

TRAJECTORY = {
    "trajectory_mean": ("trajectory error, mean", "px of {}"),
    "trajectory_final": ("trajectory error, last frame", "px of {}"),
    "trajectory_iou": ("box IoU", ""),
}
"""Keys of the numbers of single videos, with titles and units."""


class BoxErrors(NamedTuple):
    """Errors of each object in a video; NaN for an object that is visible in no counted frame."""

    mean: Float[Tensor, " o"]
    """Distance in pixels between the centres of its box and the track's, mean over frames."""
    final: Float[Tensor, " o"]
    """The same distance in the last frame."""
    iou: Float[Tensor, " o"]
    """Intersection over union of the two boxes, mean over frames."""


def box_errors(found: Float[Tensor, "o f 4"], seen: Bool[Tensor, "o f"], tracks: Tracks) -> BoxErrors:
    """Compare followed boxes with the requested boxes of the tracks.

    Frame 1 is excluded because following starts there, as are frames in which an object is not visible or its track
    lies entirely outside the frame.

    Args:
        found: x0, y0, x1, y1 in pixels of the tracks' frame.
        seen: whether an object was found.
        tracks: resampled to `f` frames.
    """
    if not tracks.objects:
        return BoxErrors(*torch.zeros(3, 0))
    asked = torch.tensor([track.boxes for track in tracks.resample(found.shape[1]).objects])
    within = (asked[..., 2:] > 0).all(-1) & (asked[..., 0] < tracks.width) & (asked[..., 1] < tracks.height)
    counts = seen & within
    counts[:, 0] = False
    apart = (found[..., :2] + found[..., 2:] - asked[..., :2] - asked[..., 2:]).norm(dim=-1) / 2
    overlap = (torch.minimum(found[..., 2:], asked[..., 2:]) - torch.maximum(found[..., :2], asked[..., :2])).clamp(0)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (found, asked)]
    iou = overlap.prod(-1) / (sum(areas) - overlap.prod(-1))
    apart, iou = (values.masked_fill(~counts, torch.nan) for values in (apart, iou))
    return BoxErrors(apart.nanmean(1), apart[:, -1], iou.nanmean(1))


def trajectory(
    request: Request, inputs: Inputs, follower: Follower, *, progress: bool = False
) -> tuple[list[Score], Own]:
    """Average `box_errors` over all objects of all videos, and over those of each video.

    Warns if objects are without a number because none of their frames counts.
    """
    size = f"{inputs.shape.width}x{inputs.shape.height}"
    own: Own = {name: {} for name in inputs.generated}
    shares: dict[str, list[tuple[float, int]]] = {key: [] for key in TRAJECTORY}
    objects = 0
    for name, video in read_shown(inputs.generated, "trajectory", progress=progress):
        tracks = inputs.tracks[name].scaled(inputs.shape.width, inputs.shape.height)
        objects += len(tracks.objects)
        found = follower(video, tracks)
        for key, values in zip(TRAJECTORY, box_errors(found.boxes, found.seen, tracks), strict=True):
            values = values[values.isfinite()].double()
            shares[key].append((values.sum().item(), len(values)))
            if len(values):
                own[name][key] = values.mean().item()
    if lost := objects - sum(count for _, count in shares["trajectory_mean"]):
        text = f"trajectory: {lost} of {objects} objects were found in no frame that counts and are left out"
        if isinstance(follower, BoxFollower):
            text += "; try --tracker FILE, or for videos of the synthetic world --follower micro of eval videos"
        warnings.warn(text, AnyI2VWarning, stacklevel=2)
    scores = []
    for key, (title, unit) in TRAJECTORY.items():
        lost = objects - sum(count for _, count in shares[key])
        scores.append(
            Score(
                title,
                *ratio(shares[key], resamples=request.resamples, seed=request.seed),
                unit=unit.format(size),
                videos=len(inputs.generated),
                frames=inputs.shape.frames,
                size=size,
                convention="followed boxes, target: tracks",
                details={"follower": repr(follower), "objects": objects, "objects_without_a_number": lost},
                better="higher" if key == "trajectory_iou" else "lower",
                key=key,
            )
        )
    return scores, own


def objmc(request: Request, inputs: Inputs, tracker: Tracker, *, progress: bool = False) -> tuple[list[Score], Own]:
    """Compute ObjMC in both modes, overall and for each video that has one.

    Warns if objects are never visible after frame 1.
    """
    modes: tuple[Mode, ...] = ("draganything", "strict")
    shape = inputs.real_shape or inputs.shape
    size, objects = (shape.width, shape.height), 0
    shares: dict[Mode, list[tuple[float, int]]] = {mode: [] for mode in modes}
    own: Own = {name: {} for name in inputs.generated}
    for name, video in read_shown(inputs.generated, "objmc", progress=progress):
        real = read_video(inputs.real[name]) if inputs.real is not None else None
        objects += len(inputs.tracks[name].objects)
        for mode in modes:
            moved = follow(video, inputs.tracks[name], tracker, mode=mode, real=real)
            total, count = share(moved, mode, *size)
            shares[mode].append((total, count))
            if count:
                own[name][f"objmc_{mode}"] = total / count
    target = "real videos, tracked" if inputs.real is not None else "tracks"
    details = {"target": target, "tracker": repr(tracker), "objects": objects}
    if lost := objects - sum(count for _, count in shares["strict"]):
        text = (
            f"ObjMC: {lost} of {objects} objects could not be tracked beyond frame 1; mode draganything measures them "
            "where they were last seen, mode strict leaves them out; try --tracker FILE"
        )
        warnings.warn(text, AnyI2VWarning, stacklevel=2)
    scores = []
    for mode in modes:
        scores.append(
            Score(
                f"ObjMC ({mode})",
                *ratio(shares[mode], resamples=request.resamples, seed=request.seed),
                unit=f"px of {size[0]}x{size[1]}" if mode == "draganything" else "of the diagonal",
                videos=len(inputs.generated),
                frames=inputs.shape.frames,
                size=f"{inputs.shape.width}x{inputs.shape.height}",
                convention=f"{mode}, target: {target}",
                details=details | ({"objects_never_visible": lost} if mode == "strict" else {}),
                key=f"objmc_{mode}",
            )
        )
    return scores, own
