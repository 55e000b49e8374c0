"""Recordings of SD-1.x parts (folder `stable_diffusion`): 2D UNet, autoencoder, text tower, DDIM."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

LIMIT = 2e-5  # float32 noise of these networks is 5e-6 at outputs of order one


@pytest.fixture
def part(root: Path, request: pytest.FixtureRequest) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """Configuration, inputs and outputs, weights of the part that the test names."""
    folder = root / "stable_diffusion" / request.param
    if not folder.exists():
        pytest.skip(f"the golden folder has no stable_diffusion/{request.param}")
    weights = folder / "weights.f16.safetensors"
    state = {k: v.float() for k, v in load_file(weights).items()} if weights.exists() else {}
    return json.loads((folder / "config.json").read_text()), load_file(folder / "io.safetensors"), state
