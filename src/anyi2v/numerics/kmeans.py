"""K-means: the exact optimum for two clusters of numbers, and Lloyd's algorithm for the general case.

Both are deterministic, batched with padding masks, and never synchronise with the device.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.errors import InputError

FIXED_POINT = 2**40
"""Unit of the exact sums in `two_means_1d`: finer than float32, and 2^23 values cannot overflow."""


def two_means_1d(
    x: Float[Tensor, "*b n"], valid: Bool[Tensor, "*b n"] | None = None
) -> tuple[Bool[Tensor, "*b n"], Float[Tensor, "*b 2"]]:
    """Split each row into two clusters optimally; return membership of the upper one and both means.

    Every split of the sorted values is compared, so this is the global optimum (Wang & Song 2011 for k = 2). Values
    must be finite; entries where `valid` is False are ignored and False in the result. No gradient. Equal values stay
    together. If all are equal there is one cluster, the upper, and both means are that value. Among equally good
    splits, the one with the larger upper cluster is taken. A row without valid entries has means 0.
    """
    x = x.detach()
    valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
    count = valid.sum(-1, keepdim=True)
    ordered = x.masked_fill(~valid, torch.inf).sort(-1).values
    low = ordered[..., :1].masked_fill(count == 0, 0)
    high = x.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True).masked_fill(count == 0, 0)
    constant = low == high
    # scaled to the range, so that neither large offsets nor tiny spreads cost precision
    unit = (ordered - low) / (high - low).masked_fill(constant, 1)
    tail = torch.arange(x.shape[-1], device=x.device) >= count
    below, means = _best_split(unit.masked_fill(tail, 0), count)
    edge = torch.where(constant, low, ordered.gather(-1, below.clamp(max=x.shape[-1] - 1)))
    return (x >= edge) & valid, torch.where(constant, low, low + (high - low) * means)


def _best_split(
    unit: Float[Tensor, "*b n"], count: Int[Tensor, "*b 1"]
) -> tuple[Int[Tensor, "*b 1"], Float[Tensor, "*b 2"]]:
    """Return the lower cluster's size and both means, for sorted values in 0..1 with zeros beyond `count`.

    The best split maximises the variance between clusters, b (n - b) (upper - lower)^2 / n^2. This is flat around its
    maximum: in float32 it cannot distinguish neighbouring splits of a thousand values. It is therefore only used for an
    initial split, from which the change in cost to every other split is compared: moving m values of mean u takes them
    out of one cluster and into the other, and these terms are small near the initial split. Sums are integers, hence
    exact and independent of the order.
    """
    sums = (unit * FIXED_POINT).round().long().cumsum(-1)
    below = torch.arange(1, unit.shape[-1] + 1, device=unit.device, dtype=unit.dtype)
    above = count - below
    lower = sums.to(unit.dtype) / below / FIXED_POINT
    upper = (sums[..., -1:] - sums).to(unit.dtype) / above.clamp(min=1) / FIXED_POINT
    possible = above > 0

    between = below * above * (upper - lower) ** 2
    start = between.masked_fill(~possible, -1).argmax(-1, keepdim=True)
    moved = below - (start + 1)
    mean = (sums - sums.gather(-1, start)).to(unit.dtype) / moved.masked_fill(moved == 0, 1) / FIXED_POINT
    into = (start + 1) / below * (mean - lower.gather(-1, start)) ** 2
    out_of = above.gather(-1, start) / above.clamp(min=1) * (mean - upper.gather(-1, start)) ** 2
    change = moved * (into - out_of)

    best = change.masked_fill(~possible, torch.inf).argmin(-1, keepdim=True)
    return best + 1, torch.cat([lower.gather(-1, best), upper.gather(-1, best)], -1)


class KMeans(NamedTuple):
    """Result of `kmeans`."""

    labels: Int[Tensor, "*b n"]
    """Index of the centre nearest to each point; -1 where not valid."""
    centres: Float[Tensor, "*b k d"]
    costs: Float[Tensor, "iterations *b"]
    """Sum of squared distances to the nearest centre after each iteration; never increases."""

    @property
    def cost(self) -> Float[Tensor, "*b"]:
        """Cost of the returned labels and centres."""
        return self.costs[-1]


def kmeans(
    x: Float[Tensor, "*b n d"],
    k: int,
    *,
    valid: Bool[Tensor, "*b n"] | None = None,
    iterations: int = 50,
) -> KMeans:
    """Cluster each row of the batch into k clusters by Lloyd's algorithm, a local optimum. No gradient.

    Seeding is deterministic: the point nearest to the mean, then repeatedly the point farthest from all previous seeds
    (Gonzalez 1985), the first one on ties. Each iteration moves centres to the means of their clusters, and centres of
    empty clusters to the points farthest from their centres, then reassigns points (ties to the lower index). The
    number of iterations is fixed, so nothing synchronises with the device; a converged row no longer changes. With
    fewer distinct points than clusters, the surplus clusters stay empty. Memory is that of `x`, plus n x k per row.

    Raises InputError if `k` is not in 1..n, or `iterations` < 1.
    """
    n = x.shape[-2]
    if not 1 <= k <= n:
        raise InputError(f"k = {k} clusters of {n} points; choose 1..{n}")
    if iterations < 1:
        raise InputError(f"{iterations} iterations of k-means; choose at least 1")
    valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if valid is None else valid
    # centred first: a common offset would cost precision in the distances
    points = x.detach().masked_fill(~valid[..., None], 0)
    mean = points.sum(-2, keepdim=True) / valid.sum(-1)[..., None, None].clamp(min=1)
    points = (points - mean).masked_fill(~valid[..., None], 0)
    centres = _seeds(points, valid, k)
    labels, distance = _assign(points, centres, valid)
    costs = []
    for _ in range(iterations):
        centres = _update(points, labels, distance, k)
        labels, distance = _assign(points, centres, valid)
        costs.append(distance.clamp(min=0).sum(-1))
    return KMeans(labels, centres + mean, torch.stack(costs))


def _seeds(points: Float[Tensor, "*b n d"], valid: Bool[Tensor, "*b n"], k: int) -> Float[Tensor, "*b k d"]:
    """Choose farthest-point seeds for centred points."""
    distance = points.square().sum(-1)
    seeds = [_pick(points, distance.masked_fill(~valid, torch.inf).argmin(-1, keepdim=True))]
    nearest = torch.full_like(distance, torch.inf).masked_fill(~valid, -1)
    for _ in range(k - 1):
        nearest = torch.minimum(nearest, (points - seeds[-1]).square().sum(-1))
        seeds.append(_pick(points, nearest.argmax(-1, keepdim=True)))
    return torch.cat(seeds, -2)


def _assign(
    points: Float[Tensor, "*b n d"], centres: Float[Tensor, "*b k d"], valid: Bool[Tensor, "*b n"]
) -> tuple[Int[Tensor, "*b n"], Float[Tensor, "*b n"]]:
    """Return the nearest centre and the squared distance to it; -1 and -1 where not valid."""
    # one centre at a time keeps the memory at n x d; explicit differences are more exact than a matrix product
    distances = [(points - centre).square().sum(-1) for centre in centres.split(1, dim=-2)]
    distance, labels = torch.stack(distances, -1).min(-1)
    return labels.masked_fill(~valid, -1), distance.masked_fill(~valid, -1)


def _update(
    points: Float[Tensor, "*b n d"], labels: Int[Tensor, "*b n"], distance: Float[Tensor, "*b n"], k: int
) -> Float[Tensor, "*b k d"]:
    """Return the cluster means; the r-th empty cluster gets the r-th farthest point from its centre."""
    member = (labels[..., None] == torch.arange(k, device=labels.device)).to(points.dtype)
    size = member.sum(-2)
    means = member.mT @ points / size[..., None].clamp(min=1)
    empty = size == 0
    farthest = distance.sort(dim=-1, descending=True, stable=True).indices.gather(
        -1, (empty.cumsum(-1) - 1).clamp(min=0)
    )
    return torch.where(empty[..., None], _pick(points, farthest), means)


def _pick(points: Float[Tensor, "*b n d"], index: Int[Tensor, "*b k"]) -> Float[Tensor, "*b k d"]:
    return points.gather(-2, index[..., None].expand(*index.shape, points.shape[-1]))
