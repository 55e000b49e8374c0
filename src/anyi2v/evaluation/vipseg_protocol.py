"""The paper's evaluation on VIPSeg: first frames become conditions, their things are tracked, both become jobs.

All results are files, and existing ones are kept: `prepare` writes conditions, tracks and real frames, `anyi2v batch`
makes the runs from `jobs.jsonl`, and `measure` computes the scores once all runs exist.
"""

import colorsys
import json
import random
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.checkpoints.header import SHIPPED, read_config
from anyi2v.errors import InputError
from anyi2v.evaluation.evaluate import Evaluation, evaluate
from anyi2v.evaluation.following import BoxFollower
from anyi2v.evaluation.partners import find_prompts
from anyi2v.evaluation.request import Metric, Request
from anyi2v.evaluation.trackers import load_tracker
from anyi2v.evaluation.transfer import tracks_from_video
from anyi2v.evaluation.vipseg import Clip, category_names, find_clip, read_panoptic, read_split, things
from anyi2v.evaluation.vipseg_request import Kind, VIPSegRequest
from anyi2v.files import atomic, check_place, expanded, read_json
from anyi2v.images.conditions import Layer, load_condition
from anyi2v.images.fit import Fit, fit_image, plan
from anyi2v.images.media import load_image, write_image
from anyi2v.reports.folder import RECORD
from anyi2v.timing import counted
from anyi2v.tracks import Track, Tracks, load_tracks, save_tracks
from anyi2v.tracks.masks import bounding_box

SETTINGS, JOBS, RUNS, REAL, TRACKS, CONDITIONS = "vipseg.json", "jobs.jsonl", "runs", "real", "tracks", "conditions"
"""Names in the output folder: the settings it was prepared with, the jobs, and the subfolders."""

LEAST_AREA = 0.01
"""Minimum area of a followed thing, as a fraction of the frame."""

PAPER = (
    ("ImageConductor", "yes", "132.23", "646.50", "21.14"),
    ("DragAnything", "yes", "95.83", "556.09", "13.60"),
    ("DragNUWA", "yes", "105.02", "575.78", "15.02"),
    ("MOFA-Video", "yes", "95.63", "599.48", "17.72"),
    ("Baseline", "-", "141.95", "970.26", "38.26"),
    ("FreeTraj", "no", "128.78", "672.87", "24.00"),
    ("TrailBlazer", "no", "112.37", "620.80", "23.71"),
    ("ObjCtrl-2.5D", "no", "111.82", "605.96", "23.12"),
    ("AnyI2V", "no", "104.53", "569.89", "16.39"),
)
"""Table 1 of the AnyI2V paper: method, whether it is trained, FID, FVD, ObjMC."""


def prepare(request: VIPSegRequest, *, progress: bool = False) -> dict[str, str]:
    """Write the missing conditions, tracks and real frames of all videos, and the file of jobs.

    Returns:
        Reasons by name of the videos left out: too few frames, or no thing that can be followed to the last frame.

    Raises:
        InputError: the folder is not VIPSeg's, a file cannot be read, a video has no prompt, or `out` was prepared with
            other settings, or there is no depth or normal map for a video that is to have one.
    """
    out, data = expanded(request.out), expanded(request.data)
    follower = BoxFollower(load_tracker(request.tracker))
    config = read_config(request.backbone)
    frames, size = request.frames or config.frames, (config.width, config.height)
    if frames < 2:
        raise InputError(f"frames is {frames}; it must be 2 or more")
    if not request.conditions:
        raise InputError("there is no kind of condition; give --conditions")
    clips = [find_clip(data, name) for name in read_split(data, request.split)[: request.videos]]
    for clip in clips:
        _map_of(request, clip)
    classes = category_names(data)
    prompts = find_prompts(request.prompts) if request.prompts else {}
    for clip in clips:
        if request.prompts and clip.name not in prompts:
            raise InputError(f"{request.prompts} has no prompt for {clip.name!r}")
    if not classes and not prompts:
        raise InputError(f"{data} has no panoVIPSeg_categories.json, from which prompts are made; give --prompts")
    further = _further(request)
    check_place(out)
    _check_settings(out, request, frames, size)
    left_out: dict[str, str] = {}
    jobs: list[dict[str, object]] = []
    for clip in counted(clips, len(clips), "videos", bar=progress, unit="video"):
        path = out / TRACKS / f"{clip.name}.json"
        if len(clip.frames) < frames:
            left_out[clip.name] = f"it has {len(clip.frames)} frames of {frames}"
        elif not path.is_file() and not _write_inputs(request, clip, frames, size, classes, follower):
            left_out[clip.name] = "it has no thing that is large enough and followed to the last frame"
        else:
            names = [track.name.rpartition(" ")[0] for track in load_tracks(path).objects]
            prompt = prompts.get(clip.name) or _sentence(names)
            jobs.append(_job(request, clip.name, prompt, frames) | further)
    if not jobs:
        raise InputError(f"no video of {request.split} can be used: {next(iter(left_out.items()))}")
    with atomic(out / JOBS) as temporary:
        temporary.write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    return left_out


def _further(request: VIPSegRequest) -> dict[str, object]:
    """Return the keys added to every job."""
    further = read_json(request.job) if request.job else {}
    if taken := sorted(further.keys() & _job(request, "", "", 0).keys()):
        raise InputError(f"{request.job} has the key {taken[0]!r}, which every job has of its own")
    return further


def _check_settings(out: Path, request: VIPSegRequest, frames: int, size: tuple[int, int]) -> None:
    """Reject a folder prepared with other settings; record the settings of a new one."""
    files = {**_folders(request), "tracker": request.tracker}
    wanted = {
        "data": str(expanded(request.data).resolve()),
        "frames": frames,
        "size": list(size),
        "conditions": list(request.conditions),
        **{key: str(expanded(path).resolve()) if path else None for key, path in files.items()},
        "objects": request.objects,
        "split": request.split,
        "videos": request.videos,
        "seed": request.seed,
    }
    path = out / SETTINGS
    if not path.is_file():
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        return
    found = read_json(path)
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputError(f"{out} was prepared with {key} {found.get(key)}, not {value}; give another --out")


def _write_inputs(
    request: VIPSegRequest,
    clip: Clip,
    frames: int,
    size: tuple[int, int],
    classes: dict[int, str],
    follower: BoxFollower,
) -> bool:
    """Write the real frames, the condition and, last, the tracks of a video; False if nothing can be followed."""
    out = expanded(request.out)
    video, fit = _fitted(clip.frames[:frames], *size)
    values = read_panoptic(clip.mask)
    if values.shape != fit.source[::-1]:
        (height, width), (x, y) = values.shape, fit.source
        raise InputError(f"mask {clip.mask} has {width}x{height} px, but its frame has {x}x{y}")
    tracks = _first_boxes(values, fit, classes, request.objects)
    followed, found = tracks_from_video(video, tracks, follower)
    kept = tuple(track for track, seen in zip(followed.objects, found.seen, strict=True) if seen.all())
    if not kept:
        return False
    for number, frame in enumerate(video):
        write_image(out / REAL / clip.name / f"{number:04}.png", frame)
    write_image(out / CONDITIONS / f"{clip.name}.png", _condition(request, clip, values, fit))
    save_tracks(out / TRACKS / f"{clip.name}.json", Tracks(*size, kept))
    return True


def _fitted(paths: tuple[Path, ...], width: int, height: int) -> tuple[Float[Tensor, "f 3 h w"], Fit]:
    images = [load_image(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(f"frame {path} has another size than {paths[0].name}")
    fit = plan((images[0].shape[2], images[0].shape[1]), width, height)
    return torch.stack([fit_image(image, width, height)[0] for image in images]), fit


def _first_boxes(values: Int[np.ndarray, "h w"], fit: Fit, classes: dict[int, str], most: int) -> Tracks:
    """Return the largest things of the first frame with their masks, in pixels of the fitted frame."""
    found: list[Track] = []
    for name, mask in things(values, classes).items():
        fitted = fit.mask(mask)
        if fitted.mean() >= LEAST_AREA and len(found) < most:
            found.append(Track(name, (bounding_box(fitted, fit.width, fit.height),), mask=fitted))
    return Tracks(fit.width, fit.height, tuple(found))


def _kind(request: VIPSegRequest, clip: Clip) -> Kind:
    """Draw the kind of a video's condition, by the seed and the video's name."""
    return random.Random(f"{request.seed} {clip.name}").choice(request.conditions)


def _folders(request: VIPSegRequest) -> dict[str, Path | None]:
    """Return the folders of the kinds of conditions that are read from files."""
    return {"depth": request.depth, "normal": request.normal}


def _map_of(request: VIPSegRequest, clip: Clip) -> Path | None:
    """Return the file of a video's depth or normal map, None for other kinds; raises InputError if it is missing."""
    kind, folders = _kind(request, clip), _folders(request)
    if kind not in folders:
        return None
    folder = folders[kind]
    if folder is None:
        raise InputError(f"conditions of kind {kind} are read from files: give --{kind} with their folder")
    path = expanded(folder) / f"{clip.name}.png"
    if not path.is_file():
        raise InputError(f"there is no {kind} map {path} for the first frame of video {clip.name!r}")
    return path


def _condition(request: VIPSegRequest, clip: Clip, values: Int[np.ndarray, "h w"], fit: Fit) -> Float[Tensor, "3 y x"]:
    """Return a video's condition: its first frame in one of the requested kinds, cropped and resized like the frame."""
    kind, size = _kind(request, clip), (fit.width, fit.height)
    if path := _map_of(request, clip):
        image = load_image(path)
        if image.shape[1:] != values.shape:
            (rows, columns), (height, width) = image.shape[1:], values.shape
            raise InputError(f"{path} has {columns}x{rows} px, but its frame has {width}x{height}")
        return fit_image(image, *size)[0]
    if kind == "segmentation":
        return fit_image(_coloured(values), *size)[0]
    extract = kind if kind == "edges" or kind == "hed" else None
    return load_condition([Layer(clip.frames[0])], *size, extract=extract)[0]


def _coloured(values: Int[np.ndarray, "h w"]) -> Float[Tensor, "3 h w"]:
    """Colour a panoptic mask: void is black, every other value has its own colour."""
    ids, places = np.unique(values, return_inverse=True)
    colours = [colorsys.hsv_to_rgb(value * 0.618 % 1, 0.75, 0.95) if value else (0, 0, 0) for value in ids.tolist()]
    return torch.tensor(colours).float()[torch.from_numpy(places.reshape(values.shape))].movedim(-1, 0)


def _sentence(names: list[str]) -> str:
    """Return a prompt such as "a video of person, horse"."""
    return f"a video of {', '.join(dict.fromkeys(names))}"


def _job(request: VIPSegRequest, name: str, prompt: str, frames: int) -> dict[str, object]:
    backbone = request.backbone if request.backbone in SHIPPED else str(expanded(request.backbone).resolve())
    return {
        "name": name,
        "image": f"{CONDITIONS}/{name}.png",
        "prompt": prompt,
        "tracks": f"{TRACKS}/{name}.json",
        "backbone": backbone,
        "frames": frames,
        "seed": request.seed,
    }


def missing(out: str | Path) -> list[str]:
    """Return the names of jobs without a run."""
    out = expanded(out)
    names = [json.loads(line)["name"] for line in (out / JOBS).read_text(encoding="utf-8").splitlines()]
    return [name for name in names if not (out / RUNS / name / RECORD).is_file()]


def measure(request: VIPSegRequest, *, progress: bool = False) -> tuple[Request, Evaluation]:
    """Score the runs against the real videos; raises InputError as `anyi2v.evaluation.evaluate` does."""
    out = expanded(request.out)
    networks: dict[Metric, Path | None] = {"fid": request.extractor, "fvd": request.video_extractor}
    metrics: list[Metric] = ["objmc", "trajectory", "fd", *(name for name, path in networks.items() if path)]
    asked = Request(
        generated=out / RUNS,
        real=out / REAL,
        tracks=out / TRACKS,
        metrics=tuple(metrics),
        tracker=request.tracker,
        extractor=request.extractor,
        video_extractor=request.video_extractor,
        frame_convention=request.frame_convention if request.extractor else None,
        video_convention=request.video_convention if request.video_extractor else None,
        resamples=request.resamples,
        seed=request.seed,
    )
    return asked, evaluate(asked, progress=progress)


def paper_table(evaluation: Evaluation) -> str:
    """Return Table 1 of the paper in Markdown with a row for these runs; a dash marks a missing number."""
    found = {score.metric: f"{score.value:.2f}" for score in evaluation.scores}
    row = ("these runs", "no", *(found.get(name, "-") for name in ("FID", "FVD", "ObjMC (draganything)")))
    lines = ["| method | trained | FID | FVD | ObjMC |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in (*PAPER, row))])
