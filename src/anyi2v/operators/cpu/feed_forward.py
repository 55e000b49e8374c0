"""The feed-forward layer of transformers, in blocks of tokens whose hidden states stay in a core's cache."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.operators import private
from anyi2v.operators.cpu import linear as cpu_linear
from anyi2v.operators.cpu.linear import by_onednn, linear, times
from anyi2v.operators.where import in_turn, on_cpu

CACHE = 2 * 2**20
"""Size in bytes of the hidden states that are alive at once."""


def applies(x: Float[Tensor, "*n c"], *parameters: Tensor) -> bool:
    """Return whether this is faster than separate norm, GEGLU and linear layers; `parameters` as in `feed_forward`."""
    proj = parameters[2]
    return not cpu_linear.small(x, len(proj)) and on_cpu(x, *parameters)


def feed_forward(x: Float[Tensor, "*n c"], *arguments: Any) -> Float[Tensor, "*n c"]:
    """Return x + out(geglu(proj(layer_norm(x)))); arguments as in `formulas.feed_forward`."""
    tokens = x.flatten(0, -2)
    if x.requires_grad:
        return _FeedForward.apply(tokens, *arguments).view_as(x)
    return _forward(tokens, *arguments).view_as(x)


def _forward(
    tokens: Float[Tensor, "n c"],
    norm: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    proj: Float[Tensor, "d2 c"],
    proj_bias: Float[Tensor, " d2"],
    out: Float[Tensor, "c d"],
    out_bias: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "n c"]:
    """Compute the layer; oneDNN fuses gelu and the product of value and gate into the matrix multiplications."""
    (value, gate), (value_bias, gate_bias) = proj.chunk(2), proj_bias.chunk(2)
    result = torch.empty_like(tokens)
    rows = _rows(out, tokens)
    for i in in_turn(range(0, len(tokens), rows), tokens):
        x, y = tokens[i : i + rows], result[i : i + rows]
        normed = F.layer_norm(x, norm.shape, norm, norm_bias, eps)
        hidden = times(normed, value, value_bias, by_onednn(normed, gate, gate_bias, "gelu"))
        torch.add(x, linear(hidden, out, out_bias), out=y)
    return result


class _FeedForward(torch.autograd.Function):
    """The layer with frozen weights; the backward pass recomputes everything from the tokens, within a core's cache."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, *arguments: Any) -> Tensor:
        norm, norm_bias, proj, proj_bias, out, _, ctx.eps = arguments
        ctx.save_for_backward(tokens, norm, norm_bias, proj, proj_bias, out)
        return _forward(tokens, *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens, norm, norm_bias, proj, proj_bias, out = ctx.saved_tensors
        (value, gate), (value_bias, gate_bias) = proj.chunk(2), proj_bias.chunk(2)
        back = torch.empty_like(tokens)
        rows = _rows(out, tokens)
        for i in in_turn(range(0, len(tokens), rows), tokens):
            x, y, g = (t[i : i + rows] for t in (tokens, back, gradient))
            normed, mean, rstd = private.native_layer_norm(x, norm.shape, norm, norm_bias, ctx.eps)
            values, gates = linear(normed, value, value_bias), linear(normed, gate, gate_bias)
            hidden = linear(g, out.T)
            inner = linear(hidden * F.gelu(gates), value.T)
            inner += linear(private.gelu_backward(hidden.mul_(values), gates), gate.T)
            before = private.native_layer_norm_backward(
                inner, x, norm.shape, mean, rstd, norm, norm_bias, [True, False, False]
            )
            torch.add(g, before[0], out=y)
        return back, *[None] * 7


def _rows(out: Tensor, tokens: Tensor) -> int:
    return max(1, CACHE // (2 * out.shape[1] * tokens.element_size()))
