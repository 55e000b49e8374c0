"""The converters' command line."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.backbone.checkpoint import load, state
from anyi2v.backbone.config import BackboneConfig, ScheduleConfig
from weights_converters import __main__ as command

from .layouts import (
    ADAPTER,
    SD15_SCHEDULER,
    SD15_TEXT,
    SD15_UNET,
    SD15_VAE,
    spatial,
    to_clip_text,
    to_motion_adapter,
)
from .test_checkpoint import CONFIG, tiny_backbone

BACKBONE = tiny_backbone()
UNET, VAE, TEXT = (network.state_dict() for network in BACKBONE.networks.values())

TINY_UNET = SD15_UNET | {
    "sample_size": 4,
    "block_out_channels": [4, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
    "norm_num_groups": 2,
}
TINY_ADAPTER = ADAPTER | {
    "block_out_channels": [4, 8],
    "motion_layers_per_block": 1,
    "motion_num_attention_heads": 2,
    "motion_norm_num_groups": 2,
    "motion_max_seq_length": 4,
    "use_motion_mid_block": True,
}
TINY_VAE = SD15_VAE | {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
TINY_TEXT = SD15_TEXT | {
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
    "vocab_size": 6,
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The tiny backbone as folders of a diffusers pipeline."""
    parts = {
        "unet": (TINY_UNET, spatial(UNET)),
        "motion": (TINY_ADAPTER, to_motion_adapter(UNET)),
        "vae": (TINY_VAE, VAE),
        "text": (TINY_TEXT, to_clip_text(TEXT)),
    }
    for name, (config, tensors) in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name / "w.safetensors")
    (tmp_path / "schedule.json").write_text(json.dumps(SD15_SCHEDULER))
    (tmp_path / "vocab.json").write_text(json.dumps({"words": CONFIG.text.words}))
    return tmp_path


def run(pipeline: Path, monkeypatch: pytest.MonkeyPatch, leave_out: str = "") -> Path:
    out = pipeline / "out" / "tiny.safetensors"
    arguments = ["diffusers", "--name", "tiny", "--out", str(out), "--frames", "2"]
    for name in ("unet", "motion", "vae", "text"):
        if name != leave_out:
            arguments += [f"--{name}", str(pipeline / name)]
    arguments += ["--schedule", str(pipeline / "schedule.json"), "--vocab", str(pipeline / "vocab.json")]
    monkeypatch.setattr(sys, "argv", ["weights_converters", *arguments])
    command.main()
    return out


def test_the_command_writes_a_checkpoint_of_the_whole_pipeline(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = load(run(pipeline, monkeypatch))
    motion = dataclasses.replace(CONFIG.unet.temporal, norm_over="clip") if CONFIG.unet.temporal else None
    assert backbone.config == BackboneConfig(
        name="tiny",
        unet=dataclasses.replace(CONFIG.unet, temporal=motion),
        vae=CONFIG.vae,
        text=CONFIG.text,
        schedule=ScheduleConfig(curve="scaled_linear", final_alpha_one=False),
        height=8,
        width=8,
        frames=2,
    )
    ours = state(BACKBONE)
    assert all(torch.equal(tensor, ours[key].half().float()) for key, tensor in state(backbone).items())
    assert f"{len(ours)} tensors" in capsys.readouterr().out


def test_without_motion_modules_the_backbone_makes_images(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(run(pipeline, monkeypatch, leave_out="motion")).config.unet.temporal is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "vae" / "config.json").unlink(), "cannot read .*config.json"),
        (lambda root: (root / "text" / "w.safetensors").unlink(), "exactly one .safetensors file.* none"),
        (lambda root: save_file({"x": torch.zeros(1)}, root / "vae" / "w.safetensors"), "w.safetensors: x"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_status_2(
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(pipeline)
    with pytest.raises(SystemExit) as caught:
        run(pipeline, monkeypatch)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error)
    assert not (pipeline / "out").exists()
