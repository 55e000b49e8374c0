"""LayerNorm over the last axis, with an optional shift per frame."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators.triton.launch import launch

TILE = 2**12
"""Number of elements, in whole rows, that a program reads at once."""


def layer_norm(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    eps: float,
    shift: Float[Tensor, "f c"] | None = None,
) -> Float[Tensor, "*n c"]:
    """Apply LayerNorm over the last axis in float32, and for `b f ... c` add a shift per frame if given."""
    x = x.contiguous()
    if x.requires_grad:
        return _LayerNorm.apply(x, weight, bias, eps, shift)
    return _run(x, x, weight, bias, eps, shift, back=False)


class _LayerNorm(torch.autograd.Function):
    """LayerNorm whose backward pass saves the input and recomputes its moments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return _run(x, x, weight, bias, eps, shift, back=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias = ctx.saved_tensors
        return _run(x, gradient.contiguous(), weight, bias, ctx.eps, None, back=True), *[None] * 4


def _run(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, *, back: bool
) -> Tensor:
    out, channels = torch.empty_like(x), x.shape[-1]
    columns = triton.next_power_of_2(channels)
    rows, count = max(1, TILE // columns), x.numel() // channels
    frames = 1 if shift is None else len(shift)
    sizes = (count, frames, count // (len(x) * frames), eps)
    block = {"WIDTH": channels, "COLUMNS": columns, "ROWS": rows}
    shift, shifted = (x, False) if shift is None else (shift.contiguous(), True)
    grid = (triton.cdiv(count, rows),)
    launch(_layer_norm, grid, x, gradient, weight, bias, shift, out, *sizes, BACK=back, SHIFTED=shifted, **block)
    return out


@triton.jit(do_not_specialize=("count", "frames", "tokens"))
@no_type_check
def _layer_norm(
    x,
    gradient,
    weight,
    bias,
    shift,
    out,
    count,
    frames,
    tokens,
    eps,
    BACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Forward: the normed rows; backward: rstd (g - mean of g - normed * mean of g normed), g = gradient * weight."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (column < WIDTH)[None, :]
    mask, at = (row < count)[:, None] & inside, row[:, None] * WIDTH + column[None, :]
    value = tl.load(x + at, mask, 0.0).to(tl.float32)
    centred = tl.where(inside, value - (tl.sum(value, 1) / WIDTH)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)[:, None]
    normed = centred * rstd
    w = tl.load(weight + column, column < WIDTH, 0.0).to(tl.float32)[None, :]
    if BACK:
        g = tl.load(gradient + at, mask, 0.0).to(tl.float32) * w
        mean, along = tl.sum(g, 1) / WIDTH, tl.sum(g * normed, 1) / WIDTH
        tl.store(out + at, rstd * (g - mean[:, None] - normed * along[:, None]), mask)
    else:
        b = tl.load(bias + column, column < WIDTH, 0.0).to(tl.float32)[None, :]
        y = normed * w + b
        if SHIFTED:
            frame = row // tokens % frames
            y += tl.load(shift + frame[:, None] * WIDTH + column[None, :], mask, 0.0).to(tl.float32)
        tl.store(out + at, y, mask)
