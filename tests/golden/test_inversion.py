"""Recordings B: inverse DDIM of one frame with the motion modules off, and its features."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.denoiser import Denoiser, ImageDenoiser
from anyi2v.diffusion import inversion_pairs, transport
from anyi2v.method.inversion import invert

from . import recordings
from .recordings import Case, latents, relative

# 201 forwards, each with a relative rounding error of about 1e-6, followed by steps that hardly amplify it
LIMIT = 1e-4


class Noted(ImageDenoiser):
    """Keeps the latents of each pass."""

    def __init__(self, denoiser: Denoiser, passes: int):
        super().__init__(denoiser, passes)
        self.seen: dict[int, Tensor] = {}

    def __call__(self, z: Tensor, t: int) -> Tensor:
        self.seen[t] = z
        return super().__call__(z, t)

    def features(self, names: Iterable[str], z: Tensor, t: int) -> dict[str, Tensor]:
        self.seen[t] = z
        return super().features(names, z, t)


@cache
def inverted(folder: Path, root: Path) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Features, and the latents after each pass, by its timestep, of the case in a folder."""
    case = recordings.load_case(folder)
    steps = inversion_pairs(ScheduleConfig(), until=case.meta["inversion_timestep"])
    network = Noted(Denoiser(recordings.unet(root, "v3"), case.text[1:]), len(steps))
    names = recordings.recorded_features(case, root)
    features = invert(network, latents(case.tensors["source_latent"]), steps, names)
    after = {step.t: network.seen[step.t + 1] for step in steps[:-1]}
    with torch.no_grad():
        z, last = network.seen[steps[-1].t], steps[-1]
        after[last.t] = transport(z, network(z, last.t), last.at, last.to)
    return features, after


@pytest.mark.recordings("B")
def test_features_equal_the_recorded_ones(case: Case, root: Path) -> None:
    expected = recordings.recorded_features(case, root)
    features, _ = inverted(case.folder, root)
    assert features.keys() == expected.keys()
    for name, feature in features.items():
        assert relative(feature, expected[name]) <= LIMIT, name


@pytest.mark.recordings("B")
def test_latents_on_the_way_equal_the_recorded_ones(case: Case, root: Path) -> None:
    _, after = inverted(case.folder, root)
    compared = 0
    for t, z in after.items():
        if f"latent_after_t{t}" in case.tensors:
            assert relative(latents(z), case.tensors[f"latent_after_t{t}"]) <= LIMIT, t
            compared += 1
    assert compared
