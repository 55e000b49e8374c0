"""Recordings of SD-1.x parts (folder `stable_diffusion`): 2D UNet, autoencoder, text tower, DDIM.

Weights pass through the converters, so a wrong rule shows here too.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from anyi2v.backbone.text import TextTower
from anyi2v.backbone.unet import UNet
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.diffusion import Step, inversion_pairs, sampling_pairs, transport
from weights_converters import diffusers_configs, diffusers_layout
from weights_converters.keymap import Rule, convert

LIMIT = 2e-5  # float32 noise of these networks is about 5e-6 at outputs of order one
STEP = 2e-6  # float32 rounding of a handful of operations, relative to the largest value


class Part:
    """Configuration, inputs and outputs, and weights of one recorded part."""

    def __init__(self, folder: Path):
        weights = folder / "weights.f16.safetensors"
        self.config = json.loads((folder / "config.json").read_text())
        self.io = load_file(folder / "io.safetensors")
        self.state = load_file(weights) if weights.exists() else {}

    def fill(self, network: nn.Module, rules: list[Rule]) -> None:
        """Puts the converted weights into a network of ours."""
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        state = {key: tensor.float() for key, tensor in self.state.items()}
        network.load_state_dict(convert(state, rules, shapes)[0])
        network.eval().requires_grad_(False)


@pytest.fixture
def part(root: Path, request: pytest.FixtureRequest) -> Part:
    folder = root / "stable_diffusion" / request.param
    if not folder.exists():
        pytest.skip(f"the golden folder has no stable_diffusion/{request.param}")
    return Part(folder)


def assert_close(ours: Tensor, theirs: Tensor, limit: float = LIMIT) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= limit


@pytest.mark.parametrize("part", ["unet2d"], indirect=True)
def test_unet2d(part: Part) -> None:
    unet = UNet(diffusers_configs.unet_config(part.config))
    part.fill(unet, diffusers_layout.UNET)
    io = part.io
    out = unet(io["sample"][:, None], io["t"], io["text"])
    assert_close(out[:, 0], io["out"])
    count = len(io["sample_odd"])
    odd = unet(io["sample_odd"][:, None], 201, io["text"][:count])
    assert_close(odd[:, 0], io["out_odd"])


@pytest.mark.parametrize("part", ["vae"], indirect=True)
def test_vae(part: Part) -> None:
    vae = AutoencoderKL(diffusers_configs.vae_config(part.config))
    part.fill(vae, diffusers_layout.VAE)
    io, scale = part.io, part.config["scaling_factor"]
    mean, logvar = vae.moments(io["image"])
    assert_close(mean, io["mean"])
    assert_close(logvar, io["logvar"])
    assert_close((logvar / 2).exp(), io["std"])
    assert_close(vae.encode(io["image"]), io["mode_scaled"])
    assert_close(vae.decode(io["z"] * scale), io["decoded"])
    assert_close(vae.decode(io["mode_scaled"]), io["decoded_from_scaled"])


@pytest.mark.parametrize("part", ["clip_text"], indirect=True)
def test_text_tower(part: Part) -> None:
    tower = TextTower(diffusers_configs.text_config(part.config))
    part.fill(tower, diffusers_layout.TEXT)
    assert_close(tower(part.io["ids"]), part.io["last_hidden_state"])


def assert_trace(part: Part, steps: list[Step]) -> None:
    """Every step from its recorded start, with its recorded noise prediction."""
    assert [step.t for step in steps] == part.io["timesteps"].tolist()
    for i, step in enumerate(steps):
        expected = part.io[f"x{i + 1}"]
        out = transport(part.io[f"x{i}"], part.io["eps"][i], step.at, step.to)
        assert ((out - expected).abs().max() / expected.abs().max()).item() <= STEP, i


@pytest.mark.parametrize("part", ["ddim_linear", "ddim_scaled_linear"], indirect=True)
def test_ddim(part: Part) -> None:
    assert_trace(part, sampling_pairs(diffusers_configs.schedule_config(part.config), part.config["steps"]))


@pytest.mark.parametrize("part", ["ddim_inverse_linear", "ddim_inverse_scaled_linear"], indirect=True)
def test_inverse_ddim(part: Part) -> None:
    steps = part.config["steps"]
    stride = part.config["num_train_timesteps"] // steps
    config = diffusers_configs.schedule_config(part.config)
    until = config.steps_offset + (steps - 1) * stride
    assert_trace(part, inversion_pairs(config, until=until, stride=stride))
