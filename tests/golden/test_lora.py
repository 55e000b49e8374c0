"""A recorded kohya file (folder `stable_diffusion/lora_kohya`): linear layers, convolutions, several alphas."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyi2v.checkpoints.lora import bake, read_lora

LIMIT = 1e-6  # weights are below 1; float32 rounding of rank 4 sums is about 1e-7


def test_kohya(root: Path) -> None:
    folder = root / "stable_diffusion" / "lora_kohya"
    if not folder.exists():
        pytest.skip("the golden folder has no stable_diffusion/lora_kohya")
    config = json.loads((folder / "config.json").read_text())
    (recorded,) = folder.glob("expected_*.safetensors")
    expected = {f"unet.{key}": tensor for key, tensor in load_file(recorded).items()}
    base = {f"unet.{key}": tensor for key, tensor in load_file(folder / config["base"]).items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in base.items()}
    deltas = read_lora(folder / "lora.safetensors", config["scale"], keys=shapes)
    assert deltas.keys() == expected.keys()
    for key, tensor in expected.items():
        ours = bake(key, base[key], deltas[key], torch.float32)
        assert (ours - tensor).abs().max().item() <= LIMIT, key
