"""Scaled dot-product attention, on a CPU in the form in which PyTorch computes it fastest."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.layers import transformed

VECTOR = 16
"""Numbers in a vector of a CPU's attention kernel."""
SMALL_HEAD = 8
"""Width of a head up to which two products and a softmax take less time than the kernel, which is made for 64."""
SCORES = 2**19
"""Scores that are held at once, 2 MiB: they stay in a core's cache."""


def attend(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], value: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n l c"]:
    """Multi-head scaled dot-product attention over the last but one axis.

    With one leading axis PyTorch takes a fused kernel. On a CPU its exponentials are good to 1e-6, and keys that do
    not fill its vectors cost twice the time. So many short sequences, as over the frames of a clip, are put side by
    side, each seeing its own keys only, and long ones that end within a vector get hidden keys. Many narrow heads
    are computed without the kernel.
    """
    if key.shape[-2] == 1 and not query.requires_grad:  # has all the weight: an image is a clip of one frame
        return value.expand_as(query)
    if query.device.type != "cpu" or transformed():
        return fused(query, key, value, heads)
    half, head = query.dtype == torch.bfloat16, key.shape[-1] // heads
    narrow = head <= SMALL_HEAD and (half or (query.dtype == torch.float32 and not query.requires_grad))
    if narrow and query.ndim == 3 and key.shape[-2] % VECTOR == 0:
        scores = query.shape[-2] * key.shape[-2]  # of one head, which must fit, while all together must be many
        if scores <= SCORES and len(query) * heads * scores >= SCORES // 2:
            return in_parts(query, key, value, heads)
    if half and (query.requires_grad or max(key.shape[-2], head) <= VECTOR):
        # in bfloat16 the fused kernel's backward pass takes 2 to 15 times as long as in float32, small maps 1.5 times
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (query, key, value))
            return attend(q, k, v, heads).to(query.dtype)
    together = VECTOR // key.shape[-2] if query.ndim == 3 and query.shape == key.shape else 0
    if together > 1 and len(query) % together == 0:
        sequence = torch.arange(together * key.shape[-2]) // key.shape[-2]
        mask = torch.where(sequence[:, None] == sequence, 0.0, -torch.inf).to(query.dtype)
        q, k, v = (x.reshape(len(x) // together, -1, x.shape[-1]) for x in (query, key, value))
        return fused(q, k, v, heads, mask[None, None]).reshape(query.shape)
    missing = -key.shape[-2] % VECTOR
    if not missing or key.shape[-2] <= VECTOR:
        return fused(query, key, value, heads)
    mask = torch.zeros(key.shape[-2] + missing, dtype=query.dtype)
    mask[key.shape[-2] :] = -torch.inf
    key, value = (F.pad(x, (0, 0, 0, missing)) for x in (key, value))
    return fused(query, key, value, heads, mask.expand(1, 1, query.shape[-2], -1))


def fused(
    query: Float[Tensor, "*n l c"],
    key: Float[Tensor, "*n m c"],
    value: Float[Tensor, "*n m c"],
    heads: int,
    mask: Float[Tensor, "1 1 l m"] | None = None,
) -> Float[Tensor, "*n l c"]:
    """PyTorch's kernel; the mask is added to the logits."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(-3, -2).flatten(-2)


def in_parts(
    query: Float[Tensor, "n l c"], key: Float[Tensor, "n m c"], value: Float[Tensor, "n m c"], heads: int
) -> Float[Tensor, "n l c"]:
    """Some heads at a time as two products and a softmax; scores in float32 like the kernel's."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    out = _InParts.apply(q, k, v)
    return out.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class _InParts(torch.autograd.Function):
    """Attention of single heads, of which the backward pass keeps query, key and value and computes the scores again.

    Products of scores are done in the data type of the network, softmax and its derivative in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Float[Tensor, "n l d"], key: Float[Tensor, "n m d"], value: Float[Tensor, "n m d"]
    ) -> Float[Tensor, "n l d"]:
        ctx.save_for_backward(query, key, value)
        out = query.new_empty(len(query), query.shape[2], query.shape[1])
        for q, k, v, o in _parts(query, key, value, out):
            torch.bmm(v.transpose(1, 2), _weights(q, k).to(v.dtype).transpose(1, 2), out=o)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "n l d"]) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        back = tuple(torch.empty_like(x) for x in (query, key, value))
        for q, k, v, g, to_q, to_k, to_v in _parts(query, key, value, gradient, *back):
            weights = _weights(q, k)
            torch.bmm(weights.to(v.dtype).transpose(1, 2), g, out=to_v)
            # d softmax: w (dw - sum(w dw))
            change = torch.bmm(g, v.transpose(1, 2)).float().mul_(weights)
            change.sub_(weights.mul_(change.sum(-1, keepdim=True))).mul_(q.shape[-1] ** -0.5)
            change = change.to(v.dtype)
            torch.bmm(change, k, out=to_q)
            torch.bmm(change.transpose(1, 2), q, out=to_k)
        return back


def _parts(query: Tensor, key: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    at_once = max(1, SCORES // (query.shape[1] * key.shape[1]))
    return zip(*(x.split(at_once) for x in (query, key, *others)), strict=True)


def _weights(query: Float[Tensor, "n l d"], key: Float[Tensor, "n m d"]) -> Float[Tensor, "n l m"]:
    query = query.float() * query.shape[-1] ** -0.5
    scores = torch.bmm(query, key.float().transpose(1, 2))
    return torch.softmax(scores, -1, out=scores)
