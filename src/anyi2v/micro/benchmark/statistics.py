"""Means over cases with bootstrap intervals, and paired differences between two variants."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 5000
"""The ends of an interval then vary by about 2 % of its length from seed to seed."""


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval of a difference leaves out zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(values: Float[Tensor, " n"]) -> Estimate:
    """Mean over the cases and its percentile interval; NaN, where a case has no value, is left out."""
    values = values[values.isfinite()].double()
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(values.mean().item(), low, high)


def difference(values: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Estimate:
    """Of the same cases in the same order, case by case: far narrower than the two intervals apart."""
    return estimate(values - reference)
