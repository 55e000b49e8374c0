"""Every public layout at full size, by its keys and shapes: recognised, planned, nothing missing or left over."""

import dataclasses

import pytest

from anyi2v.backbone.config import BackboneConfig, MotionConfig, UNetConfig
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.errors import CheckpointError
from weights_converters.animatediff import SPATIAL, position_rows
from weights_converters.command import Shapes, problems, shapes_of, targets_of
from weights_converters.control_command import control_shapes
from weights_converters.detect import Finding, detect
from weights_converters.parts import (
    MotionWish,
    Name,
    Part,
    control_config,
    make_part,
    motion_config,
    text_config,
    unet_config,
    vae_config,
)

from . import foreign

FINDINGS = {
    "ad_domain_adapter_v3_pattern": Finding("domain_adapter"),
    "ad_motion_lora_like_v3_layout": Finding("motion_lora"),
    "ad_motion_lora_v2_pattern": Finding("motion_lora"),
    "ad_motion_module_v1": Finding("motion_module", "v1"),
    "ad_motion_module_v2": Finding("motion_module", "v2"),
    "ad_motion_module_v3": Finding("motion_module", "v3"),
    "ad_sparsectrl_rgb": Finding("sparsectrl", "rgb"),
    "ad_sparsectrl_scribble": Finding("sparsectrl", "scribble"),
    "motion_adapter_v1": Finding("motion_adapter", "v1"),
    "motion_adapter_v2": Finding("motion_adapter", "v2"),
    "motion_adapter_v3": Finding("motion_adapter", "v3"),
    "sd15_ldm_full": Finding("ldm", "1.x"),
    "sd15_text_hf": Finding("text"),
    "sd15_text_hf_position_ids": Finding("text"),
    "sd15_unet_diffusers": Finding("unet"),
    "sd15_vae_diffusers_new": Finding("vae", "new attention names"),
    "sd15_vae_diffusers_old": Finding("vae", "old attention names"),
}
NETWORKS: dict[Name, list[str]] = {
    "unet": ["sd15_unet_diffusers", "sd15_ldm_full"],
    "vae": ["sd15_vae_diffusers_new", "sd15_vae_diffusers_old", "sd15_ldm_full"],
    "text": ["sd15_text_hf", "sd15_text_hf_position_ids", "sd15_ldm_full"],
    "control": ["ad_sparsectrl_rgb", "ad_sparsectrl_scribble"],
    "motion": [name for name, finding in FINDINGS.items() if finding.kind.startswith(("motion_m", "motion_a", "ani"))],
}
CONTROL = {"rgb": 496_719_360, "scribble": 497_791_264}
COUNTS = {"unet": 859_520_964, "vae": 83_653_863, "text": 123_060_480}
# a v2 module has one more than v1 and v3, in the mid block
MOTION = {"v1": 417_137_600, "v2": 453_209_280, "v3": 417_137_600}


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shapes]:
    """Of our networks with each version of the motion modules."""
    unet = UNetConfig()
    configs = {
        "v1": dataclasses.replace(unet, temporal=MotionConfig(max_frames=24), norm_over="clip"),
        "v2": dataclasses.replace(unet, temporal=MotionConfig(mid=True)),
        "v3": unet,
    }
    return {name: shapes_of(BackboneConfig(name=name, unet=config)) for name, config in configs.items()}


def part(name: Name, source: str) -> Part:
    opened = foreign.published(source)
    return make_part(name, opened, detect(opened.shapes), None)


def parameters(shapes: Shapes) -> int:
    total = 0
    for shape in shapes.values():
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def test_no_layout_is_forgotten() -> None:
    assert {*FINDINGS, "ad_unet3d_v3"} == foreign.manifests()
    used = {source for sources in NETWORKS.values() for source in sources}
    assert all(
        source in used or finding.kind in ("domain_adapter", "motion_lora") for source, finding in FINDINGS.items()
    )


@pytest.mark.parametrize("source", FINDINGS)
def test_each_layout_is_recognised_by_its_keys(source: str) -> None:
    assert detect(foreign.manifest(source)) == FINDINGS[source]


@pytest.mark.parametrize(("name", "source"), [(n, s) for n in ("unet", "vae", "text") for s in NETWORKS[n]])
def test_each_network_of_the_base_is_filled_exactly(shapes: dict[str, Shapes], name: Name, source: str) -> None:
    network = part(name, source)
    configs = {"unet": unet_config, "vae": vae_config, "text": text_config}
    published = BackboneConfig(name="x", unet=dataclasses.replace(UNetConfig(), temporal=None))
    assert configs[name](network) == getattr(published, name)
    targets = targets_of(name, shapes["v3"])
    assert not any(problems(network, targets).values())
    report = network.plan.report
    assert report.renamed.keys() | report.dropped.keys() == foreign.manifest(source).keys()
    assert parameters(targets) == COUNTS[name]


@pytest.mark.parametrize("source", NETWORKS["motion"])
def test_each_motion_module_is_filled_exactly(shapes: dict[str, Shapes], source: str) -> None:
    network = part("motion", source)
    version = FINDINGS[source].variant
    config = motion_config(network, dataclasses.replace(UNetConfig(), temporal=None), MotionWish())
    assert config == UNetConfig(
        temporal=MotionConfig(max_frames=24 if version == "v1" else 32, mid=version == "v2", norm_over="frame"),
        norm_over="clip" if version == "v1" else "frame",
    )
    targets = targets_of("motion", shapes[version])
    assert not any(problems(network, targets).values())
    report = network.plan.report
    assert report.renamed.keys() | report.dropped.keys() == foreign.manifest(source).keys()
    assert parameters(targets) == MOTION[version]


@pytest.mark.parametrize("source", NETWORKS["control"])
def test_each_sparse_control_network_is_filled_exactly(source: str) -> None:
    network, kind = part("control", source), FINDINGS[source].variant
    config = control_config(network, "x")
    assert config == SparseControlConfig("x", "rgb" if kind == "rgb" else "scribble")
    targets = control_shapes(config)
    assert not any(problems(network, targets).values())
    report = network.plan.report
    assert report.renamed.keys() | report.dropped.keys() == foreign.manifest(source).keys()
    assert list(report.dropped) == ["conv_in.weight"]
    assert parameters(targets) == CONTROL[kind]


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "2.x"),
        ("model_ema.decay", "moving average"),
    ],
)
def test_families_of_single_files_are_told_apart(key: str, family: str) -> None:
    finding = detect({"model.diffusion_model.input_blocks.0.0.bias": (320,), key: (1,)})
    assert finding.kind == "ldm" and family in finding.variant


@pytest.mark.parametrize(
    ("key", "shape", "naming"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", (4, 320, 1, 1), "kohya"),
        ("lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight", (4, 320, 3, 3), "LoCon"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", (4, 320), "PEFT"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", (320, 4), "diffusers"),
    ],
)
def test_loras_are_told_apart_by_their_naming(key: str, shape: tuple[int, ...], naming: str) -> None:
    finding = detect({key: shape})
    assert finding.kind == "lora" and naming in finding.variant


def test_other_files_are_not_guessed_at() -> None:
    assert detect({"a": (1,), "b": (2,)}) == Finding("unknown", "2 tensors, the first is a")
    assert detect({"a": (1,)}, {"anyi2v": "{}", "format": "1"}) == Finding("ours", "format 1")
    assert str(Finding("lora", "x")) == "LoRA, x"


def test_the_motion_modules_of_a_whole_unet_are_found(shapes: dict[str, Shapes]) -> None:
    """It has no position tables, so its version must be said."""
    network, spatial = part("motion", "ad_unet3d_v3"), dataclasses.replace(UNetConfig(), temporal=None)
    assert network.finding.kind == "animatediff_unet"
    with pytest.raises(CheckpointError, match=r"ad_unet3d_v3.*--motion-version"):
        motion_config(network, spatial, MotionWish())
    assert motion_config(network, spatial, MotionWish(version="v3")) == UNetConfig()
    assert not any(problems(network, targets_of("motion", shapes["v3"])).values())
    assert list(network.plan.report.dropped.values()) == [SPATIAL.why] * 686


def test_a_module_whose_version_is_open_is_still_recognised() -> None:
    shapes = {key: shape for key, shape in foreign.manifest("ad_motion_module_v3").items() if not key.endswith(".pe")}
    finding = detect(shapes)
    assert finding.kind == "motion_module" and "--motion-version" in finding.variant


def test_position_tables_of_unequal_length_are_refused() -> None:
    tables = {"a.pos_encoder.pe": (1, 24, 320), "b.pos_encoder.pe": (1, 32, 320)}
    with pytest.raises(CheckpointError, match="unequal"):
        position_rows(tables)
    assert "unequal" in detect({**tables, "a.temporal_transformer.norm.weight": (320,)}).variant
