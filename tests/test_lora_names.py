"""Names of LoRA modules: every one that a published layout has for a weight of ours leads to that weight."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from anyi2v.backbone.config import BackboneConfig, MotionConfig, UNetConfig
from anyi2v.backbone.networks import build, state
from anyi2v.checkpoints.lora_names import Site, flatten, is_lora, parse, sites, unsupported

Shapes = Mapping[str, tuple[int, ...]]


@cache
def full_size(mid: bool) -> Shapes:
    """SD-1.5 with motion modules, in the mid block too (v2) or not (v1, v3)."""
    with torch.device("meta"):
        backbone = build(BackboneConfig(name="sd15", unet=UNetConfig(temporal=MotionConfig(mid=mid))))
    return {key: tuple(tensor.shape) for key, tensor in state(backbone).items()}


def find(table: Mapping[str, Site], key: str) -> Site:
    parsed = parse(key)
    assert parsed, key
    return table[flatten(parsed[0])]


@pytest.mark.parametrize("prefix", ["lora_unet_", "unet_", ""])
def test_flattened_names_stay_distinct_at_full_size(prefix: str) -> None:
    """Dots as underscores could make two names one; then one of these would lead elsewhere."""
    shapes = full_size(mid=True)
    table = sites(shapes)
    weights = [key for key in shapes if key.startswith("unet.") and key.endswith(".weight") and len(shapes[key]) > 1]
    assert len(weights) > 400
    for key in weights:
        name = prefix + key.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
        assert table[name] == Site(key, shapes[key])


def test_norms_biases_embeddings_and_the_autoencoder_have_no_names() -> None:
    keys = {site.key for site in sites(full_size(mid=False)).values()}
    assert not any("norm" in key or key.endswith("bias") or "token_embedding" in key for key in keys)
    assert not any(key.startswith("vae.") for key in keys)


CHANNELS = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280, "down_blocks.3": 1280}
CHANNELS |= {"up_blocks.0": 1280, "up_blocks.1": 1280, "up_blocks.2": 640, "up_blocks.3": 320, "mid_block": 1280}


def counts(block: str) -> int:
    return 2 if block.startswith("down") else 3 if block.startswith("up") else 1


@pytest.mark.parametrize(("mid", "count"), [(True, 336), (False, 320)], ids=["v2", "v3"])
def test_every_key_of_a_motion_lora_has_its_weight(mid: bool, count: int) -> None:
    """The files hold four projections of both attentions of all motion modules, down and up."""
    table = sites(full_size(mid))
    found = []
    for block, channels in CHANNELS.items():
        for i in range(counts(block)) if mid or block != "mid_block" else ():
            inner = "temporal_transformer.transformer_blocks.0.attention_blocks"
            for j in (0, 1):
                for part in ("q", "k", "v", "out"):
                    for side in ("down", "up"):
                        key = f"{block}.motion_modules.{i}.{inner}.{j}.processor.to_{part}_lora.{side}.weight"
                        site = find(table, key)
                        name = "to_out.0" if part == "out" else f"to_{part}"
                        ours = f"unet.{block}.temporals.{i}.transformer_blocks.0.attention_blocks.{j}.{name}.weight"
                        assert site == Site(ours, (channels, channels))
                        found.append((site, side))
    assert len(found) == len(set(found)) == count


def test_every_key_of_the_domain_adapter_has_its_weight() -> None:
    """The file of AnimateDiff v3 holds four projections of both attentions of all spatial transformers."""
    table = sites(full_size(mid=False))
    found = []
    for block, channels in CHANNELS.items():
        for i in range(counts(block)) if block not in ("down_blocks.3", "up_blocks.0") else ():
            for j in (1, 2):
                for part in ("q", "k", "v", "out"):
                    for side in ("down", "up"):
                        path = f"{block}.attentions.{i}.transformer_blocks.0.attn{j}"
                        site = find(table, f"{path}.processor.to_{part}_lora.{side}.weight")
                        width = 768 if j == 2 and part in "kv" else channels
                        name = "to_out.0" if part == "out" else f"to_{part}"
                        assert site == Site(f"unet.{path}.{name}.weight", (channels, width))
                        found.append((site, side))
    assert len(found) == len(set(found)) == 256


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_", "text_encoder.", "base_model.model.", "module."])
@pytest.mark.parametrize("model", ["text_model.", ""])
def test_the_three_projections_of_the_text_tower_are_thirds_of_one_weight(prefix: str, model: str) -> None:
    table = sites(full_size(mid=False))
    ours = "text.transformer.resblocks.11.attn.in_proj_weight"
    for i, part in enumerate("qkv"):
        for name in (f"{part}_proj", f"to_{part}"):
            site = table[flatten(f"{prefix}{model}encoder.layers.11.self_attn.{name}")]
            assert (site.key, site.shape, site.rows) == (ours, (768, 768), slice(768 * i, 768 * (i + 1)))


def test_every_module_of_stable_diffusions_own_unet_has_its_weight() -> None:
    """The published names, each with the diffusers name that the published conversion gives it."""
    table, shapes = sites(full_size(mid=True)), full_size(mid=True)
    pairs = json.loads((Path(__file__).parent / "manifests" / "map_ldm_to_diffusers.json").read_text())["unet"]
    found = []
    for theirs, ours in pairs.items():
        if not ours.endswith(".weight") or len(shapes[f"unet.{ours}"]) == 1:
            continue
        name = theirs.removeprefix("model.diffusion_model.").removesuffix(".weight")
        for form in (name, f"diffusion_model.{name}", f"model.diffusion_model.{name}", f"lora_unet_{name}"):
            assert table[flatten(form)] == Site(f"unet.{ours}", shapes[f"unet.{ours}"]), form
        found.append(f"unet.{ours}")
    spatial = [key for key, shape in shapes.items() if key.startswith("unet.") and len(shape) > 1]
    assert sorted(found) == sorted(key for key in spatial if ".temporals." not in key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_conv_in.oft_blocks", "OFT or BOFT"),
        ("lora_unet_conv_in.oft_diag", "OFT or BOFT"),
        ("base_model.model.conv_in.boft_R", "OFT or BOFT"),
        ("lora_unet_conv_in.a1.weight", "GLoRA"),
        ("lora_unet_conv_in.diff_b", "full differences"),
        ("lora_unet_norm.w_norm", "trained norms"),
        ("base_model.model.conv_in.vera_lambda_b", "VeRA"),
        ("unet.conv_in.lora_B.bias", "LoRA with biases"),
        ("unet:0:up", "LoRA in the order of the modules (lora_diffusion)"),
        ("unet.conv_in.weight", ""),
        ("lora_unet_conv_in.lora_up.weight", ""),
    ],
)
def test_kinds_that_are_not_computed_have_names(key: str, kind: str) -> None:
    assert unsupported(key) == kind
    assert is_lora([key]) == (key != "unet.conv_in.weight")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_conv_in.lora_down.weight", ("lora_unet_conv_in", "down")),
        ("lora_unet_conv_in.alpha", ("lora_unet_conv_in", "alpha")),
        ("unet.conv_in.lora_A.weight", ("unet.conv_in", "down")),
        ("base_model.model.conv_in.lora_B.default.weight", ("base_model.model.conv_in", "up")),
        ("a.attn1.processor.to_out_lora.up.weight", ("a.attn1.processor.to_out", "up")),
        ("text_encoder.a.lora_linear_layer.down.weight", ("text_encoder.a", "down")),
        ("text_encoder.a.self_attn.to_q_lora.up.weight", ("text_encoder.a.self_attn.to_q", "up")),
        ("lora_unet_conv_in.lora_mid.weight", ("lora_unet_conv_in", "mid")),
        ("lora_unet_conv_in.dora_scale", ("lora_unet_conv_in", "dora_scale")),
        ("lora_unet_conv_in.hada_w1_a", ("lora_unet_conv_in", "hada_w1_a")),
        ("lora_unet_conv_in.hada_t2", ("lora_unet_conv_in", "hada_t2")),
        ("lora_unet_conv_in.lokr_w2", ("lora_unet_conv_in", "lokr_w2")),
        ("lora_unet_conv_in.lokr_w1_b", ("lora_unet_conv_in", "lokr_w1_b")),
        ("lora_unet_conv_in.on_input", ("lora_unet_conv_in", "on_input")),
        ("unet.conv_in.lora_magnitude_vector", ("unet.conv_in", "magnitude")),
        ("unet.conv_in.lora_magnitude_vector.default.weight", ("unet.conv_in", "magnitude")),
        ("base_model.model.conv_in.ia3_l", ("base_model.model.conv_in", "ia3_l")),
        ("lora_unet_conv_in.oft_blocks", None),
        ("lora_unet_conv_in.diff", None),
        ("conv_in.weight", None),
    ],
)
def test_keys_are_split_into_module_and_side(key: str, expected: tuple[str, str] | None) -> None:
    assert parse(key) == expected
