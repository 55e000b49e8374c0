"""Our reading of LDM's layout against diffusers' own conversion of a single file, name by name and bit by bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.config import UNetConfig, VAEConfig
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from tests.layouts import to_ldm_unet, to_ldm_vae
from weights_converters import ldm_layout
from weights_converters.keymap import convert

utils = pytest.importorskip("diffusers.loaders.single_file_utils", reason="diffusers, the oracle, is in extra 'dev'")


def random_state(network: torch.nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(x.shape, generator=generator) for key, x in network.state_dict().items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def ours_of(file: dict[str, Tensor], part: str, network: torch.nn.Module) -> dict[str, Tensor]:
    targets = {key: x.shape for key, x in network.state_dict().items()}
    return convert(file, ldm_layout.rules(file, part), targets)[0]


@pytest.mark.parametrize(
    ("attention", "layers"),
    [((True, True, True, False), 2), ((True, False), 1), ((False, True, False), 3), ((True,), 2)],
)
def test_a_unet(attention: tuple[bool, ...], layers: int) -> None:
    levels = len(attention)
    channels = tuple(4 * (i + 1) for i in range(levels))
    config = UNetConfig(
        channels=channels, attention=attention, layers=layers, context_dim=6, heads=2, groups=2, temporal=None
    )
    network = UNet(config)
    theirs_config: dict[str, Any] = {
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
    }
    ours = random_state(network)
    file = {f"model.diffusion_model.{key}": x for key, x in to_ldm_unet(ours, layers).items()}
    theirs = utils.convert_ldm_unet_checkpoint(dict(file), theirs_config)
    assert_same(ours_of(file, "unet", network), theirs)
    assert_same(ours, theirs)


@pytest.mark.parametrize("channels", [(4, 6, 8, 8), (4,), (4, 6)])
def test_an_autoencoder(channels: tuple[int, ...]) -> None:
    network = AutoencoderKL(VAEConfig(channels=channels, layers=2, groups=2))
    ours = random_state(network)
    file = {f"first_stage_model.{key}": x for key, x in to_ldm_vae(ours, len(channels)).items()}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * len(channels)}
    kinds["up_block_types"] = ["UpDecoderBlock2D"] * len(channels)
    theirs = utils.convert_ldm_vae_checkpoint(dict(file), kinds)
    assert_same(ours_of(file, "vae", network), theirs)
    assert_same(ours, theirs)
