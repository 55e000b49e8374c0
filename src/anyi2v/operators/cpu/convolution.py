"""Convolutions by oneDNN or as matrix multiplications, depending on the size of the map.

PyTorch computes the float32 convolution of a single image in a loop around MKL. With frozen weights the backward pass
saves only the weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import private
from anyi2v.operators.cpu import linear as cpu_linear
from anyi2v.operators.cpu.linear import linear
from anyi2v.operators.frozen import convolution_input_gradient
from anyi2v.operators.where import has_values, on_cpu


def applies(x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None) -> bool:
    """Return whether this `conv2d` is faster than PyTorch's, which has less launch overhead in float32."""
    least = 4 * cpu_linear.SMALL if x.dtype == torch.float32 else cpu_linear.SMALL
    return x.numel() * weight.numel() >= least * x.shape[1] and on_cpu(x, weight, bias)


def conv2d(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None, stride: int, padding: int
) -> Float[Tensor, "n d h2 w2"]:
    """Convolve `x` with zero padding."""
    if x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return _convolution(x, weight, bias, stride, padding)


def _convolution(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None, stride: int, padding: int
) -> Float[Tensor, "n d h2 w2"]:
    kernel = weight.shape[-1]
    if _is_projection(weight, stride, padding):
        return linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    if x.shape[0] * x.shape[2] * x.shape[3] <= weight.shape[0]:
        # oneDNN first reorders the weights, which takes longer than the convolution of a small map: use a matrix
        # multiplication with the neighbourhood of each pixel (im2col)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
        around = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # n h2 w2 c k k
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        return linear(around.permute(0, 1, 2, 4, 5, 3).flatten(3), rows, bias).permute(0, 3, 1, 2)
    if x.dtype == torch.float32 and has_values(x):
        strides, paddings = (stride, stride), (padding, padding)
        return private.mkldnn_convolution(x, weight, bias, paddings, strides, (1, 1), 1)
    return F.conv2d(x, weight, bias, stride, padding)


def _fold(
    gradient: Float[Tensor, "n d h2 w2"], weight: Float[Tensor, "d c k k"], shape: torch.Size, stride: int, padding: int
) -> Float[Tensor, "n c h w"]:
    """Compute the input's gradient as a matrix multiplication, summed over overlapping pixels (col2im, channels
    last)."""
    (n, c, height, width), (h2, w2), kernel = shape, gradient.shape[2:], weight.shape[-1]
    around = linear(gradient.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).flatten(1).T)  # n h2 w2 (k k c)
    cells = around.unflatten(-1, (kernel, kernel, c))
    padded = gradient.new_zeros(n, height + 2 * padding, width + 2 * padding, c)
    for y in range(kernel):
        for x in range(kernel):
            padded[:, y : y + stride * h2 : stride, x : x + stride * w2 : stride] += cells[..., y, x, :]
    return padded[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2)


def _is_projection(weight: Float[Tensor, "d c k k"], stride: int, padding: int) -> bool:
    """Return whether this is a 1x1 convolution of a shape that linear layers have too.

    Shortcuts to another width are excluded: each has its own shape, for which oneDNN would keep 0.7 MB of code as a
    linear layer, but only 0.06 MB as a convolution.
    """
    return weight.shape[-1] == stride == 1 and padding == 0 and weight.shape[0] == weight.shape[1]


class _Convolution(torch.autograd.Function):
    """A convolution with frozen weights, whose backward pass saves only the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return _convolution(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        if _is_projection(weight, ctx.stride, ctx.padding):
            back = linear(gradient.permute(0, 2, 3, 1), weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
        elif 2 * gradient.numel() <= weight.shape[0] ** 2:
            # at most half as many pixels as channels: reordering the weights would take longer, as in `_convolution`
            back = _fold(gradient, weight, ctx.shape, ctx.stride, ctx.padding)
        else:
            back = convolution_input_gradient(gradient, weight, ctx.shape, ctx.stride, ctx.padding)
        return back, None, None, None, None
