"""Scores of an evaluation with everything they depend on, their intervals, and a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from anyi2v.evaluation.distances import LEAST_VIDEOS

Own = dict[str, dict[str, float]]
"""Numbers of single videos, by video name and metric key."""


@dataclass(frozen=True)
class Score:
    """A number with everything it depends on."""

    metric: str
    """Name of the metric; the published name only for published conventions."""
    value: float
    low: float
    """Lower end of the 95 % interval; NaN without one."""
    high: float
    unit: str
    videos: int
    frames: int
    """Number of frames of each video, as passed to the metric."""
    size: str
    """Size of the generated videos in pixels."""
    convention: str
    details: dict[str, Any] = field(default_factory=dict)
    better: Literal["lower", "higher"] = "lower"
    key: str = ""
    """Key of the corresponding number of single videos; empty if there is only one for all videos."""


def ratio(shares: Sequence[tuple[float, int]], *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return sum over count of all videos, with its percentile interval over resampled videos; NaN if undefined.

    There is no interval without `resamples`, nor for fewer than `LEAST_VIDEOS` videos.
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
    """Format all scores as a Markdown table."""
    lines = [
        "| metric | value | 95 % interval | unit | videos | frames | size | convention |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        interval = f"{s.low:.4g} to {s.high:.4g}" if s.low == s.low else "-"
        cells = (s.metric, f"{s.value:.4g}", interval, s.unit, s.videos, s.frames, s.size, s.convention)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
