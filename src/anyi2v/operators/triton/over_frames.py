"""Attention over the frames of a clip at each map position, very many sequences that fit into registers."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators.triton.launch import launch


def attend_over_frames(
    query: Float[Tensor, "b f p c"], key: Float[Tensor, "b f p c"], value: Float[Tensor, "b f p c"], heads: int
) -> Float[Tensor, "b f p c"]:
    """Compute multi-head scaled dot-product attention over up to 32 frames, with softmax in float32."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if query.requires_grad or key.requires_grad or value.requires_grad:
        return _OverFrames.apply(query, key, value, heads)
    return _run(query, key, value, heads)[0]


class _OverFrames(torch.autograd.Function):
    """Attention whose backward pass saves query, key and value, and recomputes the weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.heads = heads
        return _run(query, key, value, heads)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        return *_run(query, key, value, ctx.heads, gradient.contiguous()), None


def _run(
    query: Float[Tensor, "b f p c"],
    key: Float[Tensor, "b f p c"],
    value: Float[Tensor, "b f p c"],
    heads: int,
    gradient: Float[Tensor, "b f p c"] | None = None,
) -> list[Float[Tensor, "b f p c"]]:
    """Return the attention, or given its gradient, the gradients of query, key and value."""
    clips, frames, places, channels = query.shape
    width = channels // heads
    columns = max(16, triton.next_power_of_2(width))
    out = [torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(1 if gradient is None else 3)]
    back = [query, out[0], out[0], out[0]] if gradient is None else [gradient, *out]
    launch(
        _attend,
        (clips * places, heads),
        query,
        key,
        value,
        out[0],
        *back,
        *(stride for x in (query, key, value) for stride in x.stride()[:3]),
        frames,
        places,
        width**-0.5,
        BACK=gradient is not None,
        WIDTH=width,
        FRAMES=max(16, triton.next_power_of_2(frames)),
        COLUMNS=columns,
        num_warps=max(1, min(4, columns // 64)),
    )
    return out


@triton.jit
@no_type_check
def _attend(
    query,
    key,
    value,
    out,
    gradient,
    q_back,
    k_back,
    v_back,
    q_clip,
    q_frame,
    q_place,
    k_clip,
    k_frame,
    k_place,
    v_clip,
    v_frame,
    v_place,
    frames,
    places,
    scale,
    BACK: tl.constexpr,
    WIDTH: tl.constexpr,
    FRAMES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Process one head at one position: forward into `out`, backward into the other three outputs."""
    clip, place = tl.program_id(0).to(tl.int64) // places, tl.program_id(0).to(tl.int64) % places
    frame, column = tl.arange(0, FRAMES), tl.arange(0, COLUMNS)
    mask, channel = (frame < frames)[:, None] & (column < WIDTH)[None, :], tl.program_id(1) * WIDTH + column
    q = tl.load(query + clip * q_clip + place * q_place + frame[:, None] * q_frame + channel[None, :], mask, 0.0)
    k = tl.load(key + clip * k_clip + place * k_place + frame[:, None] * k_frame + channel[None, :], mask, 0.0)
    v = tl.load(value + clip * v_clip + place * v_place + frame[:, None] * v_frame + channel[None, :], mask, 0.0)
    at = ((clip * frames + frame) * places + place)[:, None] * (tl.num_programs(1) * WIDTH) + channel[None, :]
    weights = _weights(q, k, scale, frame < frames)
    rounded = weights.to(v.dtype)
    if BACK:
        g = tl.load(gradient + at, mask, 0.0)
        tl.store(v_back + at, tl.dot(tl.trans(rounded), g, input_precision="ieee"), mask)
        slope = tl.dot(g, tl.trans(v), input_precision="ieee")
        scores = (weights * (slope - tl.sum(weights * slope, 1)[:, None]) * scale).to(v.dtype)
        tl.store(q_back + at, tl.dot(scores, k, input_precision="ieee"), mask)
        tl.store(k_back + at, tl.dot(tl.trans(scores), q, input_precision="ieee"), mask)
    else:
        tl.store(out + at, tl.dot(rounded, v, input_precision="ieee"), mask)


@triton.jit
@no_type_check
def _weights(q, k, scale, known):
    """Return softmax(q k^T scale) over the known frames."""
    scores = tl.where(known[None, :], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]
