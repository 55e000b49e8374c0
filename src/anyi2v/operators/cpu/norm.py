"""GroupNorm of channels-last maps, alone and followed by SiLU.

PyTorch's kernel vectorises over the channels of a group. For narrow groups, vectorising over all channels is faster.
Followed by SiLU, the backward pass recomputes the norm instead of saving SiLU's input.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import private
from anyi2v.operators.where import formulas_only, on_cpu

MANY = 2**17
"""Number of elements from which vectors over all channels are faster than PyTorch's kernel."""
NARROW, WIDE = 8, 64
"""Maximum channels per group and minimum cells per map for which this holds in float32."""


def applies(x: Float[Tensor, "n c *s"], groups: int) -> bool:
    """Return whether vectors over all channels are faster."""
    if x.requires_grad or not _channels_last(x) or x.numel() < MANY:
        return False
    fast = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and _narrow(x, groups))
    return fast and x.device.type == "cpu" and not formulas_only()


def group_norm(
    x: Float[Tensor, "n c h w"], groups: int, weight: Float[Tensor, " c"], bias: Float[Tensor, " c"], eps: float
) -> Float[Tensor, "n c h w"]:
    """Compute GroupNorm with vectors over all channels."""
    return affine(x, weight, bias, *statistics(x, groups, eps))


def slow_strides(x: Float[Tensor, "n c *s"]) -> bool:
    """Return whether PyTorch's kernel may be slow for these strides: in bfloat16 30 times slower for channels last."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not formulas_only()


def contiguous(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """Apply `norm` to a contiguous copy; maps are returned in channels-last layout."""
    x = norm(x.contiguous())
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def silu_applies(x: Float[Tensor, "n c *s"], weight: Tensor, bias: Tensor) -> bool:
    """Return whether `group_norm_silu` saves memory: in float32 under autograd with frozen parameters."""
    keeps = x.requires_grad and x.dtype == torch.float32 and _channels_last(x)
    return keeps and on_cpu(x, weight, bias)


def group_norm_silu(
    x: Float[Tensor, "n c h w"], groups: int, weight: Float[Tensor, " c"], bias: Float[Tensor, " c"], eps: float
) -> Float[Tensor, "n c h w"]:
    """Return silu(group_norm(x)); the backward pass saves only `x`."""
    return _NormSilu.apply(x, weight, bias, groups, eps)


def statistics(
    x: Float[Tensor, "n c h w"], groups: int, eps: float
) -> tuple[Float[Tensor, "n groups"], Float[Tensor, "n groups"]]:
    """Return mean and 1 / sqrt(variance + eps) in float32; the variance is E x^2 - (E x)^2, as in PyTorch's kernel."""
    cells = x.permute(0, 2, 3, 1).flatten(1, 2).float()
    count = cells[0].numel() // groups
    sums = (total.unflatten(-1, (groups, -1)).sum(-1) for total in (cells.sum(1), cells.square().sum(1)))
    mean, square = (total / count for total in sums)
    return mean, (square - mean.square()).clamp_(min=0).add_(eps).rsqrt_()


def affine(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    mean: Float[Tensor, "n groups"],
    rstd: Float[Tensor, "n groups"],
) -> Float[Tensor, "n c h w"]:
    """Return (x - mean) * rstd * weight + bias, as one multiply-add per element."""
    groups = mean.shape[1]
    scale = weight.float().view(groups, -1) * rstd[..., None]
    shift = bias.float().view(groups, -1) - scale * mean[..., None]
    cells = x.permute(0, 2, 3, 1).float()
    out = torch.addcmul(shift.flatten(1)[:, None, None], cells, scale.flatten(1)[:, None, None])
    return out.to(x.dtype).permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _narrow(x: Float[Tensor, "n c h w"], groups: int) -> bool:
    """Return whether PyTorch's vectors, over the channels of a group, are short."""
    return x.shape[1] <= NARROW * groups and x.shape[2] * x.shape[3] >= WIDE


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        if x.numel() >= MANY and _narrow(x, groups):
            mean, rstd = statistics(x, groups, eps)
            normed = affine(x, weight, bias, mean, rstd)
        else:
            (n, c), cells = x.shape[:2], x.shape[2] * x.shape[3]
            normed, mean, rstd = private.native_group_norm(x, weight, bias, n, c, cells, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(normed, inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed = affine(x, weight, bias, mean, rstd)
        inner = private.silu_backward(gradient, normed).contiguous(memory_format=torch.channels_last)
        (n, c), cells, groups = x.shape[:2], x.shape[2] * x.shape[3], mean.shape[1]
        back = private.native_group_norm_backward(
            inner, x, mean, rstd, weight, n, c, cells, groups, [True, False, False]
        )
        return back[0], None, None, None, None
