"""Scaled dot-product attention on a CPU: matrix multiplications and exp2 for narrow heads, else PyTorch's kernel."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import formulas
from anyi2v.operators.where import has_values, in_turn

VECTOR = 16
"""Number of elements in a vector of PyTorch's kernel."""
SMALL_HEAD = 8
"""Head width up to which matrix multiplications and exponentials are faster than the kernel, which is tuned for 64;
twice as much for sequences within a vector that need no gradient."""
SCORES = 2**19
"""Number of scores held at once, 2 MiB, which stay in a core's cache."""
MANY = 2**17
"""Number of scores from which they are computed in parts."""
SAFE = 2.0**60
"""Sums of float32 exponentials between 1 / SAFE and SAFE are used without subtracting the largest score."""
HALVED = (2, 4, 8, 16, 32)
"""Numbers of keys whose largest score is found by halving; PyTorch's `amax` over few keys takes seven times as long."""


def attention(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], value: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n l c"]:
    """Compute multi-head scaled dot-product attention over the second to last axis, with at least two keys."""
    half, head = query.dtype == torch.bfloat16, key.shape[-1] // heads
    if _narrow(query, key, head) and len(query) * heads * query.shape[1] * key.shape[1] >= MANY:
        return in_parts(query, key, value, heads)
    if half and (query.requires_grad or max(key.shape[-2], head) <= VECTOR):
        # in bfloat16 the fused kernel's backward pass is 2 to 15 times as slow as in float32, and small maps 1.5 times
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (query, key, value))
            return attention(q, k, v, heads).to(query.dtype)
    return formulas.attention(query, key, value, heads)


def _narrow(query: Tensor, key: Tensor, head: int) -> bool:
    widest = SMALL_HEAD if query.requires_grad or key.shape[-2] > VECTOR else 2 * SMALL_HEAD
    return head <= widest and query.ndim == 3 and query.dtype in (torch.bfloat16, torch.float32)


def in_parts(
    query: Float[Tensor, "n l c"], key: Float[Tensor, "n m c"], value: Float[Tensor, "n m c"], heads: int
) -> Float[Tensor, "n l c"]:
    """Compute attention by matrix multiplications and exp2 in float32, in parts whose scores fit a core's cache."""
    if query.requires_grad or key.requires_grad or value.requires_grad:
        return _InParts.apply(query, key, value, heads)
    return _forward(query, key, value, heads, None)


class _InParts(torch.autograd.Function):
    """`in_parts`; the backward pass recomputes the weights from query, key and the sums of the exponentials.

    Source: FlashAttention (Dao et al. 2022, arXiv:2205.14135), appendix B.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        log_total = torch.empty(len(query), heads, 1, query.shape[1], dtype=torch.float32)
        out = _forward(query, key, value, heads, log_total)
        ctx.save_for_backward(query, key, value, log_total)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "n l c"]) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, log_total = ctx.saved_tensors
        return *_backward(query, key, value, log_total, gradient, ctx.needs_input_grad), None


@torch.autocast("cpu", enabled=False)
def _forward(
    query: Float[Tensor, "n l c"],
    key: Float[Tensor, "n m c"],
    value: Float[Tensor, "n m c"],
    heads: int,
    log_total: Float[Tensor, "n heads 1 l"] | None,
) -> Float[Tensor, "n l c"]:
    """Compute the attention, and write log2 of the sum of each query's exponentials into `log_total`."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    scale, buffer = _scale(query, heads), _buffer(key, heads)
    for rows, columns in in_turn(_parts(query, key, heads), query):
        q = _heads(query[rows, columns].float() * scale, heads)
        k, v = (_heads(x[rows], heads) for x in (key, value))
        # keys first: reductions over keys are then vectorised over queries
        exponentials, top = _scores(k, q, buffer).exp2_(), None
        total = exponentials.sum(1, keepdim=True)
        if not _safe(total):  # rare; always subtracting the largest score would take a sixth of the time
            exponentials = _scores(k, q, buffer)
            top = _maximum(exponentials)
            total = exponentials.sub_(top).exp2_().sum(1, keepdim=True)
        o = torch.bmm(v.transpose(1, 2), exponentials).div_(total)
        _place(out[rows, columns], heads).copy_(o.unflatten(0, (-1, heads)))
        if log_total is not None:
            level = total.log2_() if top is None else total.log2_().add_(top)
            log_total[rows, :, :, columns] = level.unflatten(0, (-1, heads))
    return out


@torch.autocast("cpu", enabled=False)
def _backward(
    query: Float[Tensor, "n l c"],
    key: Float[Tensor, "n m c"],
    value: Float[Tensor, "n m c"],
    log_total: Float[Tensor, "n heads 1 l"],
    gradient: Float[Tensor, "n l c"],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Compute the required gradients of query, key and value."""
    heads = log_total.shape[1]
    scale = _scale(query, heads)
    back = [
        torch.zeros(x.shape, dtype=torch.float32) if want else None
        for x, want in zip((query, key, value), wanted, strict=False)
    ]
    buffers = _buffer(key, heads), _buffer(key, heads)
    for rows, columns in in_turn(_parts(query, key, heads), query):
        q = _heads(query[rows, columns].float() * scale, heads)
        k, v = (_heads(x[rows], heads) for x in (key, value))
        g = _heads(gradient[rows, columns], heads)
        level = log_total[rows, :, :, columns].flatten(0, 1)
        weights = _scores(k, q, buffers[0]).sub_(level).exp2_()
        change = _scores(v, g, buffers[1]).mul_(weights)
        change.addcmul_(weights, change.sum(1, keepdim=True), value=-1)
        parts = (
            (k.transpose(1, 2), change, scale * math.log(2)),
            (q.transpose(1, 2), change.transpose(1, 2), math.log(2)),
            (g.transpose(1, 2), weights.transpose(1, 2), 1.0),
        )
        for to, place, (a, b, factor) in zip(back, ((rows, columns), rows, rows), parts, strict=True):
            if to is not None:
                _place(to[place], heads).add_(torch.bmm(a, b).unflatten(0, (-1, heads)), alpha=factor)
    return tuple(None if x is None else x.to(query.dtype) for x in back)


def _parts(query: Tensor, key: Tensor, heads: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of whole sequences, or of some queries of one sequence."""
    per_query, queries = heads * key.shape[1], query.shape[1]
    rows, columns = max(1, SCORES // (per_query * queries)), max(1, SCORES // per_query)
    for i in range(0, len(query), rows):
        for j in range(0, queries, columns):
            yield slice(i, i + rows), slice(j, j + columns)


def _buffer(key: Float[Tensor, "n m c"], heads: int) -> Float[Tensor, " s"]:
    return torch.empty(max(SCORES, heads * key.shape[1]), dtype=torch.float32)


def _scores(
    x: Float[Tensor, "n m d"], y: Float[Tensor, "n l d"], buffer: Float[Tensor, " s"]
) -> Float[Tensor, "n m l"]:
    shape = (*x.shape[:2], y.shape[1])
    return torch.bmm(x, y.transpose(1, 2), out=buffer[: math.prod(shape)].view(shape))


def _heads(x: Float[Tensor, "n l c"], heads: int) -> Float[Tensor, "n_heads l d"]:
    return x.float().unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _place(x: Float[Tensor, "n l c"], heads: int) -> Float[Tensor, "n heads d l"]:
    """Return a view of `x` per head with the queries on the last axis."""
    return x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)


def _scale(query: Tensor, heads: int) -> float:
    """Return the scale of the exponents to base 2; exp2 takes a quarter of the time of exp."""
    return (query.shape[-1] // heads) ** -0.5 / math.log(2)


def _safe(total: Float[Tensor, "n 1 l"]) -> bool:
    """Return whether the exponentials have neither overflowed nor vanished."""
    if not has_values(total):
        return True
    low, high = total.aminmax()
    return low.item() >= 1 / SAFE and high.item() <= SAFE


def _maximum(scores: Float[Tensor, "n m l"]) -> Float[Tensor, "n 1 l"]:
    """Compute the maximum over the keys; never returns a view."""
    if scores.shape[1] not in HALVED:
        return scores.amax(1, keepdim=True)
    while scores.shape[1] > 1:
        scores = torch.maximum(*scores.chunk(2, dim=1))
    return scores
