"""What travels with the tensors through one forward pass of the UNet."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyi2v.backbone.config import NormOver
from anyi2v.backbone.layers import transformed
from anyi2v.taps import Tap, no_tap


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass that every layer may need.

    Inside the UNet frames are folded into the batch, `(b f) c h w`, because most layers are spatial; taps see
    the unfolded tensor.
    """

    embedding: Float[Tensor, "b e"]
    """Time embedding."""
    text: Float[Tensor, "b l d"]
    frames: int
    temporal: bool | frozenset[str]
    """True or False for all temporal layers, or the names of those that are on."""
    tap: Tap
    checkpoint: bool
    """Recompute each layer in the backward pass instead of keeping its activations."""
    window: int | None = None
    """Frames that a temporal layer sees at once; None: all."""

    def temporal_on(self, name: str) -> bool:
        """Whether the temporal layer `name` takes part in this pass."""
        return self.temporal if isinstance(self.temporal, bool) else name in self.temporal

    def at(self, layer: str, part: str, x: Tensor) -> Tensor:
        """Hook point `layer.part` inside a layer; `x` already has its full axes."""
        return x if self.tap is no_tap else self.tap(f"{layer}.{part}", x)

    def at_map(self, name: str, x: Float[Tensor, "n c h w"]) -> Tensor:
        """Hook point on a feature map with folded frames; the tap sees `b f c h w`."""
        if self.tap is no_tap:
            return x
        return self.tap(name, x.unflatten(0, (-1, self.frames))).flatten(0, 1)

    def run(self, layer: Callable[..., Tensor], name: str, *inputs: Tensor) -> Tensor:
        """Calls `layer(*inputs, call)`, checkpointed if asked, and offers its output to the tap as `name`."""
        if self.checkpoint:
            out = checkpoint(layer, *inputs, self, use_reentrant=False)
            assert isinstance(out, Tensor)
        else:
            out = layer(*inputs, self)
        return self.at_map(name, out)


def group_norm(norm: nn.GroupNorm, x: Float[Tensor, "n c h w"], over: NormOver, frames: int) -> Tensor:
    """GroupNorm with statistics per frame, or over all frames of a clip together."""
    if over == "frame" or frames == 1:
        return normalise(norm, x)
    clip = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
    return rearrange(normalise(norm, clip), "b c f h w -> (b f) c h w")


def normalise(norm: nn.GroupNorm, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
    """GroupNorm, whatever the strides of `x` are."""
    half = x.dtype == torch.bfloat16
    if x.device.type != "cpu" or not (half or x.dtype == torch.float32) or transformed():
        return norm(x)
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if last and x.numel() >= MANY and not x.requires_grad:
        (height, width), channels = x.shape[-2:], x.shape[1] // norm.num_groups
        if half or (channels <= NARROW and height * width >= WIDE):
            return channels_last_norm(norm, x)
    if not half:
        return norm(x)
    # with the channels last, PyTorch's CPU kernel takes thirty times as long in bfloat16
    x = norm(x.contiguous())
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


MANY, NARROW, WIDE = 2**15, 8, 64
"""Numbers from which on, channels per group up to which and cells from which on (the last two in float32)
`channels_last_norm` takes less time than PyTorch's kernel, whose vectors are those of a group."""


def channels_last_norm(norm: nn.GroupNorm, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """GroupNorm with vectors over all channels; variance as E x^2 - (E x)^2 in float32, like PyTorch's kernel."""
    (n, _, height, width), groups = x.shape, norm.num_groups
    cells = x.permute(0, 2, 3, 1).flatten(1, 2).float()
    count = cells[0].numel() // groups
    sums = (total.unflatten(-1, (groups, -1)).sum(-1) for total in (cells.sum(1), cells.square().sum(1)))
    mean, square = (total / count for total in sums)
    rstd = (square - mean.square()).clamp_(min=0).add_(norm.eps).rsqrt_()
    weight = norm.weight.float().view(groups, -1) * rstd[..., None]
    bias = norm.bias.float().view(groups, -1) - weight * mean[..., None]
    out = torch.addcmul(bias.flatten(1)[:, None], cells, weight.flatten(1)[:, None])
    return out.to(x.dtype).view(n, height, width, -1).permute(0, 3, 1, 2)
