"""Architecture of a sparse control network (SparseCtrl) as data. Imports no torch."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from anyi2v.backbone.config import SPARSE_CONTROL, MotionConfig, UNetConfig, from_dict
from anyi2v.errors import InputError


@dataclass(frozen=True)
class SparseControlConfig:
    """Configuration of a sparse control network; its widths determine which UNets it fits."""

    name: str
    condition: Literal["rgb", "scribble"] = "rgb"
    """Input for the given frames: latents of the autoencoder, or pixels in [0, 1]."""
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(temporal=MotionConfig(attentions=1)))
    """UNet whose down and mid blocks the network copies; `temporal` describes its own motion modules."""
    widths: tuple[int, ...] = (16, 32, 96, 256)
    """Channels of the convolutions that map scribbles to the latent grid, each at half the resolution of the one
    before."""
    kind: Literal["sparse_control"] = SPARSE_CONTROL

    def check_fits(self, unet: UNetConfig) -> None:
        """Raise InputError unless the residuals have the shapes of the skip connections of `unet`."""
        for what in ("channels", "layers", "latent_channels", "context_dim"):
            mine, theirs = getattr(self.unet, what), getattr(unet, what)
            if mine != theirs:
                raise InputError(
                    f"sparse control network {self.name!r} is made for UNets with {what}={mine}, but the backbone has "
                    f"{what}={theirs}; give one that belongs to the backbone"
                )

    def to_json(self) -> str:
        """Return this configuration as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "SparseControlConfig":
        """The inverse of `to_json`; raises CheckpointError for unknown fields."""
        return from_dict(SparseControlConfig, json.loads(text))
