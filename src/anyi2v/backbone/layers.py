"""Layers of `torch.nn` computed by `anyi2v.operators`."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v import operators
from anyi2v.operators import plain


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `anyi2v.operators`."""

    def forward(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Return x W^T + b."""
        return operators.linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over one axis."""

    def forward(self, input: Float[Tensor, "*n c"], shift: Float[Tensor, "f c"] | None = None) -> Float[Tensor, "*n c"]:
        """Norm the tokens, and add a shift per frame if given (`input` is then `b f ... c`)."""
        return operators.layer_norm(input, self.weight, self.bias, self.eps, shift)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without groups and dilation."""

    def forward(
        self, input: Float[Tensor, "n c h w"], shift: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n d h2 w2"]:
        """Convolve with zero padding; the shift is added to the bias."""
        stride, padding = self.stride[0], self.padding[0]
        assert isinstance(padding, int)
        return operators.conv2d(input, self.weight, self.bias, stride, padding, shift)


def group_norm(norm: nn.Module, x: Float[Tensor, "n c *s"], frames: int = 1) -> Float[Tensor, "n c *s"]:
    """Apply the GroupNorm module `norm`, with statistics over one map or over a clip of `frames` maps."""
    if plain(norm, nn.GroupNorm):
        return operators.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, frames)
    return operators.called(norm, x, frames)


def group_norm_silu(
    norm: nn.Module, x: Float[Tensor, "n c *s"], frames: int = 1, *, large: bool = False
) -> Float[Tensor, "n c *s"]:
    """Return silu(group_norm(x)); set `large` if the maps exceed the processor's cache."""
    if plain(norm, nn.GroupNorm):
        return operators.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, frames, large)
    return F.silu(operators.called(norm, x, frames))
