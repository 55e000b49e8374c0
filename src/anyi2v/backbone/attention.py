"""Attention and the spatial transformer of SD-1.x, on tokens with full axes `b f h w c`."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.call import Call, repeat_clip
from anyi2v.backbone.config import UNetConfig
from anyi2v.backbone.feed_forward import FeedForward
from anyi2v.backbone.layers import Conv2d, LayerNorm, Linear, group_norm
from anyi2v.backbone.slots import Slot
from anyi2v.operators import attention, plain, projections
from anyi2v.taps import wants


class Attention(nn.Module):
    """The projections of one multi-head attention; parameter names as in diffusers."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim or channels, channels, bias=False)
        self.to_v = Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.Sequential(Linear(channels, channels))


def project(x: Float[Tensor, "*n c"], *layers: nn.Module) -> tuple[Float[Tensor, "*n d"], ...]:
    """Apply several linear layers to the same tokens."""
    weights = [layer.weight for layer in layers if plain(layer, Linear) and layer.bias is None]
    if len(weights) < len(layers):
        return tuple(layer(x) for layer in layers)
    return projections(x, *weights)


def scores(query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], heads: int) -> Float[Tensor, "*n heads l m"]:
    """Compute the attention logits, Q K^T / sqrt(d); `attention` never materialises them."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key))
    return query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5


def probabilities(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n heads l m"]:
    """Compute the attention map, softmax(Q K^T / sqrt(d))."""
    return scores(query, key, heads).softmax(-1)


def wants_map(call: Call, name: str) -> bool:
    """Return whether the tap requests the attention map, before or after the softmax."""
    return wants(call.tap, f"{name}.logits") or wants(call.tap, f"{name}.probs")


def edited_map(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], heads: int, name: str, call: Call
) -> Float[Tensor, "*n heads l m"] | None:
    """Offer the attention map to the tap, before and after the softmax, and return the edited map.

    None if the tap did not change it; the caller then uses the fast kernels.
    """
    logits = scores(query, key, heads)
    edited = call.changed(name, "logits", logits) if wants(call.tap, f"{name}.logits") else None
    probs = (logits if edited is None else edited).softmax(-1)
    seen = call.changed(name, "probs", probs) if wants(call.tap, f"{name}.probs") else None
    return probs if seen is None and edited is not None else seen


def weigh(probs: Float[Tensor, "*n heads l m"], value: Float[Tensor, "*n m c"]) -> Float[Tensor, "*n l c"]:
    """Average the values weighted by attention probabilities."""
    value = value.unflatten(-1, (probs.shape[-3], -1)).transpose(-3, -2)
    return (probs @ value).transpose(-3, -2).flatten(-2)


def self_attention(attn: Attention, name: str, x: Float[Tensor, "b f h w c"], call: Call) -> Tensor:
    """Compute the spatial self-attention of each frame.

    The hook point `.context` is the input of the key and value projections. If a tap returns it with a single frame, `b
    1 h w c`, keys and values are projected once and shared by the queries of all frames (the paper's K_{2:f} = K_1,
    V_{2:f} = V_1).
    """
    frames, height = x.shape[1:3]
    context = call.at(name, "context", x)
    if context is x:
        query, key, value = project(x, attn.to_q, attn.to_k, attn.to_v)
    else:
        query, key, value = attn.to_q(x), *project(context, attn.to_k, attn.to_v)
    query, key, value = (call.at(name, part, t) for part, t in (("query", query), ("key", key), ("value", value)))
    if wants_map(call, name):
        q, k, v = (rearrange(t, "b f h w c -> b f (h w) c") for t in (query, key, value))
        k, v = (t.expand(-1, frames, -1, -1) for t in (k, v))
        probs = edited_map(q, k, attn.heads, name, call)
        if probs is not None:
            return attn.to_out(rearrange(weigh(probs, v), "b f (h w) c -> b f h w c", h=height))
    if key.shape[1] < frames:
        q, k, v = (rearrange(t, "b f h w c -> b (f h w) c") for t in (query, key, value))
        out = attention(q, k, v, attn.heads).view_as(query)
    else:
        q, k, v = (rearrange(t, "b f h w c -> (b f) (h w) c") for t in (query, key, value))
        out = attention(q, k, v, attn.heads).view_as(query)
    return attn.to_out(out)


def cross_attention(attn: Attention, name: str, x: Float[Tensor, "#b f h w c"], call: Call) -> Tensor:
    """Compute attention to the text, whose keys and values all frames share; one clip may attend to several texts."""
    query = call.at(name, "query", attn.to_q(x))
    key = call.at(name, "key", attn.to_k(call.text))
    value = call.at(name, "value", attn.to_v(call.text))
    query = query.expand(len(key), *query.shape[1:])
    if wants_map(call, name):
        q = rearrange(query, "b f h w c -> b f (h w) c")
        k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (key, value))
        probs = edited_map(q, k, attn.heads, name, call)
        if probs is not None:
            return attn.to_out(weigh(probs, v).view_as(query))
    return attn.to_out(attention(query.flatten(1, 3).contiguous(), key, value, attn.heads).view_as(query))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, temporal slot and feed-forward, each pre-normed with a residual connection."""

    def __init__(self, name: str, channels: int, heads: int, context_dim: int, temporal: Slot):
        super().__init__()
        self.name = name
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.temporal = temporal
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Float[Tensor, "#b f h w c"], call: Call) -> Float[Tensor, "b f h w c"]:
        """Mix the tokens within each frame, with the text, and over frames if the slot is filled."""
        x = x + call.at(self.name, "output", self_attention(self.attn1, self.name, self.norm1(x), call))
        cross = f"{self.name}.cross"
        x = x + call.at(cross, "output", cross_attention(self.attn2, cross, self.norm2(x), call))
        x = self.temporal(x, call)
        return self.ff(x, self.norm3)


class SpatialTransformer(nn.Module):
    """A spatial transformer: norm, projection, one block, projection, residual.

    SD-1.x projects with 1x1 convolutions, SD-2.x with linear layers; the arithmetic is the same, the weight shapes
    differ.
    """

    def __init__(self, name: str, channels: int, config: UNetConfig, temporal: Slot):
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if self.linear else Conv2d(channels, channels, 1)
        block = TransformerBlock(name, channels, config.heads_of(channels), config.context_dim, temporal)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = Linear(channels, channels) if self.linear else Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "m c h w"]:
        """Map folded feature maps to folded feature maps, one clip per text."""
        normed = group_norm(self.norm, x)
        if not self.linear:
            normed = self.proj_in(normed)
        tokens = rearrange(normed, "(b f) c h w -> b f h w c", f=call.frames)
        if self.linear:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, call)
        if self.linear:
            out = rearrange(self.proj_out(tokens), "b f h w c -> (b f) c h w")
        else:
            out = self.proj_out(rearrange(tokens, "b f h w c -> (b f) c h w"))
        return repeat_clip(x, len(out)) + out


def sinusoid(positions: Float[Tensor, " n"], frequencies: Float[Tensor, " k"]) -> Float[Tensor, "n k2"]:
    """Return [cos, sin] of positions times frequencies (SD's order, flip_sin_to_cos)."""
    angles = positions[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
