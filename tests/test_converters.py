"""The layouts that converters know: each key finds its place, foreign configurations are understood."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import MotionConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.text import TextTower
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.errors import CheckpointError
from weights_converters import animatediff
from weights_converters import diffusers_configs as configs
from weights_converters import diffusers_layout as layout
from weights_converters.keymap import Rule, convert

from .layouts import (
    ADAPTER,
    ANIMATEDIFF,
    SD15_SCHEDULER,
    SD15_TEXT,
    SD15_UNET,
    SD15_VAE,
    Tensors,
    spatial,
    temporal,
    to_animatediff,
    to_clip_text,
    to_motion_adapter,
    to_old_vae,
)
from .test_checkpoint import tiny_backbone

BACKBONE = tiny_backbone()
UNET, VAE, TEXT = (network.state_dict() for network in BACKBONE.networks.values())
WITH_IDS = to_clip_text(TEXT) | {"text_model.embeddings.position_ids": torch.arange(6)[None]}
LAYOUTS: dict[str, tuple[Tensors, list[Rule], Tensors]] = {
    "diffusers unet": (spatial(UNET), layout.UNET, spatial(UNET)),
    "motion adapter": (to_motion_adapter(UNET), layout.MOTION, temporal(UNET)),
    "vae": (VAE, layout.VAE, VAE),
    "old vae": (to_old_vae(VAE), layout.VAE, VAE),
    "text": (to_clip_text(TEXT, prefix=""), layout.TEXT, TEXT),
    "text with prefix and ids": (WITH_IDS, layout.TEXT, TEXT),
    "animatediff": (to_animatediff(UNET), animatediff.UNET, UNET),
}


def shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_mapped_back_exactly(name: str) -> None:
    theirs, rules, ours = LAYOUTS[name]
    converted, report = convert(theirs, rules, shapes(ours))
    assert list(converted) == list(ours)
    assert all(torch.equal(converted[key], ours[key]) for key in ours)
    assert report.renamed.keys() | report.dropped.keys() == theirs.keys()
    assert set(report.renamed.values()) == set(ours)
    assert all(report.dropped.values()), "each key is dropped for a reason"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    how=st.sampled_from(["missing", "extra", "shape"]),
    data=st.data(),
)
def test_any_tampered_key_is_refused_by_name(name: str, how: str, data: st.DataObject) -> None:
    theirs, rules, ours = LAYOUTS[name]
    kept = convert(theirs, rules, shapes(ours))[1].renamed
    key = data.draw(st.sampled_from(sorted(kept)))
    theirs = dict(theirs)
    if how == "missing":
        del theirs[key]
        # of three joined parts one is gone: the target is there, but of the wrong shape
    elif how == "extra":
        theirs[key := key + "_ema"] = torch.zeros(1)
    else:
        theirs[key] = torch.cat([theirs[key], theirs[key]])
    with pytest.raises(CheckpointError) as caught:
        convert(theirs, rules, shapes(ours))
    assert (key if how == "extra" else kept[key]) in str(caught.value)


def numbers(tensors: Tensors) -> tuple[int, int]:
    return len(tensors), sum(tensor.numel() for tensor in tensors.values())


def on_meta(make: Callable[[], torch.nn.Module]) -> Tensors:
    with torch.device("meta"):
        return make().state_dict()


def test_networks_have_the_published_sizes() -> None:
    """Keys and parameters of the SD-1.5 parts, and keys of the published motion modules."""
    unet = on_meta(lambda: UNet(UNetConfig()))
    assert numbers(spatial(unet)) == (686, 859_520_964)
    assert numbers(on_meta(lambda: AutoencoderKL(VAEConfig()))) == (248, 83_653_863)
    assert numbers(to_clip_text(on_meta(lambda: TextTower(TextConfig())))) == (196, 123_060_480)
    assert len(temporal(unet)) == 520
    v2 = on_meta(lambda: UNet(UNetConfig(temporal=MotionConfig(mid=True))))
    assert len(temporal(v2)) == 546


def test_published_configurations_give_our_defaults() -> None:
    assert configs.unet_config(SD15_UNET) == UNetConfig(temporal=None)
    assert configs.vae_config(SD15_VAE) == VAEConfig()
    assert configs.text_config(SD15_TEXT) == TextConfig()
    assert configs.schedule_config(SD15_SCHEDULER) == ScheduleConfig(curve="scaled_linear", final_alpha_one=False)
    assert configs.motion_config(ADAPTER, SD15_UNET) == MotionConfig(norm_over="clip")


def test_animatediff_versions_differ_in_norms_positions_and_mid_block() -> None:
    assert animatediff.unet_config(ANIMATEDIFF) == UNetConfig()
    v1 = animatediff.unet_config(ANIMATEDIFF | {"use_inflated_groupnorm": False}, max_frames=24)
    assert v1 == UNetConfig(norm_over="clip", temporal=MotionConfig(max_frames=24))
    v2 = animatediff.unet_config(ANIMATEDIFF | {"motion_module_mid_block": True})
    assert v2 == UNetConfig(temporal=MotionConfig(mid=True))


@pytest.mark.parametrize(
    ("read", "config", "change"),
    [
        (configs.unet_config, SD15_UNET, {"use_linear_projection": True}),
        (configs.unet_config, SD15_UNET, {"attention_head_dim": [5, 10, 20, 20]}),
        (configs.unet_config, SD15_UNET, {"layers_per_block": [2, 2]}),
        (configs.unet_config, SD15_UNET, {"down_block_types": ["AttnDownBlock2D"] * 4}),
        (configs.unet_config, SD15_UNET, {"up_block_types": ["UpBlock2D"] * 4}),
        (configs.unet_config, SD15_UNET, {"out_channels": 8}),
        (configs.vae_config, SD15_VAE, {"shift_factor": 0.1}),
        (configs.vae_config, SD15_VAE, {"use_quant_conv": False}),
        (configs.vae_config, SD15_VAE, {"down_block_types": ["DownEncoderBlock2D"] * 3}),
        (configs.text_config, SD15_TEXT, {"hidden_act": "relu"}),
        (configs.text_config, SD15_TEXT, {"layer_norm_eps": 1e-6}),
        (configs.schedule_config, SD15_SCHEDULER, {"prediction_type": "v_prediction"}),
        (configs.schedule_config, SD15_SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}),
        (lambda data: configs.motion_config(data, SD15_UNET), ADAPTER, {"motion_layers_per_block": 1}),
        (lambda data: configs.motion_config(data, SD15_UNET), ADAPTER, {"block_out_channels": [320]}),
        (lambda data: configs.motion_config(data, SD15_UNET), ADAPTER, {"conv_in_channels": 9}),
        (animatediff.unet_config, ANIMATEDIFF, {"use_motion_module": False}),
        (animatediff.unet_config, ANIMATEDIFF, {"motion_module_resolutions": [1, 2]}),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(
    read: Callable[[dict[str, Any]], Any], config: dict[str, Any], change: dict[str, Any]
) -> None:
    read(config)
    (name,) = change
    with pytest.raises(CheckpointError, match=name):
        read(config | change)


@pytest.mark.parametrize("words", [["<pad>", "<bos>", "<eos>"], ["a", "<pad>", "<bos>", "<eos>"]])
def test_a_vocabulary_must_belong_to_its_tower(words: list[str]) -> None:
    with pytest.raises(CheckpointError, match="first three must be <pad>, <bos>, <eos>"):
        configs.text_config(SD15_TEXT | {"vocab_size": 4}, {"words": words})
