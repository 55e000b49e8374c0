"""A complete evaluation: from folders to scores and a JSON file."""

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.evaluation.conventions import Convention
from anyi2v.evaluation.distances import frechet_distance, kernel_distance
from anyi2v.evaluation.extractors import checksum, frame_features, load_extractor, video_features
from anyi2v.evaluation.features import Features
from anyi2v.evaluation.following import BoxFollower, Follower
from anyi2v.evaluation.inputs import Inputs, check, conventions
from anyi2v.evaluation.likeness import Clip, clip, load_encoder, structure
from anyi2v.evaluation.motion import objmc, trajectory
from anyi2v.evaluation.packaged import EFFICIENTNET, EfficientNet, packaged
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.scores import Own, Score
from anyi2v.evaluation.trackers import Tracker, load_tracker
from anyi2v.evaluation.videos import read_shown
from anyi2v.files import atomic

Part = Callable[[], tuple[list[Score], Own]]
"""Computes a metric: its scores, and the values of single videos."""


@dataclass(frozen=True)
class Evaluation:
    """All scores of a request, the values of single videos where a metric has them, and the measured files."""

    scores: tuple[Score, ...]
    videos: Own
    inputs: Inputs


def evaluate(
    request: Request, *, tracker: Tracker | None = None, follower: Follower | None = None, progress: bool = False
) -> Evaluation:
    """Compute the requested metrics.

    Args:
        request: folders and metrics.
        tracker: point tracker for objmc; by default that of `request.tracker`.
        follower: box follower for trajectory; by default `BoxFollower` with that tracker.
        progress: show progress bars.

    Raises:
        InputError: something cannot be measured, in one line; most cases are detected before any work, see
            `inputs.check`.
    """
    inputs, asked = check(request), conventions(request)
    parts: list[Part] = []  # all networks are loaded before the first metric is computed
    for names, path, function in (
        (("fid", "kid"), request.extractor, frame_features),
        (("fvd", "kvd"), request.video_extractor, video_features),
    ):
        wanted = [name for name in names if name in request.metrics]
        if wanted and path is not None:
            convention = asked[wanted[0]]
            named = {name: _name(name, convention, path) for name in wanted}
            extract = partial(function, load_extractor(path), convention=convention)
            parts.append(partial(_distances, request, inputs, named, convention, path, extract, progress=progress))
    if "fd" in request.metrics:
        path, convention = packaged(*EFFICIENTNET), Convention("efficientnet-lite0")
        named = {"fid": "FD-EfficientNet-lite0"}
        extract = partial(frame_features, EfficientNet(path), convention=convention)
        parts.append(partial(_distances, request, inputs, named, convention, path, extract, progress=progress))
    if "objmc" in request.metrics:
        tracker = tracker or load_tracker(request.tracker)
        parts.append(partial(objmc, request, inputs, tracker, progress=progress))
    if "trajectory" in request.metrics:
        follower = follower or BoxFollower(tracker or load_tracker(request.tracker))
        parts.append(partial(trajectory, request, inputs, follower, progress=progress))
    if "structure" in request.metrics:
        parts.append(partial(structure, request, inputs, load_encoder(request), progress=progress))
    if "clip" in request.metrics:
        parts.append(partial(clip, request, inputs, Clip(request), progress=progress))
    scores: list[Score] = []
    own: Own = {name: {} for name in inputs.generated}
    for part in parts:
        found, numbers = part()
        scores += found
        for name, values in numbers.items():
            own[name] |= values
    return Evaluation(tuple(scores), own, inputs)


def _distances(
    request: Request,
    inputs: Inputs,
    named: dict[str, str],
    convention: Convention,
    path: Path,
    extract: Callable[[Iterable[tuple[str, Tensor]]], Features],
    *,
    progress: bool,
) -> tuple[list[Score], Own]:
    """Compute several distances, given with their titles, from one extraction of features."""
    assert inputs.real is not None  # checked with the request
    names = _whole_batches(list(inputs.generated), convention)
    generated, real = (
        extract(read_shown({name: videos[name] for name in names}, f"features of {kind} videos", progress=progress))
        for kind, videos in (("generated", inputs.generated), ("real", inputs.real))
    )
    details = {
        "extractor": path.name,
        "sha256": checksum(path),
        "features": generated.width,
        "samples": len(generated),
        "real_size": f"{inputs.real_shape.width}x{inputs.real_shape.height}" if inputs.real_shape else "",
    }
    scores = []
    for name, title in named.items():
        measure = frechet_distance if name in ("fid", "fvd") else kernel_distance
        frames = min(inputs.shape.frames, convention.frames or inputs.shape.frames)
        scores.append(
            Score(
                title,
                *measure(generated, real, resamples=request.resamples, paired=True, seed=request.seed),
                unit="",
                videos=len(names),
                frames=frames,
                size=f"{inputs.shape.width}x{inputs.shape.height}",
                convention=convention.name,
                details=details,
            )
        )
    return scores, {}


def _name(metric: str, convention: Convention, path: Path) -> str:
    """Return FID, KID, FVD or KVD for a published convention, otherwise a generic description."""
    if convention.name != "as-is":
        return metric.upper()
    kind = "Fréchet distance" if metric in ("fid", "fvd") else "kernel distance"
    return f"{kind} of {'frames' if metric in ('fid', 'kid') else 'videos'} by {path.name}"


def _whole_batches(names: list[str], convention: Convention) -> list[str]:
    """Drop the last names that a convention excludes, with a warning."""
    kept = len(names) - len(names) % convention.multiple
    if kept < 2:
        raise InputError(
            f"convention {convention.name!r} needs a multiple of {convention.multiple} videos; there are {len(names)}"
        )
    if kept < len(names):
        warnings.warn(
            f"convention {convention.name!r} takes multiples of {convention.multiple} videos: the last "
            f"{len(names) - kept} of {len(names)} by name are left out",
            AnyI2VWarning,
            stacklevel=2,
        )
    return names[:kept]


def write(path: Path, request: Request, evaluation: Evaluation) -> None:
    """Write all results to a JSON file atomically; missing numbers are null."""
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}
    asked = {key: value for key, value in asked.items() if key in Request.__dataclass_fields__}
    scores = [asdict(score) for score in evaluation.scores]
    for score in scores:
        score.update({key: None for key in ("value", "low", "high") if score[key] != score[key]})
    with atomic(path) as temporary:
        data = {"request": asked, "scores": scores, "videos": evaluation.videos}
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
