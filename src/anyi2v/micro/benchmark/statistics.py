"""Means over cases with bootstrap intervals, and paired differences between two variants."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 5000
"""Number of bootstrap samples; the ends of an interval then vary by about 2 % of its length over seeds."""


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval of a difference excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(values: Float[Tensor, " n"]) -> Estimate:
    """Compute the mean over cases and its percentile interval; cases with NaN are ignored."""
    values = values[values.isfinite()].double()
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(values.mean().item(), low, high)


def difference(values: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Estimate:
    """Estimate the paired difference over the same cases, with a much narrower interval than separate estimates."""
    return estimate(values - reference)
