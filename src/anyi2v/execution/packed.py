"""A copy of a network for many passes of one image: its weights lie in the order in which oneDNN reads them.

To bring them into that order takes longer than a product of few rows. The copy shares the network's parameters and
keeps those of the layers that run once more. Source: freezing in torch.compile, which computes by the same operators.
"""

from copy import copy
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.layers import Conv2d, Linear
from anyi2v.backbone.slots import Temporal
from anyi2v.operators.formulas import shifted
from anyi2v.operators.where import has_values, hooked, on_cpu

Network = TypeVar("Network", bound=nn.Module)

LEAST_ROWS = 4
"""Rows below which a product is PyTorch's own."""


class PackedLinear(Linear):
    """A linear layer that packs its weights in its first pass."""

    packed: Tensor | None = None
    last: tuple[Tensor, Tensor] | None = None
    """The last text, and what the layer made of it."""

    def forward(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """x W^T + b."""
        if input.ndim != 3:  # tokens of images, `b f h w c`
            return self._product(input)
        if self.last is None or self.last[0] is not input:  # a text is the same tensor in every pass
            self.last = input, self._product(input)
        return self.last[1]

    def _product(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        rows = input.numel() // input.shape[-1]
        if rows < LEAST_ROWS:
            return super().forward(input)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "none")


class PackedConv2d(Conv2d):
    """A convolution that packs its weights in its first pass."""

    packed: Tensor | None = None
    stands_for = Conv2d

    def forward(
        self, input: Float[Tensor, "n c h w"], shift: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n d h2 w2"]:
        """The convolution, padded with zeros; the shift is added to the bias."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        bias = shifted(self.bias, shift)
        if self.kernel_size == self.stride == (1, 1):  # as a product it takes two thirds of the time
            weight, cells = self.weight.detach()[:, :, 0, 0], input.permute(0, 2, 3, 1)
            if self.packed is None:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, cells.numel() // cells.shape[-1])
            made = torch.ops.mkldnn._linear_pointwise(cells, self.packed, bias, "none", [], "none")
            return made.permute(0, 3, 1, 2)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *geometry, input.shape)
        return torch.ops.mkldnn._convolution_pointwise(input, self.packed, bias, *geometry, "none", [], "")


PACKED: dict[type[nn.Module], type[nn.Module]] = {Linear: PackedLinear, Conv2d: PackedConv2d}


@torch.no_grad()
def packed(network: Network) -> Network:
    """The copy, or the network itself where oneDNN does not compute its layers.

    For passes without gradients, in the network's dtype, of inputs that keep their size. What happens to the
    parameters after the first pass does not reach the copy, nor what is done to the text in place.
    """
    tensors = (*network.parameters(), *network.buffers())
    if not all(has_values(x.detach()) and on_cpu(x, x) for x in tensors):
        return network
    return cast(Network, _twin(network))


def _twin(module: nn.Module) -> nn.Module:
    """The same module on the same tensors, with layers that pack; a deep copy takes as long as two passes."""
    made = copy(module)
    if not hooked(module):
        made.__class__ = PACKED.get(type(module), type(module))
    made._modules = {name: layer and _twin(layer) for name, layer in module._modules.items()}
    return made


def packed_size(network: nn.Module) -> int:
    """Bytes that the copy of a network keeps when every layer but the temporal ones has run."""
    temporal = {layer for module in network.modules() if isinstance(module, Temporal) for layer in module.modules()}
    layers = (layer for layer in network.modules() if isinstance(layer, (Linear, Conv2d)) and layer not in temporal)
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
