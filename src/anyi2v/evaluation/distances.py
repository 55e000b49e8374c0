"""Distances between two sets of features, in float64, with bootstrap intervals over videos.

Fréchet distance (Heusel et al. 2017; of videos Unterthiner et al. 2018) and kernel distance, the squared maximum mean
discrepancy with a cubic kernel (Bińkowski et al. 2018). Which network and which pixels: `conventions`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.features import Features

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of the kernel distance: means over this many random subsets, of at most this many rows of each set."""

LEAST_VIDEOS = 3
"""Of an interval."""

Weights = Float[Tensor, " n"]
Resampled = tuple[Float[Tensor, " v"], Float[Tensor, " w"]]
"""How often each video of either set is drawn."""


class Distance(NamedTuple):
    """A distance and the 95 % interval of how far it would differ with other videos of the same kind."""

    value: float
    low: float
    high: float


class Moments(NamedTuple):
    """Mean, and a factor F of the covariance: S = F^T F."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "r d"]


def moments(features: Features, weights: Weights | None = None) -> Moments:
    """Of the rows, each counted `weights` times; the covariance is divided by their number - 1.

    Of more rows than features, only the covariance is held in memory.
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
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); exact for covariances of any rank.

    The eigenvalues of S_a S_b are the squared singular values of F_a F_b^T, so the square root's trace is their sum.
    """
    root = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    between = (a.mean - b.mean).square().sum()
    distance = between + a.factor.square().sum() + b.factor.square().sum() - 2 * root
    return max(distance.item(), 0.0)  # rounding may leave less


def frechet_distance(a: Features, b: Features, *, resamples: int, paired: bool, seed: int = 0) -> Distance:
    """Fréchet distance of two sets, and its interval: see `interval`."""
    check_videos(a, b)

    def again(drawn: Resampled, generator: torch.Generator) -> float:
        return frechet(*(moments(x, w[x.owners]) for x, w in zip((a, b), drawn, strict=True)))

    value = frechet(moments(a), moments(b))
    low, high = interval(value, (a, b), again, resamples=resamples, paired=paired, seed=seed)
    return Distance(value, max(low, 0.0), high)


def cubic_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x . y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    u: Float[Tensor, " n"] | None = None,
    v: Float[Tensor, " m"] | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy; of a set and itself it is below 0 by about 2 k(x, x) / n.

    Rows are counted `u` and `v` times; pairs of a row with itself do not count within a set.
    """
    u = torch.ones(len(x), dtype=torch.float64) if u is None else u
    v = torch.ones(len(y), dtype=torch.float64) if v is None else v

    def within(rows: Tensor, weights: Tensor) -> Tensor:
        k = cubic_kernel(rows, rows).fill_diagonal_(0)
        return weights @ k @ weights / (weights.sum() ** 2 - weights.square().sum())

    across = u @ cubic_kernel(x, y) @ v / (u.sum() * v.sum())
    return (within(x, u) + within(y, v) - 2 * across).item()


def kernel_distance(a: Features, b: Features, *, resamples: int, paired: bool, seed: int = 0) -> Distance:
    """Mean of the kernel distance over `SUBSETS` random subsets, and its interval: see `interval`.

    Sets that one subset holds wholly need no others. Draws of the interval see one subset each, so that above
    `SUBSET_SIZE` rows it is wider rather than narrower than it has to be.
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
    """Value -+ 1.96 standard deviations of the distance over resampled videos.

    NaN without `resamples`, and of fewer than `LEAST_VIDEOS`, which say nothing of how videos differ.

    A normal interval around the value, not percentiles: drawing with replacement repeats rows, which lowers a
    covariance's rank and shifts every resampled Fréchet distance upwards. The bias of few videos is not in it.

    Args:
        value: of all videos.
        sets: the features.
        again: the distance of a resampling.
        resamples: number of draws of whole videos, with replacement.
        paired: videos of one number belong together: both sets are drawn alike.
        seed: of the draws.
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
    """How often each is drawn."""
    return torch.randint(videos, (videos,), generator=generator).bincount(minlength=videos).double()


def check_videos(*sets: Features) -> None:
    """Raises InputError for a set of a single video."""
    for features in sets:
        if features.videos < 2:
            raise InputError(f"a distance between sets of videos needs two or more in each; here is {features.videos}")
