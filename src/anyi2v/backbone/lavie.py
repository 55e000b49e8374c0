"""LaVie's temporal attention inside each spatial transformer, with two kinds of relative positions.

Reference: Vchitect/LaVie, base/models/attention.py (attn_temp).
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyi2v.backbone.attention import Attention, weigh
from anyi2v.backbone.call import Call
from anyi2v.backbone.config import RotaryConfig
from anyi2v.backbone.layers import LayerNorm
from anyi2v.backbone.slots import Design, Site, Slot, Temporal
from anyi2v.taps import wants


class RotaryAttentions(Design):
    """The LaVie design: a temporal attention between text attention and feed-forward in every transformer block."""

    def __init__(self, config: RotaryConfig):
        self.config = config

    def in_transformer(self, site: Site) -> Slot:
        """Return the temporal attention; levels without spatial transformers have none."""
        return RotaryAttention(site, self.config)


class RotaryAttention(Temporal):
    """Zero-initialised x + attention(norm(x)) over frames, with a learned bias per head and frame distance.

    With a single frame it still adds a projection of the values, so a trained layer is not the identity.
    """

    def __init__(self, site: Site, config: RotaryConfig):
        super().__init__(site.name)
        self.config = config
        self.norm = LayerNorm(site.channels)
        self.attn = Attention(site.channels, config.heads)
        self.relative_bias = nn.Embedding(config.buckets, config.heads)
        self._tables: dict[tuple[int, torch.device], Tensor] = {}
        for parameter in self.attn.to_out.parameters():
            nn.init.zeros_(parameter)

    def mix(self, x: Float[Tensor, "b f h w c"], call: Call) -> Float[Tensor, "b f h w c"]:
        """Mix the frames; hook points see `b h w f c` before the rotation, attention maps `b h w heads f f`."""

        def point(part: str, tensor: Tensor) -> Tensor:
            return call.at(self.name, part, rearrange(tensor, "b f h w c -> b h w f c"))

        attn, normed = self.attn, self.norm(x)
        query, key = (
            rotate(point(part, layer(normed)).unflatten(-1, (attn.heads, -1)), self.config.rotary_dims)
            for part, layer in (("query", attn.to_q), ("key", attn.to_k))
        )
        value = point("value", attn.to_v(normed))
        scores = torch.einsum("...inc,...jnc->...nij", query * query.shape[-1] ** -0.5, key)
        logits = scores + self.bias(call.frames).to(scores.dtype)
        if wants(call.tap, f"{self.name}.logits"):  # as in other families, although the map always exists here
            logits = call.at(self.name, "logits", logits)
        probs = logits.softmax(-1)
        if wants(call.tap, f"{self.name}.probs"):
            probs = call.at(self.name, "probs", probs)
        out = weigh(probs, value)
        return x + call.at(self.name, "output", attn.to_out(rearrange(out, "b h w f c -> b f h w c")))

    def bias(self, frames: int) -> Float[Tensor, "heads f f"]:
        """Return the bias added to the score of query frame i and key frame j."""
        device = self.relative_bias.weight.device
        if (frames, device) not in self._tables:  # on the host: a device could round to another bucket
            with torch.inference_mode(False):  # reused by passes under autograd
                table = buckets(frames, self.config.buckets, self.config.max_distance)
                self._tables[frames, device] = table.to(device)
        return self.relative_bias(self._tables[frames, device]).permute(2, 0, 1)


def rotate(x: Float[Tensor, "*n f heads c"], dims: int) -> Float[Tensor, "*n f heads c"]:
    """Rotate the pairs (0, 1), (2, 3), ... of the first `dims` channels by frame * 10000^(-2i / dims).

    Source: Su et al. 2021 (arXiv:2104.09864), Eq. 34, with interleaved pairs. Frames count from 0.
    """
    frequencies = 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float32, device=x.device) / dims)
    angles = torch.arange(x.shape[-3], dtype=torch.float32, device=x.device)[:, None] * frequencies
    cos, sin = (wave.to(x.dtype)[:, None] for wave in (angles.cos(), angles.sin()))
    even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned, x[..., dims:]], dim=-1)


def buckets(frames: int, count: int, max_distance: int) -> Int[Tensor, "f f"]:
    """Return the row of the bias table for query frame i and key frame j, by j - i (T5's buckets).

    The upper half of the rows is for keys after the query. In each half, the first half of the rows covers single
    frames; the rest grow geometrically up to `max_distance`, beyond which all distances share the last row.
    """
    half = count // 2
    exact = half // 2
    frame = torch.arange(frames)
    distance = frame[None, :] - frame[:, None]
    n = distance.abs()
    far = (n.clamp(min=1).float() / exact).log() / math.log(max_distance / exact) * (half - exact)
    n = torch.where(n < exact, n, (exact + far.long()).clamp(max=half - 1))
    return n + half * (distance > 0)
