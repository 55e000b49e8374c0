"""`anyi2v convert` from the command line, with the folder of a diffusers pipeline."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.backbone.config import BackboneConfig, MotionConfig, ScheduleConfig
from anyi2v.backbone.networks import state
from anyi2v.checkpoints.checkpoint import load
from anyi2v.cli import main

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
MOTION = ("--motion-module", "motion", "--motion-norm", "clip")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The tiny backbone as the folder of a diffusers pipeline, and a MotionAdapter beside it."""
    parts = {
        "base/unet": (TINY_UNET, spatial(UNET)),
        "base/vae": (TINY_VAE, VAE),
        "base/text_encoder": (TINY_TEXT, to_clip_text(TEXT)),
        "motion": (TINY_ADAPTER, to_motion_adapter(UNET)),
    }
    for name, (config, tensors) in parts.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name / "w.safetensors")
    (tmp_path / "base/scheduler").mkdir()
    (tmp_path / "base/scheduler/scheduler_config.json").write_text(json.dumps(SD15_SCHEDULER))
    (tmp_path / "vocab.json").write_text(json.dumps({"words": CONFIG.text.words}))
    return tmp_path


def run(pipeline: Path, monkeypatch: pytest.MonkeyPatch, *extra: str) -> int:
    monkeypatch.chdir(pipeline)
    return main(["convert", "--base", "base", "--vocab", "vocab.json", "--out", "out/tiny.safetensors", *extra])


def test_the_command_writes_a_checkpoint_of_the_whole_pipeline(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json of each folder is honoured: widths, groups, words."""
    assert run(pipeline, monkeypatch, *MOTION, "--frames", "2") == 0
    backbone = load(pipeline / "out/tiny.safetensors")
    assert isinstance(CONFIG.unet.temporal, MotionConfig)
    motion = dataclasses.replace(CONFIG.unet.temporal, norm_over="clip")
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
    said = capsys.readouterr().out
    assert f"{len(ours)} tensors" in said
    assert f"used: {len(spatial(UNET))} tensors for the UNet\n" in said
    assert "left out: 7 tensors, position tables, which are sinusoids and recomputed\n" in said
    assert said.endswith("schedule: from base/scheduler/scheduler_config.json\n")


def test_parts_may_be_named_one_by_one(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = pipeline / "mine.json"
    schedule.write_text(json.dumps(SD15_SCHEDULER | {"steps_offset": 0}))
    parts = ["--base", "base/unet", "--vae", "base/vae", "--text", "base/text_encoder", "--schedule", "mine.json"]
    assert run(pipeline, monkeypatch, *parts) == 0
    config = load(pipeline / "out/tiny.safetensors").config
    assert config.schedule.steps_offset == 0
    assert (config.unet.temporal, config.frames) == (None, 16)


@pytest.mark.parametrize("extra", [(), MOTION, ("--motion-module", "motion", "--motion-norm", "frame")])
@pytest.mark.parametrize("base", ["base", "base/unet"])
def test_a_pipeline_that_predicts_v_is_refused_with_a_motion_module_and_without(
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: tuple[str, ...],
    base: str,
) -> None:
    """Also where the UNet's folder in it is named."""
    scheduler = pipeline / "base/scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(SD15_SCHEDULER | {"prediction_type": "v_prediction"}))
    extra = (*extra, "--base", base, *(("--vae", "base/vae", "--text", "base/text_encoder") if base != "base" else ()))
    assert run(pipeline, monkeypatch, *extra) == 2
    error = capsys.readouterr().err
    assert (
        "the UNet predicts 'v_prediction' according to prediction_type in base/scheduler/scheduler_config.json" in error
    )
    scheduler.write_text(json.dumps(SD15_SCHEDULER | {"prediction_type": "epsilon", "steps_offset": 3}))
    assert run(pipeline, monkeypatch, *extra) == 0
    animatediff = "frame" in extra
    assert load(pipeline / "out/tiny.safetensors").config.schedule.steps_offset == (1 if animatediff else 3)


@pytest.mark.parametrize(("size", "wanted"), [(None, (128, 128)), ([4, 6], (12, 8)), (4, (8, 8))])
def test_the_size_of_the_latents_is_read(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, size: object, wanted: tuple[int, int]
) -> None:
    """Height and width of the latents, where there are two; SD-1.x's 64 where there are none."""
    (pipeline / "base/unet/config.json").write_text(json.dumps(TINY_UNET | {"sample_size": size}))
    assert run(pipeline, monkeypatch, *MOTION) == 0
    config = load(pipeline / "out/tiny.safetensors").config
    assert (config.width, config.height) == wanted


def test_fields_that_nothing_here_knows_are_named_once(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those that have no effect, nor those that are switched off."""
    quiet = {"_class_name": "x", "decay": 0.99, "upcast_attention": True, "new_option": None, "another": False}
    (pipeline / "base/unet/config.json").write_text(json.dumps(TINY_UNET | quiet | {"twist": 3}))
    (pipeline / "base/vae/config.json").write_text(json.dumps(TINY_VAE | {"force_upcast": True, "turn": "left"}))
    assert run(pipeline, monkeypatch) == 0
    assert capsys.readouterr().err.splitlines() == [
        "anyi2v: warning: base/unet: config.json has twist = 3, which is unknown; it is ignored",
        "anyi2v: warning: base/vae: config.json has turn = 'left', which is unknown; it is ignored",
    ]


def test_words_that_textual_inversion_added_are_named(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = to_clip_text(TEXT)
    key = "text_model.embeddings.token_embedding.weight"
    save_file(
        {name: x.contiguous() for name, x in (text | {key: torch.zeros(49410, 8)}).items()},
        pipeline / "base/text_encoder/w.safetensors",
    )
    (pipeline / "base/text_encoder/config.json").write_text(json.dumps(TINY_TEXT | {"vocab_size": 49410}))
    monkeypatch.chdir(pipeline)
    assert main(["convert", "--base", "base", "--out", "out/tiny.safetensors"]) == 0
    assert "the text tower has 2 more tokens than CLIP" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "zero"),
    [({"content": "<|endoftext|>", "lstrip": False}, False), ("!", True), (None, False), ("<pad>", None)],
)
def test_the_padding_of_the_tokenizer_is_that_of_the_prompts(
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: object,
    zero: bool | None,
) -> None:
    (pipeline / "base/tokenizer").mkdir()
    (pipeline / "base/tokenizer/special_tokens_map.json").write_text(json.dumps({"pad_token": token}))
    monkeypatch.chdir(pipeline)
    status = main(["convert", "--base", "base", "--out", "out/tiny.safetensors"])
    if zero is None:
        assert status == 2
        assert "special_tokens_map.json: pad_token is '<pad>'" in capsys.readouterr().err
    else:
        assert status == 0
        assert load(pipeline / "out/tiny.safetensors").config.text.pad_zero is zero


def test_the_text_tower_of_a_whole_clip_is_taken(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CLIP itself is published: with an image tower, projections, and a configuration inside of another."""
    extras = ("vision_model.post_layernorm.bias", "visual_projection.weight", "text_projection.weight", "logit_scale")
    tensors = to_clip_text(TEXT) | {key: torch.zeros(2) for key in extras}
    save_file({k: x.contiguous() for k, x in tensors.items()}, pipeline / "base/text_encoder/w.safetensors")
    (pipeline / "base/text_encoder/config.json").write_text(json.dumps({"text_config": TINY_TEXT, "hidden_size": 99}))
    assert run(pipeline, monkeypatch) == 0
    assert load(pipeline / "out/tiny.safetensors").config.text == CONFIG.text


def test_both_ways_to_call_it_are_one(pipeline: Path) -> None:
    flags = ["--base", "base", "--vocab", "vocab.json", "--out", "out.safetensors", "--name", "x", "--dtype", "fp32"]
    subprocess.run([sys.executable, "-m", "weights_converters", *flags], cwd=pipeline, check=True, capture_output=True)
    assert load(pipeline / "out.safetensors").config.name == "x"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "base/vae/config.json").unlink(), "cannot read base/vae/config.json"),
        (lambda root: (root / "base/vae/config.json").write_text("{}"), "base/vae: config.json is not that of a"),
        (lambda root: (root / "base/unet/config.json").write_text("{}"), "base/unet: config.json is not that of a"),
        (lambda root: (root / "motion/config.json").write_text("{}"), "motion: config.json is not that of a"),
        (lambda root: (root / "base/scheduler/scheduler_config.json").write_text("{}"), "configuration of a scheduler"),
        (lambda root: (root / "vocab.json").write_text("{}"), "base/text_encoder: config.json is not"),
        (lambda root: (root / "base/text_encoder/w.safetensors").unlink(), "exactly one .safetensors file"),
        (
            lambda root: save_file({"x": torch.zeros(1)}, root / "base/vae/w.safetensors"),
            "base/vae looks like: unknown kind",
        ),
        (
            lambda root: (root / "base/unet/config.json").write_text(json.dumps(TINY_UNET | {"sample_size": "64"})),
            "sample_size '64'",
        ),
        (
            lambda root: (root / "base/vae/config.json").write_text(
                json.dumps(TINY_VAE | {"block_out_channels": [10**9, 10**9]})
            ),
            "channels=(1000000000, 1000000000) is not between",
        ),
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
    assert run(pipeline, monkeypatch, *MOTION) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("anyi2v: error: ") and error.count("\n") == 1
    assert not (pipeline / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--base", "x"], ["--out", "x.safetensors"], ["--base", "x", "--inspect", "y"]])
def test_what_is_asked_for_must_be_clear(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *flags]) == 2
    assert "needs" in capsys.readouterr().err


def test_inspection_of_a_pipeline_goes_through_its_folders(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pipeline)
    assert main(["convert", "--inspect", "base", "motion"]) == 0
    said = capsys.readouterr().out
    assert said.count("complete: no tensors are missing or left over") == 4
    assert "base/vae: autoencoder (diffusers layout), new attention names" in said
    assert f"text: {len(to_clip_text(TEXT))} tensors" in said
