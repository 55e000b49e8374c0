"""Linear layers by oneDNN, which PyTorch itself uses only for bfloat16.

In float32 PyTorch uses MKL for matrix multiplications, which reaches half of the peak speed on AMD processors; oneDNN
reaches all of it. With frozen weights the backward pass saves only the weights.
"""

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import formulas, private
from anyi2v.operators.where import has_values, on_cpu

SMALL = 2**21
"""Number of multiplications below which PyTorch's linear is used; oneDNN has 20 us of launch overhead."""
FEW = 16
"""Number of rows below which PyTorch's linear is used, which reads the weights once and in memory order."""


def small(x: Float[Tensor, "*n c"], channels: int) -> bool:
    """Return whether a linear map to `channels` channels is not worth oneDNN's launch overhead."""
    numbers = x.numel()
    return numbers * channels < SMALL or numbers < FEW * x.shape[-1]


def linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Float[Tensor, "*n d"]:
    """Return x W^T + b, by oneDNN if it is faster and else by the formula."""
    if small(x, weight.shape[0]) or not on_cpu(x, weight, bias):
        return formulas.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if x.requires_grad else by_onednn(x, weight, bias)


def by_onednn(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None, then: Literal["none", "gelu"] = "none"
) -> Float[Tensor, "*n d"]:
    """Return x W^T + b, or its gelu, by the oneDNN operator of torch.compile; F.linear uses MKL for float32."""
    if has_values(x):
        if bias is None:  # oneDNN caches 0.7 MB of code for every kind of matrix multiplication
            bias = _no_bias(weight.shape[0], x.dtype)
        return private.linear_pointwise(x, weight, bias, then, [], "none")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if then == "gelu" else y


def times(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor, other: Float[Tensor, "*n d"]
) -> Float[Tensor, "*n d"]:
    """Return (x W^T + b) * other, by oneDNN."""
    if has_values(x):
        return private.linear_pointwise.binary(x, other, weight, bias, "mul")
    return F.linear(x, weight, bias) * other


@cache
def _no_bias(channels: int, dtype: torch.dtype) -> Float[Tensor, " d"]:
    """Return shared zeros, which must not be modified."""
    return torch.zeros(channels, dtype=dtype, device="cpu")


class _Linear(torch.autograd.Function):
    """A linear map with frozen weights, whose backward pass saves only the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return linear(gradient, weight.T), None, None
