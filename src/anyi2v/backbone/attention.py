"""Attention, feed-forward and the spatial transformer of SD-1.x, on tokens with full axes `b f h w c`."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.call import Call, normalise
from anyi2v.backbone.config import UNetConfig
from anyi2v.backbone.slots import Slot
from anyi2v.taps import wants


class Attention(nn.Module):
    """The projections of one multi-head attention; parameter names as in diffusers."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))


def project(x: Float[Tensor, "*n c"], *layers: nn.Linear) -> tuple[Float[Tensor, "*n d"], ...]:
    """Several projections (without bias) of the same tokens, as one product."""
    return F.linear(x, torch.cat([layer.weight for layer in layers])).chunk(len(layers), dim=-1)


VECTOR = 16
"""Numbers in a vector of a CPU's attention kernel."""


def attend(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], value: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n l c"]:
    """Multi-head scaled dot-product attention over the last but one axis.

    With one leading axis PyTorch takes a fused kernel. On a CPU its exponentials are good to 1e-6, and keys that do
    not fill its vectors cost twice the time. So many short sequences, as over the frames of a clip, are put side by
    side, each seeing its own keys only, and long ones that end within a vector get hidden keys.
    """
    if key.shape[-2] == 1 and not query.requires_grad:  # has all the weight: an image is a clip of one frame
        return value.expand_as(query)
    on_cpu, small = query.device.type == "cpu", max(key.shape[-2], key.shape[-1] // heads) <= VECTOR
    if on_cpu and query.dtype == torch.bfloat16 and (query.requires_grad or small):
        # in bfloat16 the fused kernel's backward pass takes 2 to 15 times as long as in float32, small maps 1.5 times
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (query, key, value))
            return attend(q, k, v, heads).to(query.dtype)
    together = VECTOR // key.shape[-2] if query.ndim == 3 and query.shape == key.shape else 0
    if on_cpu and together > 1 and len(query) % together == 0:
        sequence = torch.arange(together * key.shape[-2]) // key.shape[-2]
        mask = torch.where(sequence[:, None] == sequence, 0.0, -torch.inf).to(query.dtype)
        q, k, v = (x.reshape(len(x) // together, -1, x.shape[-1]) for x in (query, key, value))
        return fused(q, k, v, heads, mask[None, None]).reshape(query.shape)
    missing = -key.shape[-2] % VECTOR
    if not on_cpu or not missing or key.shape[-2] <= VECTOR:
        return fused(query, key, value, heads)
    mask = torch.zeros(key.shape[-2] + missing, dtype=query.dtype)
    mask[key.shape[-2] :] = -torch.inf
    key, value = (F.pad(x, (0, 0, 0, missing)) for x in (key, value))
    return fused(query, key, value, heads, mask.expand(1, 1, query.shape[-2], -1))


def fused(
    query: Float[Tensor, "*n l c"],
    key: Float[Tensor, "*n m c"],
    value: Float[Tensor, "*n m c"],
    heads: int,
    mask: Float[Tensor, "1 1 l m"] | None = None,
) -> Float[Tensor, "*n l c"]:
    """PyTorch's kernel; the mask is added to the logits."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(-3, -2).flatten(-2)


def probabilities(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n heads l m"]:
    """The attention map itself, softmax(Q K^T / sqrt(d)); `attend` never materialises it."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key))
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)


def weigh(probs: Float[Tensor, "*n heads l m"], value: Float[Tensor, "*n m c"]) -> Float[Tensor, "*n l c"]:
    """Averages the values under given attention probabilities."""
    value = value.unflatten(-1, (probs.shape[-3], -1)).transpose(-3, -2)
    return (probs @ value).transpose(-3, -2).flatten(-2)


def self_attention(attn: Attention, name: str, x: Float[Tensor, "b f h w c"], call: Call) -> Tensor:
    """Spatial self-attention of each frame.

    The point `.context` is what keys and values are projected from. A tap may return it with a single frame,
    `b 1 h w c`: then keys and values are projected once and shared by the queries of all frames (the paper's
    K_{2:f} = K_1, V_{2:f} = V_1).
    """
    frames, height = x.shape[1:3]
    context = call.at(name, "context", x)
    if context is x:
        query, key, value = project(x, attn.to_q, attn.to_k, attn.to_v)
    else:
        query, key, value = attn.to_q(x), *project(context, attn.to_k, attn.to_v)
    query, key, value = (call.at(name, part, t) for part, t in (("query", query), ("key", key), ("value", value)))
    if wants(call.tap, f"{name}.probs"):
        q, k, v = (rearrange(t, "b f h w c -> b f (h w) c") for t in (query, key, value))
        k, v = (t.expand(-1, frames, -1, -1) for t in (k, v))
        out = weigh(call.at(name, "probs", probabilities(q, k, attn.heads)), v)
        out = rearrange(out, "b f (h w) c -> b f h w c", h=height)
    elif key.shape[1] < frames:
        q, k, v = (rearrange(t, "b f h w c -> b (f h w) c") for t in (query, key, value))
        out = attend(q, k, v, attn.heads).view_as(query)
    else:
        q, k, v = (rearrange(t, "b f h w c -> (b f) (h w) c") for t in (query, key, value))
        out = attend(q, k, v, attn.heads).view_as(query)
    return attn.to_out(out)


def cross_attention(attn: Attention, name: str, x: Float[Tensor, "b f h w c"], call: Call) -> Tensor:
    """Attention to the text tokens, whose keys and values all frames share."""
    query = call.at(name, "query", attn.to_q(x))
    key = call.at(name, "key", attn.to_k(call.text))
    value = call.at(name, "value", attn.to_v(call.text))
    if wants(call.tap, f"{name}.probs"):
        q = rearrange(query, "b f h w c -> b f (h w) c")
        k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (key, value))
        out = weigh(call.at(name, "probs", probabilities(q, k, attn.heads)), v).view_as(query)
    else:
        out = attend(query.flatten(1, 3), key, value, attn.heads).view_as(query)
    return attn.to_out(out)


CACHE = 2 * 2**20
"""Bytes of hidden states in one part of a feed-forward layer on a CPU; measured best from 1 to 4 MiB."""


class FeedForward(nn.Module):
    """GEGLU feed-forward; parameters `net.0.proj` and `net.2` as in diffusers."""

    def __init__(self, channels: int):
        super().__init__()
        # index 1 is a dropout in the published code; it has no parameters
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Same shape out as in."""
        if x.device.type != "cpu":
            return self.net(x)
        # in parts whose hidden states stay in a core's cache, which takes half the time in float32
        tokens = x.flatten(0, -2)
        rows = max(1, CACHE // (8 * x.shape[-1] * x.element_size()))
        if len(tokens) <= rows:
            return self.net(x)
        return torch.cat([self.net(part) for part in tokens.split(rows)]).view_as(x)


class GEGLU(nn.Module):
    """value * gelu(gate), both linear in the input (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """`c` channels in, `d = out_channels` out."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, the temporal slot, feed-forward: each normed before and added."""

    def __init__(self, name: str, channels: int, heads: int, context_dim: int, temporal: Slot):
        super().__init__()
        self.name = name
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_dim)
        self.temporal = temporal
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Float[Tensor, "b f h w c"], call: Call) -> Float[Tensor, "b f h w c"]:
        """Mixes the tokens of each frame, the text, and (if the slot is filled) the frames."""
        x = x + self_attention(self.attn1, self.name, self.norm1(x), call)
        x = x + cross_attention(self.attn2, f"{self.name}.cross", self.norm2(x), call)
        x = self.temporal(x, call)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Spatial transformer: norm, projection, one block, projection, residual.

    SD-1.x projects by 1x1 convolutions, SD-2.x by linear layers: the same arithmetic, other shapes of weights.
    """

    def __init__(self, name: str, channels: int, config: UNetConfig, temporal: Slot):
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)
        block = TransformerBlock(name, channels, config.heads_of(channels), config.context_dim, temporal)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "n c h w"]:
        """Folded feature maps in and out."""
        normed = normalise(self.norm, x)
        if not self.linear:
            normed = self.proj_in(normed)
        tokens = rearrange(normed, "(b f) c h w -> b f h w c", f=call.frames)
        if self.linear:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, call)
        if self.linear:
            return x + rearrange(self.proj_out(tokens), "b f h w c -> (b f) c h w")
        return x + self.proj_out(rearrange(tokens, "b f h w c -> (b f) c h w"))


def sinusoid(positions: Float[Tensor, " n"], frequencies: Float[Tensor, " k"]) -> Float[Tensor, "n k2"]:
    """[cos, sin] of the positions times the frequencies (SD's order, flip_sin_to_cos)."""
    angles = positions[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
