"""GEGLU, value * gelu(gate) of the output of one linear layer."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators.triton.launch import launch

ROWS, COLUMNS = 8, 256
"""Block size of a program."""


def geglu(x: Float[Tensor, "*n d2"]) -> Float[Tensor, "*n d"]:
    """Return the first half of the channels times gelu of the second, computed in float32."""
    x = x.contiguous()
    return _Geglu.apply(x) if x.requires_grad else _forward(x)


class _Geglu(torch.autograd.Function):
    """GEGLU whose backward pass saves the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        back = torch.empty_like(x)
        _run(_geglu_backward, x, gradient.contiguous(), back)
        return back


def _forward(x: Float[Tensor, "*n d2"]) -> Float[Tensor, "*n d"]:
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    _run(_geglu, x, out)
    return out


def _run(kernel: Any, x: Float[Tensor, "*n d2"], *others: Tensor) -> None:
    width = x.shape[-1] // 2
    count = x.numel() // (2 * width)
    grid = (triton.cdiv(count, ROWS), triton.cdiv(width, COLUMNS))
    launch(kernel, grid, x, *others, count, width, ROWS=ROWS, COLUMNS=COLUMNS)


@triton.jit
@no_type_check
def _geglu(x, out, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, mask = _place(count, width, ROWS, COLUMNS)
    at = row * 2 * width + column
    value, gate = tl.load(x + at, mask, 0.0).to(tl.float32), tl.load(x + at + width, mask, 0.0).to(tl.float32)
    tl.store(out + row * width + column, value * gate * _below(gate), mask)


@triton.jit
@no_type_check
def _geglu_backward(x, gradient, back, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, mask = _place(count, width, ROWS, COLUMNS)
    at = row * 2 * width + column
    value, gate = tl.load(x + at, mask, 0.0).to(tl.float32), tl.load(x + at + width, mask, 0.0).to(tl.float32)
    g = tl.load(gradient + row * width + column, mask, 0.0).to(tl.float32)
    below = _below(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(back + at, g * gate * below, mask)
    tl.store(back + at + width, g * value * (below + gate * density), mask)


@triton.jit
@no_type_check
def _place(count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < count) & (column < width)


@triton.jit
@no_type_check
def _below(x):
    """Return the cumulative distribution function of the normal distribution; gelu(x) = x * cdf(x)."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))
