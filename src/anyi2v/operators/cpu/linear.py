"""Linear layers by oneDNN, which PyTorch itself uses for bfloat16 only.

In float32 PyTorch gives matrix multiplications to MKL, which on AMD's processors reaches half of the machine's speed;
oneDNN reaches all of it. With frozen weights the backward pass keeps the weights only.
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
"""Multiplications of numbers below which a layer is PyTorch's own: oneDNN has 20 us of launch overhead."""
FEW = 16
"""Rows below which a layer is PyTorch's own, which reads the weights once and in the order in which they lie."""
AT_ONCE = 2**15
"""Numbers, tokens times channels, up to which several projections are launch overhead rather than arithmetic."""


def small(x: Float[Tensor, "*n c"], channels: int) -> bool:
    """Whether a map to so many channels is not worth oneDNN's launch overhead."""
    numbers = x.numel()
    return numbers * channels < SMALL or numbers < FEW * x.shape[-1]


def linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Float[Tensor, "*n d"]:
    """x W^T + b, by oneDNN where it is faster and by the formula elsewhere."""
    if small(x, weight.shape[0]) or not on_cpu(x, weight, bias):
        return formulas.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if x.requires_grad else by_onednn(x, weight, bias)


def one_by_one(x: Float[Tensor, "*n c"]) -> bool:
    """Whether several projections of the same tokens are faster one by one than as one matrix multiplication.

    The result of one multiplication would be too large for a cache, and the backward pass would keep its matrix.
    """
    return x.numel() > AT_ONCE or x.requires_grad


def by_onednn(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None, then: Literal["none", "gelu"] = "none"
) -> Float[Tensor, "*n d"]:
    """x W^T + b, or gelu of it, by the operator that torch.compile uses; F.linear uses MKL for float32."""
    if has_values(x):
        if bias is None:  # oneDNN keeps 0.7 MB of code for every form of matrix multiplication
            bias = _no_bias(weight.shape[0], x.dtype)
        return private.linear_pointwise(x, weight, bias, then, [], "none")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if then == "gelu" else y


def times(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor, other: Float[Tensor, "*n d"]
) -> Float[Tensor, "*n d"]:
    """(x W^T + b) * other, by oneDNN."""
    if has_values(x):
        return private.linear_pointwise.binary(x, other, weight, bias, "mul")
    return F.linear(x, weight, bias) * other


@cache
def _no_bias(channels: int, dtype: torch.dtype) -> Float[Tensor, " d"]:
    """Zeros that nobody changes."""
    return torch.zeros(channels, dtype=dtype, device="cpu")


class _Linear(torch.autograd.Function):
    """A linear map with frozen weights, of which the backward pass keeps the weights only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return linear(gradient, weight.T), None, None
