"""Temporal slots of the UNet, the layers that fill them, and when these are skipped."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from anyi2v.backbone.call import Call
from anyi2v.backbone.config import TemporalConfig


class Slot(nn.Module):
    """An empty slot: the identity, without parameters."""

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """Return `x`, feature maps `(b f) c h w` or tokens `b f h w c`, see `Design`."""
        return x


class Temporal(Slot):
    """A layer that mixes frames; the exact identity in passes that turn it off."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """Apply `mix`, in windows of frames if the clip is longer; return `x` if `call.temporal` turns this layer
        off."""
        if not call.temporal_on(self.name):
            return x
        if call.window is None or call.frames <= call.window:
            return self.mix(x, call)
        return self._fused(x, call, call.window)

    def _fused(self, x: Tensor, call: Call, length: int) -> Tensor:
        """Apply `mix` in overlapping windows and average each frame, weighted by its distance from the windows' ends.

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
        """Mix the frames; implemented by subclasses.

        Args:
            x: feature maps `(b f) c h w`, or inside a transformer tokens `b f h w c`.
            call: the number of frames f, the time embedding and the text of the pass.

        Returns:
            A tensor of the same shape and dtype.
        """


def window_starts(frames: int, length: int) -> list[int]:
    """Return the start frames of windows of `length` frames that overlap by half and cover all frames."""
    last = frames - length
    return [*range(0, last, max(length // 2, 1)), last]


@dataclass(frozen=True)
class Site:
    """Location of a slot in the UNet."""

    name: str
    """Hook and parameter path of the slot."""
    channels: int
    attention: bool
    """Whether a spatial transformer precedes it in the same layer."""
    mid: bool = False


class Design:
    """Fills the four kinds of temporal slots of a UNet; the base class leaves them empty (the plain 2D UNet).

    Each backbone family is a subclass. Slots of `stem`, `after_resnet` and `after_layer` receive feature maps `(b f) c
    h w`, those of `in_transformer` tokens `b f h w c`.
    """

    def __init__(self, config: TemporalConfig | None = None):
        self.config = config

    max_frames: int | None = None
    """Maximum number of frames of the temporal layers' positional encoding; None: unlimited."""

    def stem(self, site: Site) -> Slot:
        """Return the slot after the first convolution."""
        return Slot()

    def after_resnet(self, site: Site) -> Slot:
        """Return the slot at the end of a ResBlock."""
        return Slot()

    def in_transformer(self, site: Site) -> Slot:
        """Return the slot inside a spatial transformer block, before its feed-forward layer."""
        return Slot()

    def after_layer(self, site: Site) -> Slot:
        """Return the slot after a ResBlock, or after a ResBlock and its spatial transformer."""
        return Slot()
