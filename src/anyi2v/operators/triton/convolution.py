"""Convolutions by PyTorch's own kernels, whose backward pass saves only the weights."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators.frozen import convolution_input_gradient


def conv2d(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None, stride: int, padding: int
) -> Float[Tensor, "n d h2 w2"]:
    """Convolve `x` with zero padding; weights are frozen."""
    if weight.shape[-1] == stride == 1 and padding == 0:  # a linear map fuses the bias
        return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    if x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding)


class _Convolution(torch.autograd.Function):
    """A convolution that does not save its input, which PyTorch keeps for the gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        back = convolution_input_gradient(gradient, weight, ctx.shape, ctx.stride, ctx.padding)
        return back, None, None, None, None
