"""The networks of a backbone: UNet, autoencoder and text tower."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.prompt_syntax import warn_of_syntax
from anyi2v.backbone.text import TextTower, tokenize
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig, OperatorKind
from anyi2v.method.recipes import recipe as preset


@dataclass
class Backbone:
    """The networks of one text-to-video model, together with its configuration."""

    config: BackboneConfig
    unet: UNet
    vae: AutoencoderKL
    text: TextTower
    embeddings: dict[str, Float[Tensor, "n d"]] = field(default_factory=dict)
    """Textual inversion vectors by name, from `read_embeddings`; not stored in checkpoints."""

    def __repr__(self) -> str:
        """Describe the backbone on one line, without its modules."""
        count = sum(p.numel() for network in self.networks.values() for p in network.parameters())
        return f"<Backbone {self.config.name!r}: {count:,} parameters, {self.dtype} on {self.device}>"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The three networks, by the prefix of their keys in a checkpoint."""
        return {"unet": self.unet, "vae": self.vae, "text": self.text}

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet and the text tower; the autoencoder is always float32."""
        return self.unet.dtype

    @property
    def operators(self) -> OperatorKind:
        """Implementation of the networks' operators: the fastest ("fast"), or only the formulas ("reference")."""
        return self.unet.operators

    @operators.setter
    def operators(self, kind: str) -> None:
        if kind not in get_args(OperatorKind):
            raise InputError(f"unknown operators={kind!r}; choose {' or '.join(get_args(OperatorKind))}")
        self.unet.operators = self.vae.operators = self.text.operators = cast(OperatorKind, kind)

    def method(self, recipe: str = "paper", **changes: Any) -> MethodConfig:
        """Return a job's `config`: a recipe, overridden by this backbone's own settings and then by `changes`.

        The command line does the same. `MethodConfig.paper()` and `official()` are the plain recipes.

        Args:
            recipe: "paper" or "official".
            changes: fields of MethodConfig.

        Raises InputError for an unknown recipe or setting, and for unusable values.
        """
        return preset(recipe, {**self.config.method, **changes})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Backbone":
        """Move the networks in place; `dtype` does not apply to the autoencoder.

        The SD-1.x autoencoder overflows in float16, and takes little of the time.
        """
        self.unet.to(device, dtype)
        self.text.to(device, dtype)
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Encode prompts to token states for the UNet; raises InputError as `tokenize` does.

        Warns about other programs' prompt syntax, which is not interpreted.
        """
        ids = tokenize(self.config.text, prompts, self.embeddings).to(self.device)
        warn_of_syntax(prompts, self.embeddings)
        return self.text(ids, torch.cat([*self.embeddings.values()]) if self.embeddings else None)


def build(config: BackboneConfig) -> Backbone:
    """Create networks with random weights on torch's default device (use the meta device if only shapes matter)."""
    unet, vae = UNet(config.unet), AutoencoderKL(config.vae)
    for network in (unet, vae):
        channels_last(network)
    return Backbone(config, unet, vae, TextTower(config.text))


def state(backbone: Backbone) -> dict[str, Tensor]:
    """Return all parameters, keyed as in a checkpoint."""
    return {
        f"{prefix}.{key}": tensor
        for prefix, network in backbone.networks.items()
        for key, tensor in network.state_dict().items()
    }


def channels_last(network: nn.Module) -> None:
    """Convert convolution weights to channels-last layout in place, which is faster."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
