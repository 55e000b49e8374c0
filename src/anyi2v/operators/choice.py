"""The networks' operators, dispatched to an applicable implementation or else to the formula.

Arguments and results are the same as in `anyi2v.operators.formulas`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.operators import formulas
from anyi2v.operators.cpu import attention as cpu_attention
from anyi2v.operators.cpu import convolution as cpu_convolution
from anyi2v.operators.cpu import feed_forward as cpu_feed_forward
from anyi2v.operators.cpu import linear as cpu_linear
from anyi2v.operators.cpu import norm as cpu_norm
from anyi2v.operators.formulas import shifted
from anyi2v.operators.where import formulas_only, on_gpu

MOST_FRAMES = 32
"""Maximum sequence length of the Triton kernel, which holds sequences in registers."""


def linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Float[Tensor, "*n d"]:
    """Return x W^T + b."""
    return cpu_linear.linear(x, weight, bias)


def projections(x: Float[Tensor, "*n c"], *weights: Float[Tensor, "_ c"]) -> tuple[Tensor, ...]:
    """Return x W^T for each weight; on an accelerator by a single matrix multiplication."""
    if formulas_only():
        return formulas.projections(x, *weights)
    if x.device.type == "cpu":
        return tuple(linear(x, weight) for weight in weights)
    return linear(x, torch.cat(weights)).split([len(weight) for weight in weights], dim=-1)


def conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c k k"],
    bias: Float[Tensor, " d"] | None,
    stride: int,
    padding: int,
    shift: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "n d h2 w2"]:
    """Return W * x + (b + shift), with zero padding."""
    bias = shifted(bias, shift)
    if on_gpu(x, weight, bias):
        from anyi2v.operators.triton import convolution

        return convolution.conv2d(x, weight, bias, stride, padding)
    if cpu_convolution.applies(x, weight, bias):
        return cpu_convolution.conv2d(x, weight, bias, stride, padding)
    return formulas.conv2d(x, weight, bias, stride, padding)


def layer_norm(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    shift: Float[Tensor, "f c"] | None = None,
) -> Float[Tensor, "*n c"]:
    """Return (x - mean) / sqrt(var + eps) * w + b over the channels, plus row f of the shift in frame f."""
    if weight is not None and bias is not None and on_gpu(x, weight, bias):
        from anyi2v.operators.triton import layer_norm

        return layer_norm.layer_norm(x, weight, bias, eps, shift)
    return formulas.layer_norm(x, weight, bias, eps, shift)


def group_norm(
    x: Float[Tensor, "n c *s"],
    groups: int,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    frames: int = 1,
) -> Float[Tensor, "n c *s"]:
    """Return (x - mean) / sqrt(var + eps) * w + b over each group of channels, per map or per clip of `frames` maps."""
    if weight is not None and bias is not None:
        if x.ndim == 4 and on_gpu(x, weight, bias):
            return _group_norm_by_triton(x, groups, weight, bias, eps, frames)
        if frames == 1 and cpu_norm.applies(x, groups):
            return cpu_norm.group_norm(x, groups, weight, bias, eps)
    return called(lambda x: formulas.group_norm(x, groups, weight, bias, eps), x, frames)


def called(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "n c *s"], frames: int = 1) -> Float[Tensor, "n c *s"]:
    """Apply `norm` per map or per clip of `frames` maps, in a memory layout that is fast for it."""
    if cpu_norm.slow_strides(x):
        return formulas.of_clips(lambda x: cpu_norm.contiguous(norm, x), x, frames)
    return formulas.of_clips(norm, x, frames)


def group_norm_silu(
    x: Float[Tensor, "n c *s"],
    groups: int,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    eps: float,
    frames: int = 1,
    large: bool = False,
) -> Float[Tensor, "n c *s"]:
    """Return silu(group_norm(x)).

    Set `large` if the maps exceed the CPU's cache, as in an autoencoder: PyTorch's own norm is then as fast as any.
    """
    if weight is not None and bias is not None:
        if x.ndim == 4 and on_gpu(x, weight, bias):
            return _group_norm_by_triton(x, groups, weight, bias, eps, frames, silu=True)
        if frames == 1 and not large and cpu_norm.silu_applies(x, weight, bias):
            return cpu_norm.group_norm_silu(x, groups, weight, bias, eps)
    if large:
        return F.silu(called(lambda x: formulas.group_norm(x, groups, weight, bias, eps), x, frames))
    return F.silu(group_norm(x, groups, weight, bias, eps, frames))


def _group_norm_by_triton(
    x: Float[Tensor, "n c h w"],
    groups: int,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    eps: float,
    frames: int,
    silu: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Apply the Triton kernel; the result is in channels-last layout."""
    from anyi2v.operators.triton.group_norm import group_norm

    cells = x.permute(0, 2, 3, 1)
    clips = cells.reshape(len(x) // frames, -1, x.shape[1])
    return group_norm(clips, weight, bias, groups, eps, silu).view(cells.shape).permute(0, 3, 1, 2)


def attention(
    query: Float[Tensor, "*n l c"], key: Float[Tensor, "*n m c"], value: Float[Tensor, "*n m c"], heads: int
) -> Float[Tensor, "*n l c"]:
    """Return softmax(Q K^T / sqrt(d)) V for each head of d channels; with one leading axis a fused kernel is used."""
    if formulas_only():
        return formulas.attention(query, key, value, heads)
    if key.shape[-2] == 1 and not query.requires_grad:  # a single key has all the weight, as in a clip of one frame
        return value.expand_as(query)
    if query.device.type == "cpu":
        return cpu_attention.attention(query, key, value, heads)
    return formulas.attention(query, key, value, heads)


def attention_over_frames(
    query: Float[Tensor, "b h w f c"],
    key: Float[Tensor, "b h w f c"],
    value: Float[Tensor, "b h w f c"],
    heads: int,
    out: nn.Module,
) -> Float[Tensor, "b f h w c"]:
    """Return out(attention(Q, K, V)), where each position of the map is a sequence of frames.

    The output projection is applied before rearranging, because linear layers on rearranged tokens are slow.
    """
    if formulas_only():
        return formulas.attention_over_frames(query, key, value, heads, out)
    height, frames = query.shape[1], query.shape[3]
    if frames <= MOST_FRAMES and on_gpu(query):
        from anyi2v.operators.triton.over_frames import attend_over_frames

        q, k, v = (rearrange(x, "b h w f c -> b f (h w) c") for x in (query, key, value))
        return out(rearrange(attend_over_frames(q, k, v, heads), "b f (h w) c -> b f h w c", h=height))
    # clip by clip, so that positions become one axis without a copy
    query, key, value = (rearrange(x, "b h w f c -> b (h w) f c") for x in (query, key, value))
    clips = [attention(q, k, v, heads) for q, k, v in zip(query, key, value, strict=True)]
    mixed = out(clips[0][None] if len(clips) == 1 else torch.stack(clips))
    return rearrange(mixed, "b (h w) f c -> b f h w c", h=height)


def geglu(x: Float[Tensor, "*n d2"]) -> Float[Tensor, "*n d"]:
    """Return value * gelu(gate), the two halves of the channels."""
    if on_gpu(x):
        from anyi2v.operators.triton import geglu

        return geglu.geglu(x)
    return formulas.geglu(x)


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
    """Return x + out(geglu(proj(layer_norm(x))))."""
    if cpu_feed_forward.applies(x, norm, norm_bias, proj, proj_bias, out, out_bias):
        return cpu_feed_forward.feed_forward(x, norm, norm_bias, proj, proj_bias, out, out_bias, eps)
    hidden = geglu(linear(layer_norm(x, norm, norm_bias, eps), proj, proj_bias))
    return x + linear(hidden, out, out_bias)
