"""Recordings B: inverse DDIM of one frame with the motion modules off, and its features."""

from pathlib import Path

import pytest

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs, transport
from anyi2v.method.inversion import invert

from . import recordings
from .recordings import Case, latents, relative

# 201 forwards, each with a relative rounding error of about 1e-6, followed by steps that hardly amplify it
LIMIT = 1e-4


@pytest.mark.recordings("B")
def test_features_equal_the_recorded_ones(case: Case, root: Path) -> None:
    expected = recordings.recorded_features(case, root)
    steps = inversion_pairs(ScheduleConfig(), until=case.meta["inversion_timestep"])
    network = Denoiser(recordings.unet(root, "v3"), case.text[1:]).images(len(steps))
    features = invert(network, latents(case.tensors["source_latent"]), steps, expected)
    assert features.keys() == expected.keys()
    for name, feature in features.items():
        assert relative(feature, expected[name]) <= LIMIT, name


@pytest.mark.recordings("B")
def test_latents_on_the_way_equal_the_recorded_ones(case: Case, root: Path) -> None:
    network = recordings.unet(root, "v3")
    z = latents(case.tensors["source_latent"])
    compared = 0
    for step in inversion_pairs(ScheduleConfig(), until=case.meta["inversion_timestep"]):
        t, at, to = step.t, step.at, step.to
        z = transport(z, network(z, t, case.text[1:], temporal=False), at, to)
        if f"latent_after_t{t}" in case.tensors:
            assert relative(latents(z), case.tensors[f"latent_after_t{t}"]) <= LIMIT, t
            compared += 1
    assert compared
