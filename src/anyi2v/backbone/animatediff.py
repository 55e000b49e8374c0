"""AnimateDiff's motion modules, transformers with self-attention over the frames at each feature map position."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.attention import Attention, edited_map, project, wants_map, weigh
from anyi2v.backbone.call import Call
from anyi2v.backbone.config import MotionConfig, NormOver
from anyi2v.backbone.feed_forward import FeedForward
from anyi2v.backbone.layers import LayerNorm, Linear, group_norm
from anyi2v.backbone.slots import Design, Site, Slot, Temporal
from anyi2v.operators import HOST, attention_over_frames, plain


class MotionModules(Design):
    """The AnimateDiff design: a motion module after every layer, in the mid block only if configured (v2)."""

    def __init__(self, config: MotionConfig):
        self.config = config
        self.max_frames = config.max_frames

    def after_layer(self, site: Site) -> Slot:
        """Return a motion module, or an empty slot in the mid block of v1 and v3."""
        c = self.config
        if site.mid and not c.mid:
            return Slot()
        return MotionModule(
            site,
            width=site.channels,
            heads=c.heads,
            groups=c.groups,
            norm_over=c.norm_over,
            attentions=c.attentions,
            positions=c.max_frames,
        )


class MotionModule(Temporal):
    """A temporal transformer: norm, projection, transformer over frames, zero-initialised projection, residual.

    References: AnimateDiff, models/motion_module.py, without the level `temporal_transformer` in parameter names;
        VideoCrafter2, TemporalTransformer, with its own norm and without positions.
    """

    def __init__(
        self,
        site: Site,
        *,
        width: int,
        heads: int,
        groups: int,
        norm_over: NormOver,
        attentions: int = 2,
        positions: int | None = None,
    ):
        super().__init__(site.name)
        self.norm_over: NormOver = norm_over
        self.norm = nn.GroupNorm(groups, site.channels, eps=1e-6)
        self.proj_in = Linear(site.channels, width)
        self.transformer_blocks = nn.ModuleList([MotionBlock(site.name, width, heads, attentions, positions)])
        self.proj_out = Linear(width, site.channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def mix(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "n c h w"]:
        """Mix the frames at each position of the map."""
        tokens = group_norm(self.norm, x, call.frames_of(self.norm_over))
        tokens = self.proj_in(rearrange(tokens, "(b f) c h w -> b f h w c", f=call.frames))
        for block in self.transformer_blocks:
            tokens = block(tokens, call)
        return x + rearrange(self.proj_out(tokens), "b f h w c -> (b f) c h w")


class MotionBlock(nn.Module):
    """Temporal self-attentions followed by a feed-forward layer, each pre-normed with a residual connection.

    Args:
        name: hook point path of the module.
        channels: width of the tokens.
        heads: number of heads of each attention.
        attentions: number of attentions.
        positions: number of rows of the sinusoidal position table; None: no positions.
    """

    positions: Tensor | None

    def __init__(self, name: str, channels: int, heads: int, attentions: int, positions: int | None):
        super().__init__()
        self.name = name
        self.attention_blocks = nn.ModuleList([Attention(channels, heads) for _ in range(attentions)])
        self.norms = nn.ModuleList([LayerNorm(channels) for _ in range(attentions)])
        self.ff = FeedForward(channels)
        self.ff_norm = LayerNorm(channels)
        table = None if positions is None else position_table(positions, channels)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, x: Float[Tensor, "b f h w c"], call: Call) -> Float[Tensor, "b f h w c"]:
        """Apply the block to the sequence of frames at each position of the map."""
        for i, (attn, norm) in enumerate(zip(self.attention_blocks, self.norms, strict=True)):
            assert isinstance(attn, Attention)
            normed = with_positions(norm, x, self.positions)
            name = f"{self.name}.{i}"
            x = x + call.at(name, "output", temporal_attention(attn, name, normed, call))
        return self.ff(x, self.ff_norm)


def with_positions(
    norm: nn.Module, x: Float[Tensor, "b f h w c"], table: Float[Tensor, "m c"] | None
) -> Float[Tensor, "b f h w c"]:
    """Norm the tokens and add the table's row of their frame; our own LayerNorm does both in one pass."""
    if table is None:
        return norm(x)
    if plain(norm, LayerNorm):
        return norm(x, table[: x.shape[1]])
    return norm(x) + table[: x.shape[1], None, None].to(x.dtype)


def temporal_attention(
    attn: Attention, name: str, x: Float[Tensor, "b f h w c"], call: Call
) -> Float[Tensor, "b f h w c"]:
    """Compute self-attention over frames; hook points see `b h w f c`, attention maps `b h w heads f f`."""

    def point(part: str, tensor: Tensor) -> Tensor:
        return call.at(name, part, rearrange(tensor, "b f h w c -> b h w f c"))

    query, key, value = project(x, attn.to_q, attn.to_k, attn.to_v)
    query, key, value = point("query", query), point("key", key), point("value", value)
    if wants_map(call, name):
        probs = edited_map(query, key, attn.heads, name, call)
        if probs is not None:
            return attn.to_out(rearrange(weigh(probs, value), "b h w f c -> b f h w c"))
    return attention_over_frames(query, key, value, attn.heads, attn.to_out)


def position_table(frames: int, channels: int) -> Float[Tensor, "f c"]:
    """Return sinusoidal positions, sin in the even channels and cos in the odd ones (Vaswani et al., section 3.5).

    Always computed on the host, so that a network built on the meta device has real values.
    """
    frame = torch.arange(frames, device=HOST, dtype=torch.float32)[:, None]
    index = torch.arange(0, channels, 2, device=HOST, dtype=torch.float32)
    angle = frame * torch.exp(index * (-math.log(10000.0) / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
