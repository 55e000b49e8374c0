"""Recordings G: the published DDIM scheduler and its inverse, fed their own recorded noise predictions."""

import re

import pytest
import torch

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.diffusion import (
    alphas_cumprod,
    ddim_step,
    inversion_pairs,
    level,
    sampling_pairs,
    sampling_timesteps,
    transport,
)

from .recordings import Case

STEP = 2e-6  # float32 rounding of a handful of operations on latents of order one, times 1/signal at the start


def config_of(meta: dict) -> ScheduleConfig:
    settings = meta["noise_scheduler_kwargs"]
    return ScheduleConfig(
        beta_start=settings["beta_start"],
        beta_end=settings["beta_end"],
        curve=settings["beta_schedule"],
        steps_offset=settings["steps_offset"],
    )


@pytest.mark.recordings("G")
def test_schedulers_equal_the_recorded_ones(case: Case) -> None:
    for version, meta in case.meta.items():
        config, tensors = config_of(meta), case.tensors
        torch.testing.assert_close(alphas_cumprod(config), tensors[f"{version}.alphas_cumprod"], rtol=1e-6, atol=0)
        for key, timesteps in tensors.items():
            if match := re.fullmatch(rf"{version}\.n(\d+)\.timesteps", key):
                assert sampling_timesteps(config, int(match[1])) == timesteps.tolist()

        compared = 0
        z = tensors[f"{version}.step.x0"]
        for i, step in enumerate(sampling_pairs(config, 25)):
            t, at, to = step.t, step.at, step.to
            eps = tensors.get(f"{version}.step{i:02d}.eps")
            if eps is None:
                break
            expected = tensors[f"{version}.step{i:02d}.prev_sample"]
            error = (ddim_step(z, eps, at, to) - expected).abs().max() / expected.abs().max()
            assert error.item() <= STEP, (version, t)
            z, compared = expected, compared + 1
        assert compared


@pytest.mark.recordings("G")
def test_inverse_steps_equal_the_recorded_ones(case: Case) -> None:
    """Each recorded step starts from the same latent."""
    for version, meta in case.meta.items():
        config = config_of(meta)
        assert level(config, -1).noise == 0
        recorded = [key.split(".")[2] for key in case.tensors if re.match(rf"{version}\.inv\.t\d+\.eps", key)]
        assert recorded
        for name in recorded:
            step = inversion_pairs(config, until=int(name[1:]))[-1]
            t, at, to = step.t, step.at, step.to
            eps, out = (case.tensors[f"{version}.inv.{name}.{part}"] for part in ("eps", "out"))
            error = (transport(case.tensors[f"{version}.inv.x0"], eps, at, to) - out).abs().max()
            assert (error / out.abs().max()).item() <= STEP, (version, t)
