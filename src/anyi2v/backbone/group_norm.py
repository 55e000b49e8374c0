"""GroupNorm, alone and before SiLU, on a CPU in the form that takes least time and keeps least."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.config import NormOver
from anyi2v.backbone.layers import on_cpu, on_gpu, plain, transformed

MANY = 2**17
"""Numbers from which on vectors over all channels take less time than PyTorch's kernel."""
NARROW, WIDE = 8, 64
"""Channels of a group up to which, and cells of a map from which on, they do so in float32."""


def group_norm(norm: nn.Module, x: Float[Tensor, "n c h w"], over: NormOver, frames: int) -> Tensor:
    """GroupNorm with statistics per frame, or over all frames of a clip together."""
    if over == "frame" or frames == 1:
        return normalise(norm, x)
    if plain(norm, nn.GroupNorm) and on_gpu(x, norm.weight, norm.bias):
        return _by_kernel(norm, x, frames)
    clip = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
    return rearrange(normalise(norm, clip), "b c f h w -> (b f) c h w")


def group_norm_silu(norm: nn.Module, x: Float[Tensor, "n c h w"], over: NormOver, frames: int) -> Tensor:
    """silu(group_norm(x)); with frozen weights in float32 on a CPU, the backward pass keeps `x` only."""
    if not plain(norm, nn.GroupNorm):
        return F.silu(group_norm(norm, x, over, frames))
    if on_gpu(x, norm.weight, norm.bias):
        return _by_kernel(norm, x, frames if over == "clip" else 1, silu=True)
    frozen = over == "frame" and x.requires_grad and x.dtype == torch.float32 and channels_last(x)
    if frozen and on_cpu(x, norm.weight, norm.bias):
        return _NormSilu.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return F.silu(group_norm(norm, x, over, frames))


def normalise(norm: nn.Module, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """GroupNorm, whatever the strides of `x` are."""
    own = plain(norm, nn.GroupNorm)
    if own and x.ndim == 4 and on_gpu(x, norm.weight, norm.bias):
        return _by_kernel(norm, x)
    half = x.dtype == torch.bfloat16
    if x.device.type != "cpu" or not (half or x.dtype == torch.float32) or transformed():
        return norm(x)
    if own and not x.requires_grad and channels_last(x) and x.numel() >= MANY and (half or narrow(x, norm.num_groups)):
        return affine(x, norm.weight, norm.bias, *statistics(x, norm.num_groups, norm.eps))
    if not half:
        return norm(x)
    # with the channels last, PyTorch's CPU kernel takes thirty times as long in bfloat16
    x = norm(x.contiguous())
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _by_kernel(norm: nn.GroupNorm, x: Float[Tensor, "n c h w"], together: int = 1, silu: bool = False) -> Tensor:
    """On a GPU, with statistics over so many maps together; the result has its channels last."""
    from anyi2v.backbone.kernels.group_norm import group_norm

    cells = x.permute(0, 2, 3, 1)
    maps = cells.reshape(len(x) // together, -1, x.shape[1])
    out = group_norm(maps, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return out.view(cells.shape).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> bool:
    """Whether `x` are maps whose channels lie side by side."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def narrow(x: Float[Tensor, "n c h w"], groups: int) -> bool:
    """Whether PyTorch's kernel, whose vectors are those of a group, has little to do at a time."""
    return x.shape[1] <= NARROW * groups and x.shape[2] * x.shape[3] >= WIDE


def statistics(
    x: Float[Tensor, "n c h w"], groups: int, eps: float
) -> tuple[Float[Tensor, "n groups"], Float[Tensor, "n groups"]]:
    """Mean and 1 / sqrt(variance + eps) in float32; the variance is E x^2 - (E x)^2, as in PyTorch's kernel."""
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
    """(x - mean) * rstd * weight + bias, as one product and one sum per number."""
    groups = mean.shape[1]
    scale = weight.float().view(groups, -1) * rstd[..., None]
    shift = bias.float().view(groups, -1) - scale * mean[..., None]
    cells = x.permute(0, 2, 3, 1).float()
    out = torch.addcmul(shift.flatten(1)[:, None, None], cells, scale.flatten(1)[:, None, None])
    return out.to(x.dtype).permute(0, 3, 1, 2)


class _NormSilu(torch.autograd.Function):
    """The backward pass normalises again instead of keeping what SiLU was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        if x.numel() >= MANY and narrow(x, groups):
            mean, rstd = statistics(x, groups, eps)
            normed = affine(x, weight, bias, mean, rstd)
        else:
            (n, c), cells = x.shape[:2], x.shape[2] * x.shape[3]
            normed, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, cells, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return F.silu(normed, inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed = affine(x, weight, bias, mean, rstd)
        inner = torch.ops.aten.silu_backward(gradient, normed).contiguous(memory_format=torch.channels_last)
        (n, c), cells, groups = x.shape[:2], x.shape[2] * x.shape[3], mean.shape[1]
        back = torch.ops.aten.native_group_norm_backward(
            inner, x, mean, rstd, weight, n, c, cells, groups, [True, False, False]
        )
        return back[0], None, None, None, None
