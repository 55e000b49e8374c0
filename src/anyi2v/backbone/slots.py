"""The temporal slots of the UNet: what may stand in them, and when they are passed by."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from anyi2v.backbone.call import Call


class Slot(nn.Module):
    """An empty slot: the identity, without parameters."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """Returns `x` itself."""
        return x


class Temporal(Slot):
    """A layer that mixes frames, called only where the pass has it on; else the exact identity."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """`mix(x, call)`, or `x` itself if `call.temporal` leaves this layer out."""
        return self.mix(x, call) if call.temporal_on(self.name) else x

    @abstractmethod
    def mix(self, x: Tensor, call: Call) -> Tensor:
        """The layer proper."""


@dataclass(frozen=True)
class Site:
    """Where a slot stands."""

    name: str
    """Hook and parameter path of the slot."""
    channels: int
    attention: bool
    """Whether a spatial transformer precedes it in the same layer."""
    mid: bool = False


class Design:
    """Fills the four kinds of slot of a UNet; this one leaves them all empty (the plain 2D UNet).

    A backbone family is one subclass. `stem`, `after_resnet` and `after_layer` get feature maps
    `(b f) c h w`, `in_transformer` gets tokens `b f h w c`.
    """

    max_frames: int | None = None
    """Longest clip that the temporal layers have positions for; None: any."""

    def stem(self, site: Site) -> Slot:
        """After the first convolution."""
        return Slot()

    def after_resnet(self, site: Site) -> Slot:
        """At the end of each ResBlock."""
        return Slot()

    def in_transformer(self, site: Site) -> Slot:
        """Inside each spatial transformer block, before its feed-forward layer."""
        return Slot()

    def after_layer(self, site: Site) -> Slot:
        """After each ResBlock or pair of ResBlock and spatial transformer."""
        return Slot()
