"""The architecture of a sparse control network (SparseCtrl) as data. Free of torch."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from anyi2v.backbone.config import SPARSE_CONTROL, MotionConfig, UNetConfig, from_dict
from anyi2v.errors import InputError


@dataclass(frozen=True)
class SparseControlConfig:
    """A sparse control network, and by its widths the UNets that it belongs to."""

    name: str
    condition: Literal["rgb", "scribble"] = "rgb"
    """What it is given of the frames that are known: the latents of the autoencoder, or pixels in [0, 1]."""
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(temporal=MotionConfig(attentions=1)))
    """Of whose down and mid blocks it is a copy; `temporal` are its own motion modules."""
    widths: tuple[int, ...] = (16, 32, 96, 256)
    """Channels of the convolutions that bring scribbles to the grid of the latents, each with half the resolution of
    the one before."""
    kind: Literal["sparse_control"] = SPARSE_CONTROL

    def check_fits(self, unet: UNetConfig) -> None:
        """Raises InputError unless the residuals have the shapes of the skip connections of `unet`."""
        for what in ("channels", "layers", "latent_channels", "context_dim"):
            mine, theirs = getattr(self.unet, what), getattr(unet, what)
            if mine != theirs:
                raise InputError(
                    f"sparse control network {self.name!r} is made for UNets with {what}={mine}, but the backbone has "
                    f"{what}={theirs}; give one that belongs to the backbone"
                )

    def to_json(self) -> str:
        """This configuration as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "SparseControlConfig":
        """The inverse of `to_json`; raises CheckpointError on unknown fields."""
        return from_dict(SparseControlConfig, json.loads(text))
