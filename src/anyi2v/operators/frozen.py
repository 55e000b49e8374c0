"""Gradients of layers with frozen weights."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import private


def convolution_input_gradient(
    gradient: Float[Tensor, "n d h2 w2"], weight: Float[Tensor, "d c k k"], shape: torch.Size, stride: int, padding: int
) -> Float[Tensor, "n c h w"]:
    """Compute the gradient of a convolution's input of shape `shape`, without the input itself."""
    like = gradient  # only its shape matters, but PyTorch copies it if its strides do not match the weights
    if gradient.shape != shape:
        kind = {"dtype": gradient.dtype, "device": gradient.device}
        like = torch.empty(shape, **kind, memory_format=_layout(weight))
    strides, paddings = (stride, stride), (padding, padding)
    return private.convolution_backward(
        gradient, like, weight, None, strides, paddings, (1, 1), False, (0, 0), 1, (True, False, False)
    )[0]


def _layout(x: Float[Tensor, "d c k k"]) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
