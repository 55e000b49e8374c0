"""Distances between two sets of features in float64, with bootstrap intervals over videos.

Fréchet distance (Heusel et al. 2017; for videos Unterthiner et al. 2018) and kernel distance, the squared maximum mean
discrepancy with a cubic kernel (Bińkowski et al. 2018). See `conventions` for networks and preprocessing.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.features import Features

SUBSETS, SUBSET_SIZE = 100, 1000
"""The kernel distance is the mean over this many random subsets with at most this many rows of each set."""

LEAST_VIDEOS = 3
"""Minimum number of videos for an interval."""

Weights = Float[Tensor, " n"]
Resampled = tuple[Float[Tensor, " v"], Float[Tensor, " w"]]
"""How often each video of either set is drawn."""


class Distance(NamedTuple):
    """A distance and its 95 % interval, which describes the variation over other videos of the same kind."""

    value: float
    low: float
    high: float


class Moments(NamedTuple):
    """Mean, and a factor F of the covariance: S = F^T F."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "r d"]


def moments(features: Features, weights: Weights | None = None) -> Moments:
    """Compute the moments of rows counted `weights` times; the covariance is divided by their number - 1.

    With more rows than features, only the covariance is held in memory.
    """
    counts = torch.ones(len(features), dtype=torch.float64) if weights is None else weights.double()
    total = counts.sum()
    mean = (
        sum((counts[i : i + len(x)] @ x for i, x in features.chunks()), start=torch.zeros(features.width).double())
        / total
    )
    rows = ((counts[i : i + len(x)] / (total - 1)).sqrt()[:, None] * (x - mean) for i, x in features.chunks())
    if len(features) <= features.width:
        return Moments(mean, torch.cat(list(rows)))
    covariance = torch.zeros(features.width, features.width, dtype=torch.float64)
    for x in rows:
        covariance += x.T @ x
    values, vectors = torch.linalg.eigh(covariance)
    return Moments(mean, values.clamp(min=0).sqrt()[:, None] * vectors.T)


def frechet(a: Moments, b: Moments) -> float:
    """Return |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); exact for covariances of any rank.

    The eigenvalues of S_a S_b are the squared singular values of F_a F_b^T, so their sum is the trace of the square
    root.
    """
    root = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    between = (a.mean - b.mean).square().sum()
    distance = between + a.factor.square().sum() + b.factor.square().sum() - 2 * root
    return max(distance.item(), 0.0)  # rounding may make it negative


def frechet_distance(a: Features, b: Features, *, resamples: int, paired: bool, seed: int = 0) -> Distance:
    """Return the Fréchet distance between two sets with its interval; see `interval`."""
    check_videos(a, b)

    def again(drawn: Resampled, generator: torch.Generator) -> float:
        return frechet(*(moments(x, w[x.owners]) for x, w in zip((a, b), drawn, strict=True)))

    value = frechet(moments(a), moments(b))
    low, high = interval(value, (a, b), again, resamples=resamples, paired=paired, seed=seed)
    return Distance(value, max(low, 0.0), high)


def cubic_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return (x . y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    u: Float[Tensor, " n"] | None = None,
    v: Float[Tensor, " m"] | None = None,
) -> float:
    """Return the unbiased squared maximum mean discrepancy; between a set and itself it is about -2 k(x, x) / n.

    Rows are counted `u` and `v` times; within a set, pairs of a row with itself are excluded.
    """
    u = torch.ones(len(x), dtype=torch.float64) if u is None else u
    v = torch.ones(len(y), dtype=torch.float64) if v is None else v

    def within(rows: Tensor, weights: Tensor) -> Tensor:
        k = cubic_kernel(rows, rows).fill_diagonal_(0)
        return weights @ k @ weights / (weights.sum() ** 2 - weights.square().sum())

    across = u @ cubic_kernel(x, y) @ v / (u.sum() * v.sum())
    return (within(x, u) + within(y, v) - 2 * across).item()


def kernel_distance(a: Features, b: Features, *, resamples: int, paired: bool, seed: int = 0) -> Distance:
    """Return the mean kernel distance over `SUBSETS` random subsets with its interval; see `interval`.

    Sets that fit in one subset are used whole, once. Each draw of the interval uses one subset, so with more than
    `SUBSET_SIZE` rows the interval is too wide rather than too narrow.
    """
    check_videos(a, b)
    size = min(len(a), len(b), SUBSET_SIZE)
    generator = torch.Generator().manual_seed(seed)
    subsets = 1 if len(a) == len(b) == size else SUBSETS

    def subset(x: Features, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(x), generator=generator)[:size]

    values = [kernel(a.take(subset(a, generator)), b.take(subset(b, generator))) for _ in range(subsets)]
    owners = a.owners, b.owners

    def again(drawn: Resampled, generator: torch.Generator) -> float:
        rows = [subset(x, generator) for x in (a, b)]
        weights = [w[owner[picked]] for w, owner, picked in zip(drawn, owners, rows, strict=True)]
        if any(w.count_nonzero() < 2 for w in weights):
            return float("nan")
        return kernel(a.take(rows[0]), b.take(rows[1]), *weights)

    value = sum(values) / subsets
    return Distance(value, *interval(value, (a, b), again, resamples=resamples, paired=paired, seed=seed))


def interval(
    value: float,
    sets: tuple[Features, Features],
    again: Callable[[Resampled, torch.Generator], float],
    *,
    resamples: int,
    paired: bool,
    seed: int,
) -> tuple[float, float]:
    """Return the value -+ 1.96 standard deviations of the distance over resampled videos.

    NaN without `resamples`, and for fewer than `LEAST_VIDEOS` videos, which say nothing about how videos vary. This is
    a normal interval around the value instead of percentiles: drawing with replacement repeats rows, which lowers the
    rank of a covariance and shifts every resampled Fréchet distance upwards. The bias from a small number of videos is
    not included.

    Args:
        value: distance between all videos.
        sets: the features.
        again: computes the distance for a resampling.
        resamples: number of draws of whole videos, with replacement.
        paired: videos with the same number belong together; both sets are drawn identically.
        seed: seed of the draws.
    """
    if not resamples or min(x.videos for x in sets) < LEAST_VIDEOS:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    draws = list(_draws(sets, resamples, paired, generator))
    values = torch.tensor([again(drawn, generator) for drawn in draws], dtype=torch.float64)
    spread = 1.96 * values[values.isfinite()].std(correction=0).item()
    return value - spread, value + spread


def _draws(
    sets: tuple[Features, Features], resamples: int, paired: bool, generator: torch.Generator
) -> Iterator[Resampled]:
    for _ in range(resamples):
        a, b = (_counts(x.videos, generator) for x in sets)
        yield a, a if paired else b


def _counts(videos: int, generator: torch.Generator) -> Float[Tensor, " v"]:
    """Draw videos with replacement and count each."""
    return torch.randint(videos, (videos,), generator=generator).bincount(minlength=videos).double()


def check_videos(*sets: Features) -> None:
    """Raise InputError for a set of a single video."""
    for features in sets:
        if features.videos < 2:
            raise InputError(f"a distance between sets of videos needs two or more in each; here is {features.videos}")
