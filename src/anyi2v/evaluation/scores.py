"""A number of an evaluation with all that it depends on, its interval, and the table of all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from anyi2v.evaluation.distances import LEAST_VIDEOS

Own = dict[str, dict[str, float]]
"""Numbers of single videos, by the video's name and the number's."""


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
    better: Literal["lower", "higher"] = "lower"
    key: str = ""
    """Of the same number of single videos; empty where only all videos together have one."""


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
