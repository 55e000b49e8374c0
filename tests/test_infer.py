"""Architectures read off shapes."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.text import TextTower
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.errors import CheckpointError
from weights_converters import infer

WIDTHS = st.lists(st.sampled_from([32, 64, 96]), min_size=1, max_size=3).map(tuple)


def shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


@settings(max_examples=25)
@given(channels=WIDTHS, layers=st.integers(1, 3), context=st.sampled_from([8, 24]), data=st.data())
def test_a_unet_is_measured(channels: tuple[int, ...], layers: int, context: int, data: st.DataObject) -> None:
    attention = tuple(data.draw(st.booleans()) for _ in channels)
    motion = MotionConfig(mid=data.draw(st.booleans()), attentions=data.draw(st.integers(1, 2)), max_frames=24)
    config = UNetConfig(channels=channels, attention=attention, layers=layers, context_dim=context, temporal=motion)
    with torch.device("meta"):
        found = shapes(UNet(config))
    spatial = {key: shape for key, shape in found.items() if ".temporals." not in key}
    assert infer.unet(spatial) == dataclasses.replace(config, temporal=None)
    assert infer.motion(found, 24) == motion
    temporal = {key: shape for key, shape in found.items() if ".temporals." in key}
    measured = infer.motion_unet(temporal)
    assert (measured.channels, measured.layers) == (channels, layers)


@settings(max_examples=25)
@given(channels=WIDTHS, layers=st.integers(1, 3), latent=st.integers(1, 8))
def test_an_autoencoder_is_measured(channels: tuple[int, ...], layers: int, latent: int) -> None:
    config = VAEConfig(channels=channels, layers=layers, latent_channels=latent)
    with torch.device("meta"):
        assert infer.vae(shapes(AutoencoderKL(config))) == config


@settings(max_examples=15)
@given(heads=st.integers(1, 3), layers=st.integers(1, 3), ratio=st.sampled_from([2.0, 4.0]))
def test_a_text_tower_is_measured(heads: int, layers: int, ratio: float) -> None:
    config = TextConfig(width=64 * heads, layers=layers, heads=heads, mlp_ratio=ratio, length=7, vocab_size=11)
    with torch.device("meta"):
        assert infer.text(shapes(TextTower(config))) == config


def test_files_of_the_published_width_have_the_published_architecture() -> None:
    """So what they lack is found missing. A vocabulary enlarged by textual inversion is theirs."""
    assert infer.unet({"conv_in.weight": (320, 4, 3, 3)}) == UNetConfig(temporal=None)
    assert infer.vae({"encoder.conv_in.weight": (128, 3, 3, 3)}) == VAEConfig()
    text = {"token_embedding.weight": (49410, 768), "positional_embedding": (77, 768)}
    assert infer.text(text) == TextConfig(vocab_size=49410)
    assert infer.motion_unet({"down_blocks.0.temporals.0.norm.weight": (320,)}) == UNetConfig()


def test_other_families_are_named() -> None:
    wide = {"conv_in.weight": (320, 4, 3, 3), "x.attn2.to_k.weight": (320, 1024)}
    with pytest.raises(CheckpointError, match=r"1024 wide instead of 768: SD-2\.x"):
        infer.unet(wide)
    with pytest.raises(CheckpointError, match="width 100 is not a multiple of 64"):
        infer.text({"token_embedding.weight": (10, 100), "positional_embedding": (7, 100)})


@pytest.mark.parametrize(
    "part",
    [
        UNetConfig(channels=(2**20,), attention=(True,)),
        UNetConfig(layers=0),
        MotionConfig(max_frames=10**9),
        VAEConfig(channels=()),
        VAEConfig(channels=(32,) * 9),
        TextConfig(layers=True),
    ],
)
def test_absurd_sizes_are_refused(part: UNetConfig | MotionConfig | VAEConfig | TextConfig) -> None:
    infer.check_size(UNetConfig(), MotionConfig(), VAEConfig(), TextConfig(), None)
    with pytest.raises(CheckpointError, match="is not between 1 and"):
        infer.check_size(part)
