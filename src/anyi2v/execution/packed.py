"""A copy of a network with weights packed in oneDNN's layout, for many passes of single images.

Reordering the weights takes longer than a matrix multiplication with few rows. The copy shares the network's parameters
and additionally keeps the reordered weights of the layers that run. Source: freezing in torch.compile, which uses the
same operators.
"""

from copy import copy
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v import operators
from anyi2v.backbone.layers import Conv2d, Linear
from anyi2v.backbone.slots import Temporal
from anyi2v.operators import has_values, hooked, private
from anyi2v.operators.formulas import shifted
from anyi2v.operators.where import computes_by_formulas, on_cpu

Network = TypeVar("Network", bound=nn.Module)

LEAST_ROWS = 4
"""Number of rows below which packing is not used."""


class PackedLinear(nn.Module):
    """A linear layer that shares another's parameters and packs its weights in its first pass."""

    def __init__(self, layer: Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.packed: Tensor | None = None
        self.last: tuple[Tensor, Tensor] | None = None
        """The most recent text states and their projection."""

    def forward(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Return x W^T + b."""
        if input.ndim != 3:  # tokens of images, `b f h w c`
            return self._linear(input)
        if self.last is None or self.last[0] is not input:  # the text is the same tensor in every pass
            self.last = input, self._linear(input)
        return self.last[1]

    def _linear(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        rows = input.numel() // input.shape[-1]
        if rows < LEAST_ROWS:
            return operators.linear(input, self.weight, self.bias)
        if self.packed is None:
            self.packed = private.reorder_linear_weight(self.weight.detach(), rows)
        return private.linear_pointwise(input, self.packed, self.bias, "none", [], "none")


class PackedConv2d(nn.Module):
    """A convolution that shares another's parameters and packs its weights in its first pass."""

    stands_for = Conv2d

    def __init__(self, layer: Conv2d):
        super().__init__()
        self.weight, self.bias, self.kernel_size = layer.weight, layer.bias, layer.kernel_size
        self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups
        self.is_linear = layer.kernel_size == layer.stride == (1, 1)
        self.packed: Tensor | None = None

    def forward(
        self, input: Float[Tensor, "n c h w"], shift: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n d h2 w2"]:
        """Convolve with zero padding; the shift is added to the bias."""
        bias = shifted(self.bias, shift)
        if self.is_linear:  # as a linear map it takes two thirds of the time
            weight, cells = self.weight.detach()[:, :, 0, 0], input.permute(0, 2, 3, 1)
            if self.packed is None:
                self.packed = private.reorder_linear_weight(weight, cells.numel() // cells.shape[-1])
            made = private.linear_pointwise(cells, self.packed, bias, "none", [], "none")
            return made.permute(0, 3, 1, 2)
        if self.packed is None:
            self.packed = private.reorder_convolution_weight(self.weight.detach(), *self.geometry, input.shape)
        return private.convolution_pointwise(input, self.packed, bias, *self.geometry, "none", [], "")


@torch.no_grad()
def packed(network: Network) -> Network:
    """Return a packed copy of the network, or the network itself if its layers are not computed by oneDNN.

    For passes without gradients, in the network's dtype, with inputs of constant size. Changes of the parameters after
    the first pass, and in-place changes of the text, do not affect the copy.
    """
    tensors = (*network.parameters(), *network.buffers())
    if computes_by_formulas(network) or not all(has_values(x.detach()) and on_cpu(x, x) for x in tensors):
        return network
    return cast(Network, _twin(network))


def _twin(module: nn.Module) -> nn.Module:
    """Copy the module structure on the same tensors, with packing layers; a deep copy takes as long as two passes."""
    if type(module) is Linear and not hooked(module):
        return PackedLinear(module)
    if type(module) is Conv2d and not hooked(module):
        return PackedConv2d(module)
    twin = copy(module)
    twin._modules = {name: layer and _twin(layer) for name, layer in module._modules.items()}
    return twin


def packed_size(network: nn.Module) -> int:
    """Return the bytes of packed weights once every layer except the temporal ones has run."""
    temporal = {layer for module in network.modules() if isinstance(module, Temporal) for layer in module.modules()}
    layers = (layer for layer in network.modules() if isinstance(layer, (Linear, Conv2d)) and layer not in temporal)
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
