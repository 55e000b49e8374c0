"""GroupNorm of channels-last maps, optionally followed by SiLU.

The cells of a map are divided among programs. Each program sums its share of a channel into its own location, and these
partial sums are added in a fixed order, so that results are bit-identical from run to run.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators.triton.launch import launch

ROWS, COLUMNS = 128, 64
"""Number of cells and channels that a program reads at once."""
MOST_SPLITS = 64
"""Maximum number of programs that share the cells of an image."""
SIZES = ("cells", "share", "width")
"""Arguments for which kernels are not specialised."""


def group_norm(
    x: Float[Tensor, "n cells c"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    groups: int,
    eps: float,
    silu: bool = False,
) -> Float[Tensor, "n cells c"]:
    """Apply GroupNorm over all cells of an image, then SiLU if `silu`; float32 sums, var = E x^2 - (E x)^2."""
    x = x.contiguous()
    if x.requires_grad:
        return _GroupNorm.apply(x, weight, bias, groups, eps, silu)
    return _run(x, x, None, weight, bias, groups, eps, silu)[0]


class _GroupNorm(torch.autograd.Function):
    """GroupNorm whose backward pass saves the input and two numbers per group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        y, totals = _run(x, x, None, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, totals, weight, bias)
        ctx.options = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, totals, weight, bias = ctx.saved_tensors
        return _run(x, gradient.contiguous(), totals, weight, bias, *ctx.options)[0], *[None] * 5


def _run(
    x: Float[Tensor, "n cells c"],
    gradient: Float[Tensor, "n cells c"],
    totals: Float[Tensor, "n two groups"] | None,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Return the result, or the gradient if given the forward pass's `totals`, and the totals of this pass."""
    n, cells, channels = x.shape
    share = ROWS * triton.cdiv(triton.cdiv(cells, ROWS), MOST_SPLITS)
    splits = triton.cdiv(cells, share)
    sums = torch.empty(n, splits, 2, groups, channels // groups, dtype=torch.float32, device=x.device)
    out, grid = torch.empty_like(x), (splits, triton.cdiv(channels, COLUMNS), n)
    sizes = (cells, channels, channels // groups, share, eps)
    options = {
        "BACK": totals is not None,
        "SILU": silu,
        "EVEN": channels % COLUMNS == 0,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
    }
    launch(_norm_sums, grid, x, gradient, x if totals is None else totals, sums, weight, bias, *sizes, **options)
    new = sums.sum((1, 4))
    launch(_norm_apply, grid, x, gradient, new if totals is None else totals, new, out, weight, bias, *sizes, **options)
    return out, new


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _norm_sums(
    x,
    gradient,
    totals,
    sums,
    weight,
    bias,
    cells,
    channels,
    width,
    share,
    eps,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum each channel over a share of the cells: x and x^2 in the forward pass, g and g * normed in the backward."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    one, two = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    if BACK:
        mean, rstd = _moments(totals, image, channel, inside, cells, channels, width, eps)
        w = tl.load(weight + channel, inside, 0.0).to(tl.float32)
        b = tl.load(bias + channel, inside, 0.0).to(tl.float32)
    for start in range(split * share, min((split + 1) * share, cells), ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < cells)[:, None] if EVEN else (row < cells)[:, None] & inside[None, :]
        at = (image * cells + row)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask, 0.0).to(tl.float32)
        if BACK:
            normed = (value - mean[None, :]) * rstd[None, :]
            g = tl.load(gradient + at, mask, 0.0).to(tl.float32)
            g = _gradient_of_normed(g, normed, w[None, :], b[None, :], SILU)
            one += tl.sum(g, 0)
            two += tl.sum(g * normed, 0)
        else:
            one += tl.sum(value, 0)
            two += tl.sum(value * value, 0)
    here = sums + (image * tl.num_programs(0) + split) * 2 * channels + channel
    tl.store(here, one, inside)
    tl.store(here + channels, two, inside)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def _norm_apply(
    x,
    gradient,
    totals,
    back_totals,
    out,
    weight,
    bias,
    cells,
    channels,
    width,
    share,
    eps,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Forward pass: the normed maps; backward pass: rstd (g - mean of g - normed * mean of g normed)."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    mean, rstd = _moments(totals, image, channel, inside, cells, channels, width, eps)
    w = tl.load(weight + channel, inside, 0.0).to(tl.float32)
    b = tl.load(bias + channel, inside, 0.0).to(tl.float32)
    if BACK:
        one, two = _means(back_totals, image, channel, inside, cells, channels, width)
    for start in range(split * share, min((split + 1) * share, cells), ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < cells)[:, None] if EVEN else (row < cells)[:, None] & inside[None, :]
        at = (image * cells + row)[:, None] * channels + channel[None, :]
        normed = (tl.load(x + at, mask, 0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
        if BACK:
            g = tl.load(gradient + at, mask, 0.0).to(tl.float32)
            g = _gradient_of_normed(g, normed, w[None, :], b[None, :], SILU)
            y = rstd[None, :] * (g - one[None, :] - normed * two[None, :])
        else:
            y = normed * w[None, :] + b[None, :]
            if SILU:
                y = y * tl.sigmoid(y)
        tl.store(out + at, y, mask)


@triton.jit
@no_type_check
def _gradient_of_normed(g, normed, w, b, SILU: tl.constexpr):
    if SILU:
        y = normed * w + b
        s = tl.sigmoid(y)
        g = g * s * (1 + y * (1 - s))
    return g * w


@triton.jit
@no_type_check
def _moments(totals, image, channel, inside, cells, channels, width, eps):
    """Return mean and 1 / sqrt(var + eps) of each channel's group."""
    mean, square = _means(totals, image, channel, inside, cells, channels, width)
    return mean, tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + eps)


@triton.jit
@no_type_check
def _means(totals, image, channel, inside, cells, channels, width):
    """Return both totals of each channel's group, divided by its size."""
    groups = channels // width
    here, size = totals + image * 2 * groups + channel // width, cells * width
    return tl.load(here, inside, 0.0) / size, tl.load(here + groups, inside, 0.0) / size
