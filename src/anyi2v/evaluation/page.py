"""The page of an evaluation: a self-contained HTML file with all scores, plots of single videos, and the worst ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from anyi2v.evaluation.evaluate import Evaluation
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.scores import Score
from anyi2v.evaluation.videos import read_video
from anyi2v.files import atomic, expanded
from anyi2v.images.media import to_bytes
from anyi2v.reports.plots import overlay_boxes
from anyi2v.reports.template import check_written_by, jpeg_uri, load_template
from anyi2v.tracks import Tracks

MARK = '<meta name="generator" content="anyi2v eval">'
WORST = 3
"""Number of videos shown per metric."""
FRAMES = 4
"""Number of frames shown per video."""
SIDE = 160
"""Shorter side of a shown frame, in pixels."""


def check_page(path: Path) -> None:
    """Check that the page does not replace an unrelated file.

    Raises:
        InputError: the file exists and is not the page of an evaluation.
    """
    check_written_by(expanded(path), MARK, "anyi2v eval")


def write_page(path: Path, request: Request, evaluation: Evaluation) -> None:
    """Write the page of an evaluation atomically.

    Args:
        path: the HTML file.
        request: the request.
        evaluation: its result; the worst videos are read again for their pictures.

    Raises:
        InputError: a video cannot be read any more.
        ResourceError: the file cannot be written.
    """
    own = [score for score in evaluation.scores if score.key]
    worst = worst_videos(evaluation)
    text = load_template(Path(__file__).with_name("page.html")).render(
        title=f"Evaluation of {expanded(request.generated).name}",
        facts=_facts(request, evaluation),
        scores=[_row(score) for score in evaluation.scores],
        plots=[{"score": _row(score), **plot(score, evaluation.videos)} for score in own],
        worst=[_card(name, bad, evaluation) for name, bad in worst.items()],
        boxes=any(tracks.objects for tracks in evaluation.inputs.tracks.values()),
    )
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def worst_videos(evaluation: Evaluation) -> dict[str, list[str]]:
    """Find the `WORST` worst videos of each metric that has values for single videos.

    Returns:
        For each such video, by name, the keys of the metrics for which it is among the worst.
    """
    found: dict[str, list[str]] = {}
    for score in evaluation.scores:
        values = {name: own[score.key] for name, own in evaluation.videos.items() if score.key in own}
        for name in sorted(values, key=lambda name: values[name], reverse=score.better == "lower")[:WORST]:
            found.setdefault(name, []).append(score.key)
    return found


def plot(
    score: Score, videos: Mapping[str, Mapping[str, float]], width: int = 1060, height: int = 200
) -> dict[str, Any]:
    """Compute a plot of single videos: one spot per video, from the best to the worst.

    The vertical axis starts at 0 unless all values are far from it.
    """
    left, top, bottom = 64, 12, height - 12
    values = {name: own[score.key] for name, own in videos.items() if score.key in own}
    names = sorted(values, key=lambda name: values[name], reverse=score.better == "higher")
    ends = [*values.values(), *(end for end in (score.low, score.high) if end == end)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    low = 0.0 if 0 < low < high / 2 else low
    high = high if high > low else low + 1.0

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (bottom - top)

    place = (width - left) / max(len(names), 1)
    spots = [
        {"x": left + (k + 0.5) * place, "y": y(values[name]), "text": f"{name}: {values[name]:.4g}"}
        for k, name in enumerate(names)
    ]
    grid = [{"y": y(value), "text": f"{value:.3g}"} for value in (low, (low + high) / 2, high)]
    band = (y(score.high), y(score.low) - y(score.high)) if score.low == score.low else None
    where = {"width": width, "height": height, "left": left}
    return {**where, "spots": spots, "grid": grid, "mean": y(score.value) if names else None, "band": band}


def _facts(request: Request, evaluation: Evaluation) -> dict[str, Any]:
    shape = evaluation.inputs.shape
    found: dict[str, Any] = {"videos": len(evaluation.inputs.generated), "frames": shape.frames}
    found["size"] = f"{shape.width} x {shape.height} px"
    found |= {name: str(path) for name in ("generated", "real", "tracks") if (path := getattr(request, name))}
    return found | {"seed": request.seed, "bootstrap draws": request.resamples}


def _row(score: Score) -> dict[str, Any]:
    interval = f"{score.low:.4g} to {score.high:.4g}" if score.low == score.low else "-"
    value = f"{score.value:.4g}" if score.value == score.value else "-"
    facts = {key: getattr(score, key) for key in ("metric", "unit", "videos", "frames", "size", "convention", "better")}
    return facts | {"value": value, "interval": interval, "details": score.details}


def _card(name: str, bad: list[str], evaluation: Evaluation) -> dict[str, Any]:
    """Prepare frames of a video with the boxes of its tracks, and its numbers."""
    titles = {score.key: score.metric for score in evaluation.scores}
    numbers = [
        {"title": titles[key], "value": f"{value:.4g}", "worst": key in bad}
        for key, value in evaluation.videos[name].items()
    ]
    return {"name": name, "picture": jpeg_uri(_strip(name, evaluation)), "numbers": numbers}


def _strip(name: str, evaluation: Evaluation) -> Image.Image:
    """Put evenly spaced frames of a video side by side."""
    video, tracks = read_video(evaluation.inputs.generated[name]), evaluation.inputs.tracks.get(name)
    shown = torch.linspace(0, len(video) - 1, min(FRAMES, len(video))).round().long().tolist()
    tracks = _at(tracks, len(video), shown) if tracks else Tracks(video.shape[3], video.shape[2])
    scale = SIDE / min(video.shape[2:])
    size = [round(side * scale) for side in video.shape[2:]]
    options: dict[str, Any] = {"mode": "nearest"} if scale > 1 else {"mode": "bilinear", "antialias": True}
    frames = overlay_boxes(F.interpolate(video[shown], size, **options), tracks, enlarge=1)
    return Image.fromarray(to_bytes(torch.cat(list(frames), dim=2)))


def _at(tracks: Tracks, frames: int, shown: list[int]) -> Tracks:
    """Return the tracks with only the boxes of some frames."""
    tracks = tracks.resample(frames)
    objects = tuple(replace(track, boxes=tuple(track.boxes[k] for k in shown)) for track in tracks.objects)
    return replace(tracks, objects=objects)
