"""The feed-forward layer of transformers: norm, GEGLU and a linear layer, added to its input."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.layers import (
    FEW,
    SMALL,
    LayerNorm,
    Linear,
    in_turn,
    linear,
    on_cpu,
    on_gpu,
    plain,
    product,
    product_times,
)

CACHE = 2 * 2**20
"""Bytes of hidden states that are alive at once on a CPU: they stay in a core's cache."""


class FeedForward(nn.Module):
    """GEGLU feed-forward; parameters `net.0.proj` and `net.2` as in diffusers."""

    def __init__(self, channels: int):
        super().__init__()
        # index 1 is a dropout in the published code; it has no parameters
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x: Float[Tensor, "*n c"], norm: nn.Module) -> Float[Tensor, "*n c"]:
        """x + feed-forward of norm(x)."""
        layers = self._layers(norm)
        if layers is None:
            return x + self.net(norm(x))
        norm, proj, out = layers
        parameters = (norm.weight, norm.bias, proj.weight, proj.bias, out.weight, out.bias)
        small = x.numel() * proj.out_features < SMALL or x.numel() < FEW * x.shape[-1]
        if small or not on_cpu(x, *parameters):
            return x + self.net(norm(x))
        tokens = x.flatten(0, -2)
        if x.requires_grad:
            return _FeedForward.apply(tokens, *parameters, norm.eps).view_as(x)
        return feed_forward(tokens, *parameters, norm.eps).view_as(x)

    def _layers(self, norm: nn.Module) -> tuple[nn.LayerNorm, Linear, Linear] | None:
        """The layers that compute, if they are those of the constructor and calling them does nothing else."""
        net = self.net
        if not (plain(net, nn.Sequential) and plain(net[1], nn.Identity) and plain(geglu := net[0], GEGLU)):
            return None
        if plain(norm, LayerNorm, nn.LayerNorm) and plain(geglu.proj, Linear) and plain(out := net[2], Linear):
            return norm, geglu.proj, out
        return None


class GEGLU(nn.Module):
    """value * gelu(gate), both linear in the input (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(channels, 2 * out_channels)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """`c` channels in, `d = out_channels` out."""
        both = self.proj(x)
        if on_gpu(both):
            from anyi2v.backbone.kernels.geglu import geglu

            return geglu(both)
        value, gate = both.chunk(2, dim=-1)
        return value * F.gelu(gate)


def feed_forward(
    tokens: Float[Tensor, "n c"],
    norm: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    proj: Float[Tensor, "d2 c"],
    proj_bias: Float[Tensor, " d2"],
    out: Float[Tensor, "c d"],
    out_bias: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "n c"]:
    """The layer for some tokens at a time; oneDNN does gelu and product as it writes what it has multiplied."""
    (value, gate), (value_bias, gate_bias) = proj.chunk(2), proj_bias.chunk(2)
    made = torch.empty_like(tokens)
    rows = _rows(out, tokens)
    for i in in_turn(range(0, len(tokens), rows), tokens):
        x, y = tokens[i : i + rows], made[i : i + rows]
        normed = F.layer_norm(x, norm.shape, norm, norm_bias, eps)
        hidden = product_times(normed, value, value_bias, product(normed, gate, gate_bias, "gelu"))
        torch.add(x, linear(hidden, out, out_bias), out=y)
    return made


class _FeedForward(torch.autograd.Function):
    """`feed_forward` with frozen weights: the backward pass computes all again from the tokens, in a core's cache."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, *arguments: Any) -> Tensor:
        norm, norm_bias, proj, proj_bias, out, _, ctx.eps = arguments
        ctx.save_for_backward(tokens, norm, norm_bias, proj, proj_bias, out)
        return feed_forward(tokens, *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens, norm, norm_bias, proj, proj_bias, out = ctx.saved_tensors
        (value, gate), (value_bias, gate_bias) = proj.chunk(2), proj_bias.chunk(2)
        back = torch.empty_like(tokens)
        rows = _rows(out, tokens)
        for i in in_turn(range(0, len(tokens), rows), tokens):
            x, y, g = (t[i : i + rows] for t in (tokens, back, gradient))
            normed, mean, rstd = torch.native_layer_norm(x, norm.shape, norm, norm_bias, ctx.eps)
            values, gates = linear(normed, value, value_bias), linear(normed, gate, gate_bias)
            hidden = linear(g, out.T)
            inner = linear(hidden * F.gelu(gates), value.T)
            inner += linear(torch.ops.aten.gelu_backward(hidden.mul_(values), gates), gate.T)
            before = torch.ops.aten.native_layer_norm_backward(
                inner, x, norm.shape, mean, rstd, norm, norm_bias, [True, False, False]
            )
            torch.add(g, before[0], out=y)
        return back, *[None] * 7


def _rows(out: Tensor, tokens: Tensor) -> int:
    return max(1, CACHE // (2 * out.shape[1] * tokens.element_size()))
