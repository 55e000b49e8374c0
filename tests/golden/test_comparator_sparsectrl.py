"""Recordings of guoyww/AnimateDiff at e92bd56: its SparseControlNetModel beside the tiny AnimateDiff v3 UNet."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.config import MotionConfig
from anyi2v.backbone.sparse_control import MID, SparseControlNetwork, adding, masked
from anyi2v.hook_points import skip
from weights_converters.control_command import control_shapes
from weights_converters.keymap import convert, make_plan
from weights_converters.sparse_control import config, rules

from .comparators import Recorded
from .conftest import golden_dir
from .recordings import latents, unet

RESIDUALS, OUTPUTS = 2e-4, 5e-5
"""Limits as suggested beside the recordings."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" not in metafunc.fixturenames:
        return
    folder = golden_dir(metafunc.config) / "comparators" / "sparsectrl"
    file = folder / "tensors.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else {}
    tensors = load_file(folder / "tensors.safetensors") if runs else {}
    cases = [
        Recorded(meta, {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")})
        for name, meta in runs.items()
    ]
    missing = pytest.mark.skip(reason="the golden folder has no comparators/sparsectrl")
    metafunc.parametrize("run", cases or [pytest.param(None, marks=missing)], ids=list(runs) or ["none"])


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "comparators" / "sparsectrl"


@cache
def stored(path: Path) -> dict[str, Tensor]:
    return {key: x.float() for key, x in load_file(path).items()}


@cache
def network(root: Path, variant: str, motion: bool) -> SparseControlNetwork:
    """The recorded encoder, whose weights pass through the converter."""
    weights = {}
    for key, x in stored(root / "comparators" / "sparsectrl" / "weights.f16.safetensors").items():
        kind, _, name = key.rpartition(":")
        if kind in ("", variant) and (motion or ".motion_modules." not in key):
            weights[name] = x
    for key, x in unet(root, "v3").state_dict().items():  # what the file lacks is the UNet's, flipped
        if ".temporals." not in key and key.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block")):
            weights.setdefault(key, x.flip(0))
    if motion:
        assert len(weights) == {"rgb": 476, "scribble": 490}[variant]
    plan = make_plan({key: tuple(x.shape) for key, x in weights.items()}, rules(shapes_of(weights)))
    found = config(shapes_of(weights), plan.shapes, "recorded")
    temporal = found.unet.temporal if motion else None
    found = replace(found, unet=replace(found.unet, heads=4, groups=8, temporal=temporal))
    assert found.condition == variant and (not motion or temporal == MotionConfig(attentions=1))
    made = SparseControlNetwork(found)
    made.load_state_dict(convert(weights, rules(shapes_of(weights)), control_shapes(found))[0])
    return made.eval().requires_grad_(False)


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(x.shape) for key, x in weights.items()}


def condition_of(inputs: dict[str, Tensor], variant: str, index: list[int]) -> Tensor:
    """Recorded image n at index n of the run's list."""
    images = latents(inputs[f"{variant}.images"])[0]
    images = images.expand(-1, 3, -1, -1) if variant == "scribble" else images
    return masked(dict(zip(index, images, strict=False)), inputs["latents"].shape[2])


@torch.no_grad()
def test_residuals_and_prediction_equal_the_recorded_ones(run: Recorded, root: Path, folder: Path) -> None:
    meta, x = run
    inputs = stored(folder / "tensors.safetensors")
    both = "motion" not in meta["batch"] and meta["batch"].startswith("latents, text")
    z, text = (inputs[key] if both else inputs[key][1:] for key in ("latents", "text"))
    control = network(root, meta["variant"], meta["motion"])
    condition = condition_of(inputs, meta["variant"], meta["index"])
    residuals = control(condition, meta["timestep"], text)
    names = {f"down{n}": skip(n) for n in range(12)} | {"mid": MID}
    assert set(names.values()) == residuals.keys() and x.keys() & {*names, "unet_out"}
    for recorded, name in names.items():
        if recorded in x:
            expected = latents(x[recorded])
            error = (meta["scale"] * residuals[name] - expected).abs().max()
            assert error <= RESIDUALS, (recorded, error)
    tap = adding(residuals, meta["scale"])
    predicted = unet(root, "v3")(latents(z), meta["timestep"], text, tap=tap)
    assert (predicted - latents(x["unet_out"])).abs().max() <= OUTPUTS
    if not both:
        plain = unet(root, "v3")(latents(z), meta["timestep"], text)
        assert (plain - latents(inputs["unet_out_no_control"])).abs().max() <= OUTPUTS
