"""What the oracles share: random weights that make every part count, and our network with the same ones."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from weights_converters.keymap import Rule, convert

Network = TypeVar("Network", bound=nn.Module)

ROUNDING = 1e-12
"""Relative limit in float64; 2e-15 was measured, and other versions may sum in another order."""


def random_weights(network: Network, seed: int) -> Network:
    """In float64 for inference, with norms and biases away from ones and zeros.

    The values have float32's precision, because some of diffusers' constructors round to it.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.requires_grad_(False).parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
        else:
            parameter.copy_(parameter + 0.2 * noise)
    return network.double().eval()


def adopt(ours: Network, theirs: nn.Module, rules: Sequence[Rule]) -> Network:
    """Our network in float64 with the other's weights, renamed by the converter's rules."""
    targets = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    ours.double().load_state_dict(convert(theirs.state_dict(), rules, targets)[0])
    return ours.eval().requires_grad_(False)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
