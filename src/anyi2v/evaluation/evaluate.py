"""An evaluation as a whole: from folders to scores, a JSON file and a table."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.evaluation.conventions import Convention
from anyi2v.evaluation.distances import LEAST_VIDEOS, frechet_distance, kernel_distance
from anyi2v.evaluation.extractors import checksum, frame_features, load_extractor, video_features
from anyi2v.evaluation.features import Features
from anyi2v.evaluation.inputs import Inputs, check, conventions
from anyi2v.evaluation.objmc import Mode, follow, share
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.trackers import LucasKanade, Tracker
from anyi2v.evaluation.videos import read_all, read_video
from anyi2v.files import atomic


@dataclass(frozen=True)
class Score:
    """A number with all that it depends on."""

    metric: str
    """By its published name only where the convention is a published one."""
    value: float
    low: float
    """End of the 95 % interval; NaN without one."""
    high: float
    unit: str
    videos: int
    frames: int
    """Of each video, as the metric has seen them."""
    size: str
    """Of the generated videos in pixels."""
    convention: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All scores of a request, and each video's own where a metric has one."""

    scores: tuple[Score, ...]
    videos: dict[str, dict[str, float]]


def evaluate(request: Request, *, tracker: Tracker | None = None) -> Evaluation:
    """Measures what is asked for.

    Args:
        request: folders and metrics.
        tracker: of objmc; by default pyramidal Lucas-Kanade.

    Raises InputError on one line for whatever cannot be measured, most of it before any work: see `inputs.check`.
    """
    inputs, asked = check(request), conventions(request)
    scores: list[Score] = []
    for names, path, extract in (
        (("fid", "kid"), request.extractor, frame_features),
        (("fvd", "kvd"), request.video_extractor, video_features),
    ):
        wanted = [name for name in names if name in request.metrics]
        if wanted and path is not None:
            scores += _distances(request, inputs, wanted, asked[wanted[0]], path, extract)
    own: dict[str, dict[str, float]] = {}
    if "objmc" in request.metrics:
        found, own = _objmc(request, inputs, tracker)
        scores += found
    return Evaluation(tuple(scores), own)


def _distances(
    request: Request,
    inputs: Inputs,
    wanted: Sequence[str],
    convention: Convention,
    path: Path,
    extract: Callable[..., Features],
) -> list[Score]:
    """Fréchet and kernel distance of one extractor, whose features serve both."""
    assert inputs.real is not None  # checked with the request
    extractor = load_extractor(path)
    names = _whole_batches(list(inputs.generated), convention)
    generated, real = (
        extract(extractor, read_all({name: videos[name] for name in names}), convention)
        for videos in (inputs.generated, inputs.real)
    )
    details = {
        "extractor": path.name,
        "sha256": checksum(path),
        "features": generated.width,
        "samples": len(generated),
        "real_size": f"{inputs.real_shape.width}x{inputs.real_shape.height}" if inputs.real_shape else "",
    }
    scores = []
    for name in wanted:
        measure = frechet_distance if name in ("fid", "fvd") else kernel_distance
        value, low, high = measure(generated, real, resamples=request.resamples, paired=True, seed=request.seed)
        frames = min(inputs.shape.frames, convention.frames or inputs.shape.frames)
        scores.append(
            Score(
                metric=_name(name, convention, path),
                value=value,
                low=low,
                high=high,
                unit="",
                videos=len(names),
                frames=frames,
                size=f"{inputs.shape.width}x{inputs.shape.height}",
                convention=convention.name,
                details=details,
            )
        )
    return scores


def _name(metric: str, convention: Convention, path: Path) -> str:
    """FID, KID, FVD or KVD in a published convention; with pixels as they are, only what it is."""
    if convention.name != "as-is":
        return metric.upper()
    kind = "Fréchet distance" if metric in ("fid", "fvd") else "kernel distance"
    return f"{kind} of {'frames' if metric in ('fid', 'kid') else 'videos'} by {path.name}"


def _whole_batches(names: list[str], convention: Convention) -> list[str]:
    """The names without the last ones that a convention leaves out; warns about them."""
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


def _objmc(
    request: Request, inputs: Inputs, tracker: Tracker | None
) -> tuple[list[Score], dict[str, dict[str, float]]]:
    """ObjMC in both modes, and both of each video that has one."""
    modes: tuple[Mode, ...] = ("draganything", "strict")
    shape, tracker = inputs.real_shape or inputs.shape, tracker or LucasKanade()
    size, objects = (shape.width, shape.height), 0
    shares: dict[Mode, list[tuple[float, int]]] = {mode: [] for mode in modes}
    own: dict[str, dict[str, float]] = {name: {} for name in inputs.generated}
    for name, video in read_all(inputs.generated):
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
    scores = []
    for mode in modes:
        value, low, high = ratio(shares[mode], resamples=request.resamples, seed=request.seed)
        lost = objects - sum(count for _, count in shares[mode]) if mode == "strict" else 0
        scores.append(
            Score(
                metric=f"ObjMC ({mode})",
                value=value,
                low=low,
                high=high,
                unit=f"px of {size[0]}x{size[1]}" if mode == "draganything" else "of the diagonal",
                videos=len(inputs.generated),
                frames=inputs.shape.frames,
                size=f"{inputs.shape.width}x{inputs.shape.height}",
                convention=f"{mode}, target: {target}",
                details=details | ({"objects_never_visible": lost} if mode == "strict" else {}),
            )
        )
    return scores, own


def ratio(shares: Sequence[tuple[float, int]], *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Sum over count of all videos, with its percentile interval over resampled videos; NaN where there is none.

    There is no interval without `resamples`, nor of fewer than `LEAST_VIDEOS`.
    """
    totals, counts = torch.tensor(shares, dtype=torch.float64).T
    value = (totals.sum() / counts.sum()).item()
    if not resamples or len(shares) < LEAST_VIDEOS:
        return value, float("nan"), float("nan")
    picks = torch.randint(len(shares), (resamples, len(shares)), generator=torch.Generator().manual_seed(seed))
    values = totals[picks].sum(1) / counts[picks].sum(1)
    ends = values[values.isfinite()]
    if not len(ends):
        return value, float("nan"), float("nan")
    low, high = ends.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return value, low, high


def table(scores: Sequence[Score]) -> str:
    """All scores in Markdown."""
    lines = [
        "| metric | value | 95 % interval | unit | videos | frames | size | convention |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        interval = f"{s.low:.4g} to {s.high:.4g}" if s.low == s.low else "-"
        cells = (s.metric, f"{s.value:.4g}", interval, s.unit, s.videos, s.frames, s.size, s.convention)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write(path: Path, request: Request, evaluation: Evaluation) -> None:
    """Writes everything to a JSON file, whole or not at all; numbers that there are not are null."""
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}
    asked = {key: value for key, value in asked.items() if key in Request.__dataclass_fields__}
    scores = [asdict(score) for score in evaluation.scores]
    for score in scores:
        score.update({key: None for key in ("value", "low", "high") if score[key] != score[key]})
    with atomic(path) as temporary:
        data = {"request": asked, "scores": scores, "videos": evaluation.videos}
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
