"""The report of a conversion: what was used, what was left out and why, in words that a user knows."""

from pathlib import Path

import pytest
import torch

from weights_converters.account import account, left_out
from weights_converters.command import convert
from weights_converters.parts import Name, Part, find_parts

from . import foreign


@pytest.fixture
def base(tmp_path: Path) -> Path:
    extras = {"embedding_manager.x": torch.zeros(2), "denoiser.sigmas": torch.zeros(3)}
    return foreign.write(foreign.ldm() | extras, tmp_path / "base.safetensors")


def test_a_tensor_of_one_network_is_not_left_out_because_of_the_others(base: Path) -> None:
    parts: dict[Name, Part] = find_parts(base, {})
    unet, vae, text = (len(part.plan.report.renamed) for part in parts.values())
    lines = account(parts).splitlines()
    assert lines[:2] == [
        f"from {base} (Stable Diffusion single file (LDM layout), 1.x, with moving average):",
        f"  used: {unet} tensors for the UNet, {vae} tensors for the autoencoder, {text} tensors for the text tower",
    ]
    assert sorted(lines[2:]) == [
        "  left out: 1 tensor, noise levels of another sampler",
        "  left out: 1 tensor, parts of the autoencoder that only training uses",
        "  left out: 1 tensor, position ids, which are 0, 1, 2, ...",
        "  left out: 1 tensor, state of a textual inversion training",
        "  left out: 2 tensors, a moving average from training; the plain weights are used",
        "  left out: 2 tensors, tables of the noise schedule, which are recomputed",
    ]
    assert unet + vae + text + left_out(parts.values()).total() == len(parts["unet"].source)


def test_a_network_that_another_file_replaces_is_said_to_be(base: Path, tmp_path: Path) -> None:
    other = foreign.write(foreign.networks()[1], tmp_path / "vae.safetensors")
    motion = foreign.write(foreign.motion("v3"), tmp_path / "mm.ckpt")
    said = convert(foreign.options(base, tmp_path / "out.safetensors", vae=other, motion_module=motion)).splitlines()
    count = len(foreign.networks()[1])
    assert f"  left out: {count} tensors, of the autoencoder (provided by another file)" in said
    assert f"from {other} (autoencoder (diffusers layout), new attention names):" in said
    assert f"  used: {count} tensors for the autoencoder" in said
    assert f"from {motion} (AnimateDiff motion module, v3):" in said
    tables = sum(key.endswith(".pe") for key in foreign.motion("v3"))
    assert f"  left out: {tables} tensors, position tables, which are sinusoids and recomputed" in said
    assert said[-1] == "schedule: AnimateDiff's, instead of the base's"
