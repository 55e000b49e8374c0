"""Samplers, which move the latents from one noise level to the next along the noise prediction.

A sampler is any `sampler(z, noise, step) -> z`. A sampler with state resets it when `step.index` does not follow the
previous step, so that one instance can serve several jobs in turn.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.diffusion import CLEAN, Level, Step, ddim_step, transport
from anyi2v.method.config import SamplerName


@runtime_checkable
class Sampler(Protocol):
    """A function that moves latents from level `step.at` to level `step.to`."""

    def __call__(
        self, z: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], step: Step, /
    ) -> Float[Tensor, "*shape"]:
        """Return the latents at level `step.to`."""
        ...


def ddim(
    z: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    step: Step,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Take a DDIM step (Song et al. 2021, Eq. 12), with fresh noise for `eta` > 0; see `diffusion.ddim_step`."""
    return ddim_step(z, noise, step.at, step.to, eta=eta, generator=generator)


class DPMSolver2M:
    """DPM-Solver++(2M): second order in the half log signal-to-noise ratio (Lu et al. 2022, Algorithm 2).

    With D the data prediction, extrapolated from this step and the previous one, lambda = log(signal / noise) and h =
    lambda' - lambda: z' = (noise' / noise) z - signal' (exp(-h) - 1) D. The first step, and a step to the noise-free
    level, where h is infinite, are of first order. Equals diffusers' DPMSolverMultistepScheduler with
    solver_type="midpoint" and lower_order_final=False.
    """

    def __init__(self) -> None:
        self.previous: tuple[int, Tensor, float] | None = None

    def __call__(
        self, z: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], step: Step
    ) -> Float[Tensor, "*shape"]:
        """Return the latents at level `step.to`; a step that does not follow the previous one starts a new job."""
        at, to = step.at, step.to
        x0 = transport(z, noise, at, CLEAN)
        previous, self.previous = self.previous, (step.index, x0, _lambda(at))
        if to.noise == 0:
            return to.signal * x0
        h, data = _lambda(to) - _lambda(at), x0
        if previous is not None and previous[0] == step.index - 1:
            ratio = (_lambda(at) - previous[2]) / h
            data = x0 + (x0 - previous[1]) / (2 * ratio)
        return to.noise / at.noise * z - to.signal * math.expm1(-h) * data


def _lambda(level: Level) -> float:
    return math.log(level.signal / level.noise)


SAMPLERS: dict[SamplerName, Callable[[], Sampler]] = {"ddim": lambda: ddim, "dpm-solver-2m": DPMSolver2M}
"""Factories of the samplers by the names used on the command line and in run records."""


def sampler_name(sampler: Sampler | None) -> SamplerName | None:
    """Return the sampler's name in `SAMPLERS`; None for a custom sampler."""
    if sampler is None or sampler is ddim:
        return "ddim"
    return "dpm-solver-2m" if type(sampler) is DPMSolver2M else None
