"""The temporal slots of the UNet: what may stand in them, and when they are skipped."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyi2v.backbone.call import Call
from anyi2v.backbone.config import TemporalConfig


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
        """`mix(x, call)`, in windows of frames if the clip is longer; `x` if `call.temporal` leaves this layer out."""
        if not call.temporal_on(self.name):
            return x
        if call.window is None or call.frames <= call.window:
            return self.mix(x, call)
        return self._fused(x, call, call.window)

    def _fused(self, x: Tensor, call: Call, length: int) -> Tensor:
        """Each frame is the mean of what the windows with it make of it, weighted by its distance from their ends.

        Reference: FreeNoise (Qiu et al. 2023), section 3.2, window-based attention fusion.
        """
        folded = x.dim() == 4
        clip = x.unflatten(0, (-1, call.frames)) if folded else x
        total, weights = torch.zeros_like(clip), x.new_zeros(call.frames)
        tent = torch.arange(1, length + 1, device=x.device)
        tent = torch.minimum(tent, tent.flip(0)).to(x.dtype)
        for start in window_starts(call.frames, length):
            part = slice(start, start + length)
            window = clip[:, part].flatten(0, 1) if folded else clip[:, part]
            mixed = self.mix(window, replace(call, frames=length))
            mixed = mixed.unflatten(0, (-1, length)) if folded else mixed
            total[:, part] += tent.view(-1, 1, 1, 1) * mixed
            weights[part] += tent
        mean = total / weights.view(-1, 1, 1, 1)
        return mean.flatten(0, 1) if folded else mean

    @abstractmethod
    def mix(self, x: Tensor, call: Call) -> Tensor:
        """The layer proper."""


def window_starts(frames: int, length: int) -> list[int]:
    """Where windows of `length` frames begin that overlap by half and cover all frames."""
    last = frames - length
    return [*range(0, last, max(length // 2, 1)), last]


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

    def __init__(self, config: TemporalConfig | None = None):
        self.config = config

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
