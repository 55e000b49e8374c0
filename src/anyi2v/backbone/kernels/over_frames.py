"""Attention over the frames of a clip at each place of the map: very many sequences that fit into registers."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.kernels.launch import launch


def attend_over_frames(
    query: Float[Tensor, "b f p c"], key: Float[Tensor, "b f p c"], value: Float[Tensor, "b f p c"], heads: int
) -> Float[Tensor, "b f p c"]:
    """Multi-head scaled dot-product attention of up to 32 frames; softmax in float32."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if query.requires_grad or key.requires_grad or value.requires_grad:
        return _OverFrames.apply(query, key, value, heads)
    return _forward(query, key, value, heads)


class _OverFrames(torch.autograd.Function):
    """The backward pass keeps query, key and value, and computes the weights again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.heads = heads
        return _forward(query, key, value, heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        back = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        _run(_attend_backward, ctx.heads, query, key, value, gradient.contiguous(), *back)
        return *back, None


def _forward(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _run(_attend, heads, query, key, value, out)
    return out


def _run(kernel: Any, heads: int, query: Float[Tensor, "b f p c"], *others: Float[Tensor, "b f p c"]) -> None:
    clips, frames, places, channels = query.shape
    width = channels // heads
    columns = max(16, triton.next_power_of_2(width))
    strides = (stride for x in (query, *others[:2]) for stride in x.stride()[:3])
    launch(
        kernel,
        (clips * places, heads),
        query,
        *others,
        *strides,
        frames,
        places,
        width**-0.5,
        WIDTH=width,
        FRAMES=max(16, triton.next_power_of_2(frames)),
        COLUMNS=columns,
        num_warps=max(1, min(4, columns // 64)),
    )


@triton.jit
@no_type_check
def _attend(
    query,
    key,
    value,
    out,
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
    WIDTH: tl.constexpr,
    FRAMES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    clip, place = tl.program_id(0).to(tl.int64) // places, tl.program_id(0).to(tl.int64) % places
    frame, column = tl.arange(0, FRAMES), tl.arange(0, COLUMNS)
    mask, channel = (frame < frames)[:, None] & (column < WIDTH)[None, :], tl.program_id(1) * WIDTH + column
    q = tl.load(query + clip * q_clip + place * q_place + frame[:, None] * q_frame + channel[None, :], mask, 0.0)
    k = tl.load(key + clip * k_clip + place * k_place + frame[:, None] * k_frame + channel[None, :], mask, 0.0)
    v = tl.load(value + clip * v_clip + place * v_place + frame[:, None] * v_frame + channel[None, :], mask, 0.0)
    weights = _weights(q, k, scale, frame < frames)
    o = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    at = ((clip * frames + frame) * places + place)[:, None] * (tl.num_programs(1) * WIDTH) + channel[None, :]
    tl.store(out + at, o, mask)


@triton.jit
@no_type_check
def _attend_backward(
    query,
    key,
    value,
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
    WIDTH: tl.constexpr,
    FRAMES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    clip, place = tl.program_id(0).to(tl.int64) // places, tl.program_id(0).to(tl.int64) % places
    frame, column = tl.arange(0, FRAMES), tl.arange(0, COLUMNS)
    mask, channel = (frame < frames)[:, None] & (column < WIDTH)[None, :], tl.program_id(1) * WIDTH + column
    q = tl.load(query + clip * q_clip + place * q_place + frame[:, None] * q_frame + channel[None, :], mask, 0.0)
    k = tl.load(key + clip * k_clip + place * k_place + frame[:, None] * k_frame + channel[None, :], mask, 0.0)
    v = tl.load(value + clip * v_clip + place * v_place + frame[:, None] * v_frame + channel[None, :], mask, 0.0)
    at = ((clip * frames + frame) * places + place)[:, None] * (tl.num_programs(1) * WIDTH) + channel[None, :]
    g = tl.load(gradient + at, mask, 0.0)
    weights = _weights(q, k, scale, frame < frames)
    rounded = weights.to(v.dtype)
    tl.store(v_back + at, tl.dot(tl.trans(rounded), g, input_precision="ieee"), mask)
    slope = tl.dot(g, tl.trans(v), input_precision="ieee")
    scores = weights * (slope - tl.sum(weights * slope, 1)[:, None]) * scale
    scores = scores.to(v.dtype)
    tl.store(q_back + at, tl.dot(scores, k, input_precision="ieee"), mask)
    tl.store(k_back + at, tl.dot(tl.trans(scores), q, input_precision="ieee"), mask)


@triton.jit
@no_type_check
def _weights(q, k, scale, known):
    """softmax(q k^T scale) over the frames that there are."""
    scores = tl.where(known[None, :], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]
