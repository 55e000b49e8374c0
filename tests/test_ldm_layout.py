"""LDM's layout against the published names, key for key and shape for shape."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.unet import UNet
from anyi2v.errors import CheckpointError
from weights_converters import ldm_layout
from weights_converters.command import shapes_of, targets_of
from weights_converters.keymap import convert, make_plan

from . import foreign
from .layouts import spatial, to_ldm_unet

FULL = foreign.manifest("sd15_ldm_full")
TABLE = json.loads((Path(__file__).parent / "manifests" / "map_ldm_to_diffusers.json").read_text())


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_every_key_of_the_published_file_gets_its_diffusers_name(part: str) -> None:
    plan = make_plan(FULL, ldm_layout.rules(FULL, part))
    assert plan.report.renamed == TABLE[part]
    assert plan.report.renamed.keys() | plan.report.dropped.keys() == FULL.keys()


@pytest.mark.parametrize(("part", "keys"), [("unet", 686), ("vae", 248), ("text", 196)])
def test_the_published_file_fills_our_networks(part: str, keys: int) -> None:
    targets = targets_of(part, shapes_of(BackboneConfig(name="published")))  # pyright: ignore[reportArgumentType]
    plan = make_plan(FULL, ldm_layout.rules(FULL, part))
    assert not any(plan.problems(targets).values())
    assert len(plan.report.renamed) == keys


def exported(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """With the attention of the autoencoder as diffusers' export script of 2023 wrote it: its names, linear layers."""
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    theirs = {}
    for key, shape in shapes.items():
        start, found, end = key.partition("mid.attn_1.")
        old, _, kind = end.rpartition(".")
        if found and old in names:
            key, shape = f"{start}{found}{names[old]}.{kind}", shape[:2]
        theirs[key] = shape
    return theirs


@pytest.mark.parametrize("prefix", [ldm_layout.VAE_PREFIX, ""])
def test_the_attention_of_the_autoencoder_has_two_names(prefix: str) -> None:
    """In a single file and in one of the autoencoder alone."""
    if prefix:
        plans = [make_plan(file, ldm_layout.rules(file, "vae")) for file in (FULL, exported(FULL))]
    else:
        vae = {k.removeprefix(ldm_layout.VAE_PREFIX): s for k, s in FULL.items() if k.startswith(ldm_layout.VAE_PREFIX)}
        plans = [make_plan(file, ldm_layout.vae_rules(file)) for file in (vae, exported(vae))]
    assert exported(FULL).keys() != FULL.keys()
    assert plans[1].shapes == plans[0].shapes
    assert not plans[1].unmatched and not plans[1].clashing
    assert len(plans[1].report.renamed) == 248


def test_both_names_of_the_attention_in_one_file_clash() -> None:
    both = FULL | exported(FULL)
    assert len(make_plan(both, ldm_layout.rules(both, "vae")).clashing) == 16


BAGGAGE = [
    "embedding_manager.embedder.transformer.text_model.encoder.layers.0.layer_norm2.bias",
    "denoiser.sigmas",
    "denoiser.log_sigmas",
    "model_ema.decay",
    "model_ema.num_updates",
    "model_ema.diffusion_modeltime_embed0weight",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_recipm1_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "global_step",
    "first_stage_model.loss.discriminator.main.0.weight",
    "first_stage_model.model_ema.decay",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.transformer.vision_model.embeddings.position_ids",
    "cond_stage_model.transformer.visual_projection.weight",
    "cond_stage_model.transformer.text_projection.weight",
    "cond_stage_model.logit_scale",
]


def test_what_training_left_beside_the_networks_is_left_out_for_a_reason() -> None:
    file = FULL | dict.fromkeys(BAGGAGE, (1,))
    for part in ("unet", "vae", "text"):
        plan = make_plan(file, ldm_layout.rules(file, part))
        assert not plan.unmatched
        assert all(plan.report.dropped[key] for key in BAGGAGE)
    unknown = make_plan({**file, "something.else": (1,)}, ldm_layout.rules(file, "unet"))
    assert unknown.unmatched == ["something.else"]


@settings(max_examples=30)
@given(levels=st.integers(1, 4), layers=st.integers(1, 3), data=st.data())
def test_the_depth_is_read_off_the_keys(levels: int, layers: int, data: st.DataObject) -> None:
    attention = tuple(data.draw(st.lists(st.booleans(), min_size=levels, max_size=levels)))
    config = foreign.SMALL.unet.__class__(
        channels=(32,) * levels, attention=attention, layers=layers, context_dim=8, temporal=None
    )
    with torch.device("meta"):
        ours = UNet(config).state_dict()
    theirs = to_ldm_unet(spatial(ours), layers)
    assert ldm_layout.unet_depth(theirs) == (levels, layers)
    converted, report = convert(theirs, ldm_layout.unet_rules(theirs), {key: x.shape for key, x in ours.items()})
    assert all(converted[key] is ours[key] for key in ours)
    assert len(report.renamed) == len(theirs)


@pytest.mark.parametrize("key", ["input_blocks.999999999.0.op.weight", "input_blocks.0.0.op.weight", "nothing"])
def test_absurd_depths_are_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match="not a UNet of LDM"):
        ldm_layout.unet_rules([key])
    with pytest.raises(CheckpointError, match="999 levels"):
        ldm_layout.vae_rules(["decoder.up.998.block.0.norm1.weight"])
