"""What `anyi2v convert --inspect` says of a file."""

from pathlib import Path

import pytest
import torch

from anyi2v.errors import CheckpointError, InputError
from weights_converters.inspection import describe
from weights_converters.sources import parameters

from . import foreign

WHOLE = "whole: nothing is missing, nothing is left over"


def test_a_single_file(tmp_path: Path) -> None:
    path = foreign.write(foreign.ldm(torch.float16), tmp_path / "x.safetensors")
    lines = describe(path).splitlines()
    assert lines[0] == f"{path}: Stable Diffusion single file (LDM layout), 1.x, with moving average"
    assert f"{len(foreign.ldm())} tensors" in lines[1] and f"{path.stat().st_size:,} bytes" in lines[1]
    assert lines[2].startswith("  dtypes: float16 (")
    assert sum(WHOLE in line for line in lines) == 3
    assert "  not needed: 2, a moving average from training: the weights themselves are used" in lines
    assert "  not needed: 1, position ids: they are 0, 1, 2, ..." in lines
    assert not any(", of the autoencoder" in line for line in lines), "a network of the file itself is not left out"


def test_a_motion_module(tmp_path: Path) -> None:
    path = foreign.write(foreign.motion("v1"), tmp_path / "x.ckpt", "state_dict", module=True)
    said = describe(path)
    count = parameters({k: tuple(x.shape) for k, x in foreign.motion("v1", positions=False).items()})
    assert "AnimateDiff motion module, v1" in said
    assert f"{count:,} parameters" in said
    assert WHOLE in said


def test_what_is_missing_or_extra_is_counted_and_named(tmp_path: Path) -> None:
    theirs = foreign.motion()
    lost = [key for key in theirs if "up_blocks.1" in key and key.endswith("proj_out.bias")]
    kept = {key: tensor for key, tensor in theirs.items() if key not in lost} | {"extra": torch.zeros(1)}
    said = describe(foreign.write(kept, tmp_path / "x.safetensors"))
    assert "1 without a rule: extra" in said
    assert f"{len(lost)} that the network needs but nothing gives: up_blocks.1.temporals.0.proj_out.bias" in said
    assert WHOLE not in said


def test_a_network_that_cannot_be_measured_is_said_so(tmp_path: Path) -> None:
    theirs = {key: tensor for key, tensor in foreign.ldm().items() if not key.startswith("cond_stage")}
    theirs.pop("first_stage_model.encoder.conv_in.weight")
    said = describe(foreign.write(theirs, tmp_path / "x.safetensors"))
    assert "vae: " in said and "encoder.conv_in.weight is missing" in said
    assert "text: not in this file" in said


def test_sparsectrl_is_recognised(tmp_path: Path) -> None:
    small = {key: torch.zeros(2) for key in foreign.manifest("ad_sparsectrl_rgb")}
    said = describe(foreign.write(small, tmp_path / "x.ckpt", "controlnet"))
    assert "SparseCtrl encoder (not supported), rgb" in said


@pytest.mark.parametrize("name", ["ad_domain_adapter_v3_pattern", "ad_motion_lora_v2_pattern"])
def test_a_lora_is_held_against_the_published_networks(tmp_path: Path, name: str) -> None:
    small = {key: torch.zeros(2) for key in foreign.manifest(name)}
    said = describe(foreign.write(small, tmp_path / "x.ckpt"))
    assert f"changes {len(small) // 2} weights" in said
    assert f"ranks: 2 ({len(small) // 2})" in said
    assert "match no weight" not in said
    strange = {"x.processor.to_q_lora.down.weight": torch.zeros(2)}
    assert "1 that match no weight: x.proc" in describe(foreign.write(small | strange, tmp_path / "y.ckpt"))


def test_unusable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        describe(tmp_path / "absent")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        describe(tmp_path / "x.safetensors")
