"""ObjMC: the distance between actual and requested positions of objects, in two modes that are not interchangeable.

"draganything" reproduces the script of DragAnything (utils/Eval_ObjMC/ObjMC.py, Wu et al. 2024); "strict" fixes its
gaps. Points are (x, y) in pixels; (0, 0) is the centre of the first pixel.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.opencv import check_opencv
from anyi2v.evaluation.trackers import Tracker
from anyi2v.tracks import Track, Tracks

Mode = Literal["draganything", "strict"]

GRID = 100
"""Points per side of the grid that DragAnything tracks with CoTracker; an object's point is the one nearest its
middle."""

GRID_SIZE = (512, 384)
"""Width and height to which CoTracker resizes a video; the grid covers it with a margin of width / 64."""


class Moved(NamedTuple):
    """Objects of a video: their positions, their targets, and the frames that count."""

    found: Float[Tensor, "o f 2"]
    target: Float[Tensor, "o f 2"]
    counts: Bool[Tensor, "o f"]


def middles(tracks: Tracks) -> Float[Tensor, "o 2"]:
    """Return the centre of the largest circle inside each object in frame 1, where its distance transform is largest.

    The object is the track's mask, clipped to its first box, or the whole box if there is no mask. Pixels beyond the
    frame count as inside, as in `cv2.distanceTransform`, L2 with a 5x5 mask; of equal distances the first in reading
    order is taken.
    """
    check_opencv()
    import cv2

    found = []
    for track in tracks.objects:
        distance = cv2.distanceTransform(object_mask(track, tracks).astype(np.uint8), cv2.DIST_L2, 5)
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        found.append((float(x), float(y)))
    return torch.tensor(found).view(-1, 2)


def object_mask(track: Track, tracks: Tracks) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of an object in frame 1: its mask, clipped to its first box, or the whole box without a mask.

    Raises:
        InputError: the box contains no pixel centre.
    """
    y, x = np.mgrid[: tracks.height, : tracks.width] + 0.5
    x0, y0, x1, y1 = track.boxes[0]
    box = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    if track.mask is not None:
        rows = (np.arange(tracks.height) * track.mask.shape[0]) // tracks.height
        columns = (np.arange(tracks.width) * track.mask.shape[1]) // tracks.width
        box = box & track.mask[rows[:, None], columns]
    if not box.any():
        raise InputError(f"object {track.name!r}: its first box holds no pixel's middle; its middle is unknown")
    return box


def on_grid(points: Float[Tensor, "n 2"], width: int, height: int) -> Float[Tensor, "n 2"]:
    """Return the nearest points of CoTracker's grid of `GRID` x `GRID` for a video of the given size."""
    nearest = []
    for i, size in enumerate((width, height)):
        margin = GRID_SIZE[0] / 64
        line = torch.linspace(margin, GRID_SIZE[i] - margin, GRID) * (size - 1) / (GRID_SIZE[i] - 1)
        nearest.append(line[(points[:, i, None] - line).abs().argmin(1)])
    return torch.stack(nearest, dim=1)


def asked_paths(tracks: Tracks, starts: Float[Tensor, "o 2"], frames: int) -> Float[Tensor, "o f 2"]:
    """Move points of frame 1 with their boxes: each keeps its relative position in the box."""
    if not tracks.objects:
        return torch.zeros(0, frames, 2)
    boxes = torch.tensor([track.boxes for track in tracks.resample(frames).objects])
    corner, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    share = (starts[:, None] + 0.5 - corner[:, :1]) / size[:, :1]
    return corner + share * size - 0.5


def follow(
    video: Float[Tensor, "f 3 h w"], tracks: Tracks, tracker: Tracker, *, mode: Mode, real: Tensor | None = None
) -> Moved:
    """Follow every object of `tracks` through a generated video.

    Args:
        video: generated, in [0, 1]; resized to the size of the real one.
        tracks: objects in frame 1, at any size; without `real`, also their target paths.
        tracker: in mode "draganything" it receives BGR frames, as in the original script.
        mode: "draganything" starts at grid points and truncates all positions to integers; all frames count. "strict"
            starts at the middles; frame 1 is excluded, as are frames in which the point, or the real one, is not
            visible.
        real: video `[f 3 h w]` whose tracked motion is the target; None: the tracks' boxes.

    Raises:
        InputError: a video of one frame, or of a different number of frames than `real`.
    """
    if len(video) < 2:
        raise InputError("ObjMC needs videos of two frames or more; this one has one")
    like = video if real is None else real
    if len(video) != len(like):
        raise InputError(f"the generated video has {len(video)} frames, the real one {len(like)}; they must agree")
    video = F.interpolate(video, size=like.shape[2:], mode="bilinear")  # same as cv2.resize
    height, width = like.shape[2:]
    tracks = tracks.scaled(width, height)
    starts = middles(tracks)
    if mode == "draganything":
        starts, channels = on_grid(starts, width, height), [2, 1, 0]
    else:
        channels = [0, 1, 2]
    found, visible = tracker(video[:, channels], starts)
    if real is None:
        target, seen = asked_paths(tracks, starts, len(video)), torch.ones_like(visible)
    else:
        target, seen = tracker(real[:, channels], starts)
    if mode == "draganything":
        return Moved(found.trunc(), target.trunc(), torch.ones_like(visible))
    counts = visible & seen
    counts[:, 0] = False  # both start there
    return Moved(found, target, counts)


def distances(moved: Moved) -> Float[Tensor, "o f"]:
    """Euclidean distances in pixels; NaN in frames that do not count."""
    return (moved.found - moved.target).norm(dim=-1).masked_fill(~moved.counts, torch.nan)


def per_object(moved: Moved, width: int, height: int) -> Float[Tensor, " o"]:
    """Mode "strict": mean distance of each object over its counted frames, as a fraction of the frame's diagonal.

    NaN for an object that is visible only in the first frame.
    """
    return distances(moved).nanmean(1) / (width**2 + height**2) ** 0.5


def share(moved: Moved, mode: Mode, width: int, height: int) -> tuple[float, int]:
    """Return the contribution of a video to the sum and the count whose quotient over all videos is ObjMC.

    "draganything": distances of all objects and frames, in pixels. "strict": `per_object` where it is a number.
    """
    values = distances(moved).flatten() if mode == "draganything" else per_object(moved, width, height)
    values = values[values.isfinite()].double()
    return values.sum().item(), len(values)
