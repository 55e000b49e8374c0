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
    with pytest.raises(CheckpointError, match="no UNet of LDM"):
        ldm_layout.unet_rules([key])
    with pytest.raises(CheckpointError, match="999 levels"):
        ldm_layout.vae_rules(["decoder.up.998.block.0.norm1.weight"])
