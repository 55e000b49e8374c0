"""What travels with the tensors through one forward pass of the UNet."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyi2v.taps import Tap, no_tap


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass that every layer may need.

    Inside the UNet frames are folded into the batch, `(b f) c h w`, because most layers are spatial; taps see
    the unfolded tensor.
    """

    embedding: Float[Tensor, "#b e"]
    """SiLU of the time embedding, as every ResBlock projects it; one row where the whole batch has one timestep."""
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


def repeat_clip(x: Float[Tensor, "n c h w"], maps: int) -> Float[Tensor, "maps c h w"]:
    """The folded maps of one clip, repeated for the whole batch of `maps`; those of a whole batch as they are."""
    return x if len(x) == maps else torch.cat([x] * (maps // len(x)))
