"""Reference implementations of the networks' operators in public PyTorch.

`anyi2v.operators` computes the same with faster implementations where available; with `operators="reference"` it uses
only these functions. The tests compare every implementation with them.
"""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Float[Tensor, "*n d"]:
    """Return x W^T + b."""
    return F.linear(x, weight, bias)


def projections(x: Float[Tensor, "*n c"], *weights: Float[Tensor, "_ c"]) -> tuple[Tensor, ...]:
    """Return x W^T for each weight: query, key and value of the same tokens."""
    return tuple(linear(x, weight) for weight in weights)


def conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c k k"],
    bias: Float[Tensor, " d"] | None,
    stride: int,
    padding: int,
    shift: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "n d h2 w2"]:
    """Return W * x + (b + shift), the zero-padded cross-correlation, with one shift per output channel."""
    return F.conv2d(x, weight, shifted(bias, shift), stride, padding)


def shifted(bias: Float[Tensor, " d"] | None, shift: Float[Tensor, " d"] | None) -> Float[Tensor, " d"] | None:
    """Return bias + shift, where None means zero."""
    return shift if bias is None else bias if shift is None else bias + shift


def layer_norm(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    shift: Float[Tensor, "f c"] | None = None,
) -> Float[Tensor, "*n c"]:
    """Return (x - mean) / sqrt(var + eps) * w + b over the channels (Ba et al. 2016, arXiv:1607.06450).

    If `shift` is given, `x` has axes `b f ... c`, and row f of the shift is added to the tokens of frame f.
    """
    normed = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if shift is None:
        return normed
    return normed + shift.view(1, len(shift), *[1] * (x.ndim - 3), -1).to(x.dtype)


def group_norm(
    x: Float[Tensor, "n c *s"],
    groups: int,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    frames: int = 1,
) -> Float[Tensor, "n c *s"]:
    """Return (x - mean) / sqrt(var + eps) * w + b per group of channels (Wu and He 2018, arXiv:1803.08494).

    Mean and variance are computed per map, or with `frames` > 1 per clip of that many maps `(b f) c h w`.
    """
    return of_clips(lambda x: F.group_norm(x, groups, weight, bias, eps), x, frames)


def of_clips(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "n c *s"], frames: int = 1) -> Float[Tensor, "n c *s"]:
    """Apply `norm` to the maps, or with `frames` > 1 to each clip `b c f h w` of maps `(b f) c h w`."""
    if frames == 1:
        return norm(x)
    clips = norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames))
    return rearrange(clips, "b c f h w -> (b f) c h w")


def group_norm_silu(
    x: Float[Tensor, "n c *s"],
    groups: int,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    frames: int = 1,
) -> Float[Tensor, "n c *s"]:
    """Return silu(group_norm(x)), where silu(y) = y * sigmoid(y)."""
    return F.silu(group_norm(x, groups, weight, bias, eps, frames))


def attention(
    query: Float[Tensor, "*n l c"],
    key: Float[Tensor, "*n m c"],
    value: Float[Tensor, "*n m c"],
    heads: int,
    mask: Float[Tensor, "1 1 l m"] | None = None,
) -> Float[Tensor, "*n l c"]:
    """Return softmax(Q K^T / sqrt(d) + mask) V for each head of d channels (Vaswani et al. 2017, arXiv:1706.03762)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(-3, -2).flatten(-2)


def attention_over_frames(
    query: Float[Tensor, "b h w f c"],
    key: Float[Tensor, "b h w f c"],
    value: Float[Tensor, "b h w f c"],
    heads: int,
    out: nn.Module,
) -> Float[Tensor, "b f h w c"]:
    """Return out(attention(Q, K, V)), where each position of the map is a sequence of frames."""
    n, h, w = query.shape[:3]
    query, key, value = (rearrange(x, "b h w f c -> (b h w) f c") for x in (query, key, value))
    mixed = attention(query, key, value, heads)
    return out(rearrange(mixed, "(b h w) f c -> b f h w c", b=n, h=h, w=w))


def geglu(x: Float[Tensor, "*n d2"]) -> Float[Tensor, "*n d"]:
    """Return value * gelu(gate), where [value, gate] are the halves of the channels (Shazeer 2020,
    arXiv:2002.05202)."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def feed_forward(
    x: Float[Tensor, "*n c"],
    norm: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    proj: Float[Tensor, "d2 c"],
    proj_bias: Float[Tensor, " d2"],
    out: Float[Tensor, "c d"],
    out_bias: Float[Tensor, " c"],
    eps: float,
) -> Float[Tensor, "*n c"]:
    """Return x + out(geglu(proj(layer_norm(x)))), a transformer's feed-forward layer with norm and residual."""
    hidden = geglu(linear(layer_norm(x, norm, norm_bias, eps), proj, proj_bias))
    return x + linear(hidden, out, out_bias)
