"""Samplers: what both share, and the order of DPM-Solver++."""

import itertools
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.diffusion import Step, add_noise, ddim_step, level, sampling_pairs
from anyi2v.method.config import SamplerName
from anyi2v.samplers import SAMPLERS, DPMSolver2M, Sampler, ddim, sampler_name

SCHEDULE = ScheduleConfig()
NAMES = st.sampled_from(get_args(SamplerName))


def latent(seed: int) -> Tensor:
    return torch.randn(1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled(sampler: Sampler, predict: Callable[[Tensor, Step], Tensor], z: Tensor, steps: list[Step]) -> Tensor:
    for step in steps:
        z = sampler(z, predict(z, step), step)
    return z


def test_names() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))
    for name, make in SAMPLERS.items():
        assert sampler_name(make()) == name
    assert sampler_name(None) == "ddim"
    assert sampler_name(lambda z, noise, step: z) is None


@given(NAMES, st.integers(0, 99), st.integers(1, 40))
def test_the_true_noise_leads_to_the_image(name: SamplerName, seed: int, count: int) -> None:
    x0, eps, steps = latent(seed), latent(seed + 100), sampling_pairs(SCHEDULE, count)
    z = sampled(SAMPLERS[name](), lambda z, step: eps, add_noise(x0, eps, steps[0].at), steps)
    # float64; the noisiest level divides by a signal of 0.07
    torch.testing.assert_close(z, add_noise(x0, eps, steps[-1].to), rtol=1e-9, atol=1e-9)


@given(NAMES, st.integers(0, 99))
def test_a_sampler_serves_one_job_after_another(name: SamplerName, seed: int) -> None:
    sampler, steps = SAMPLERS[name](), sampling_pairs(SCHEDULE, 6)

    def run(start: Tensor) -> Tensor:
        return sampled(sampler, lambda z, step: torch.sin(z + step.t), start, steps)

    first = run(latent(seed))
    run(latent(seed + 1))
    assert torch.equal(run(latent(seed)), first)


def test_ddim_is_the_ddim_step() -> None:
    step = sampling_pairs(SCHEDULE, 25)[3]
    z, eps = latent(0), latent(1)
    assert torch.equal(ddim(z, eps, step), ddim_step(z, eps, step.at, step.to))
    drawn = (torch.Generator().manual_seed(2) for _ in range(2))
    ours = ddim(z, eps, step, eta=0.5, generator=next(drawn))
    assert torch.equal(ours, ddim_step(z, eps, step.at, step.to, eta=0.5, generator=next(drawn)))


def exact(z: Tensor, at: int, to: int) -> Tensor:
    """The probability-flow ODE's solution where the data are N(0, v): z keeps its quotient by the deviation."""
    deviation = [(level(SCHEDULE, t).signal ** 2 * VARIANCE + level(SCHEDULE, t).noise ** 2) ** 0.5 for t in (at, to)]
    return z * deviation[1] / deviation[0]


VARIANCE = 0.25


def gaussian_noise(z: Tensor, step: Step) -> Tensor:
    """The best noise prediction where the data are N(0, v)."""
    return step.at.noise * z / (step.at.signal**2 * VARIANCE + step.at.noise**2)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm-solver-2m", 2)])
def test_order_of_convergence(name: SamplerName, order: int) -> None:
    """Halving the step divides the error by 2 for DDIM, by 4 for DPM-Solver++(2M)."""
    first, last = 801, 201
    errors = []
    for stride in (40, 20, 10, 5):
        times = list(range(first, last - 1, -stride))
        pairs = itertools.pairwise(times)
        steps = [Step(i, t, level(SCHEDULE, t), level(SCHEDULE, u)) for i, (t, u) in enumerate(pairs)]
        z = sampled(SAMPLERS[name](), gaussian_noise, latent(0), steps)
        errors.append((z - exact(latent(0), first, last)).abs().max().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.15), errors
    assert orders == sorted(orders, key=lambda value: -abs(value - order)), orders


def test_the_first_step_of_dpm_solver_is_ddim() -> None:
    step = sampling_pairs(SCHEDULE, 10)[0]
    torch.testing.assert_close(DPMSolver2M()(latent(0), latent(1), step), ddim(latent(0), latent(1), step))
