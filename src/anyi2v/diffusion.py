"""Noise levels, and the one formula that moves a latent between two of them (DDIM and its inverse).

Pure functions over a `ScheduleConfig`; there is no scheduler object and no state. Levels are Python floats
derived from the float32 table `alphas_cumprod`, as the networks were trained with.

References: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Lin et al. 2024 Table 2 (timestep spacings).
The tables and timesteps equal those of diffusers' DDIMScheduler and DDIMInverseScheduler.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.errors import InputError

Spacing = Literal["leading", "uniform", "trailing", "linspace"]


class Level(NamedTuple):
    """A noise level: z = signal * x0 + noise * eps.

    The signal is sqrt(alphas_cumprod), on some backbones times a factor below 1 (`ScheduleConfig.x0_scale`).
    """

    signal: float
    noise: float


CLEAN = Level(1.0, 0.0)
"""No noise at all; `transport(z, eps, at, CLEAN)` is the predicted x0."""


@dataclass(frozen=True)
class Step:
    """One move of a latent: the network is evaluated at timestep `t` on a latent of level `at`, which then
    moves to level `to`."""

    index: int
    """From 0."""
    t: int
    at: Level
    to: Level


def alphas_cumprod(config: ScheduleConfig) -> Float[Tensor, "t"]:
    """Cumulative product of 1 - beta, float32 on the CPU, one entry per training timestep, falling from 1.

    `config.curve` "linear" spaces the betas evenly, "scaled_linear" their square roots.
    """
    start, end, power = config.beta_start, config.beta_end, 1
    if config.curve == "scaled_linear":
        start, end, power = start**0.5, end**0.5, 2
    betas = torch.linspace(start, end, config.train_steps, dtype=torch.float32, device="cpu") ** power
    return torch.cumprod(1.0 - betas, dim=0)


def level(config: ScheduleConfig, t: int) -> Level:
    """The level of timestep `t`; every negative `t` stands for the final level, see `final_alpha_one`.

    Raises InputError for t >= train_steps.
    """
    return _levels(config, [t])[0]


def sampling_timesteps(config: ScheduleConfig, steps: int, *, spacing: Spacing | None = None) -> list[int]:
    """The timesteps at which a sampler of `steps` steps evaluates the network, descending.

    "leading" (the published code's) is a whole stride from `steps_offset` upwards: 961, 921, ..., 1 for 25 of
    1000 steps. "trailing" ends at the last timestep, "linspace" has both ends.

    Raises InputError if `steps` is not in 1..train_steps, or if the offset pushes the first timestep beyond
    the last.
    """
    total, spacing = config.train_steps, spacing or config.spacing
    if not 1 <= steps <= total:
        raise InputError(f"sampling steps = {steps}; choose 1..{total}, the schedule's training steps")
    if spacing == "trailing":
        return [round(Fraction(total * (steps - i), steps)) - 1 for i in range(steps)]
    if spacing == "linspace":
        gap = (total - 1) / max(steps - 1, 1)
        return [round(i * gap) for i in reversed(range(steps))]
    stride = total // steps
    if spacing == "uniform":
        steps = len(range(0, total, stride))
    first = (steps - 1) * stride + config.steps_offset
    if first >= total:
        raise InputError(
            f"sampling steps = {steps} with steps_offset = {config.steps_offset} begins at timestep {first}, "
            f"but the last one is {total - 1}; take fewer steps, or steps_offset at most "
            f"{total - 1 - (steps - 1) * stride}"
        )
    return list(range(first, config.steps_offset - 1, -stride))


def sampling_pairs(config: ScheduleConfig, steps: int, *, spacing: Spacing | None = None) -> list[Step]:
    """The steps of a DDIM sampler, from noise to image: each goes to the next timestep's level.

    The last goes to t - train_steps // steps, as in diffusers: below zero, thus the final level, unless the
    steps are so many that the stride is not larger than `steps_offset`.
    """
    timesteps = sampling_timesteps(config, steps, spacing=spacing)
    after = [*timesteps[1:], timesteps[-1] - config.train_steps // steps]
    return _steps(timesteps, _levels(config, timesteps), _levels(config, after))


def inversion_timesteps(config: ScheduleConfig, *, until: int, stride: int = 1) -> list[int]:
    """The timesteps of DDIM inversion, ascending: steps_offset, steps_offset + stride, ..., exactly `until`.

    The published code has stride 1 and until 201, so 201 calls of the network. Raises InputError if `until`
    is outside the schedule, or if the stride does not lead to it; the message names the nearest that do.
    """
    start = config.steps_offset
    if not start <= until < config.train_steps:
        raise InputError(
            f"inversion until timestep {until}; choose {start}..{config.train_steps - 1}, "
            "from steps_offset to the schedule's last timestep"
        )
    span = until - start
    if stride < 1 or span % stride:
        fitting = [s for s in range(1, max(span, 1) + 1) if span % s == 0]
        near = sorted(sorted(fitting, key=lambda s: abs(s - stride))[:4])
        raise InputError(
            f"inversion stride {stride} does not lead from timestep {start} to {until}: "
            f"it has to divide {span}; the nearest that do are {', '.join(map(str, near))}"
        )
    return list(range(start, until + 1, stride))


def inversion_pairs(config: ScheduleConfig, *, until: int, stride: int = 1) -> list[Step]:
    """The steps of DDIM inversion, from image to noise.

    The network is evaluated at t on the latent of level t - stride, which then moves to the level of t
    (diffusers' DDIMInverseScheduler). Negative t - stride is the final level; with stride 1 and offset 1 the
    image's latent is thus taken to have the level of timestep 0, as published.
    """
    timesteps = inversion_timesteps(config, until=until, stride=stride)
    before = [t - stride for t in timesteps]
    return _steps(timesteps, _levels(config, before), _levels(config, timesteps))


def transport(
    z: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], at: Level, to: Level
) -> Float[Tensor, "*shape"]:
    """Moves `z` from level `at` to level `to` along the noise prediction `eps` (Song et al. Eq. 12, sigma 0).

    With less noise in `to` this is the DDIM step, with more its inverse; with `CLEAN` the predicted x0.
    """
    x0 = (z - at.noise * eps) / at.signal
    return to.signal * x0 + to.noise * eps


def ddim_step(
    z: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    at: Level,
    to: Level,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """`transport` plus fresh noise (Song et al. Eq. 12 with sigma of Eq. 16): eta 0 is DDIM, eta 1 is DDPM.

    Raises InputError for eta outside 0..1, and for eta > 0 without a generator or towards more noise.
    """
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta = {eta}; choose 0 (DDIM, deterministic) to 1 (DDPM)")
    if eta == 0.0:
        return transport(z, eps, at, to)
    if generator is None:
        raise InputError(f"eta = {eta} draws noise: pass generator=torch.Generator(), or eta = 0")
    if to.noise > at.noise:
        raise InputError(f"eta = {eta} needs a step to less noise, but it goes from {at.noise} to {to.noise}")
    # alphas_cumprod is 1 - noise^2, whatever the signal is multiplied with
    fresh = (1.0 - (1.0 - at.noise**2) / (1.0 - to.noise**2)) ** 0.5 * to.noise / at.noise
    sigma = eta * fresh
    kept = max(to.noise**2 - sigma**2, 0.0) ** 0.5
    noise = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
    return transport(z, eps, at, Level(to.signal, kept)) + sigma * noise.to(z.device)


def add_noise(x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], at: Level) -> Float[Tensor, "*shape"]:
    """`x0` at level `at` with the noise `eps`."""
    return at.signal * x0 + at.noise * eps


def guided(uncond: Float[Tensor, "*shape"], cond: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """Classifier-free guidance (Ho & Salimans 2022): 0 is unconditional, 1 conditional, above exaggerates."""
    return uncond + scale * (cond - uncond)


def _steps(timesteps: list[int], at: list[Level], to: list[Level]) -> list[Step]:
    return [Step(i, *row) for i, row in enumerate(zip(timesteps, at, to, strict=True))]


def _levels(config: ScheduleConfig, timesteps: list[int]) -> list[Level]:
    table = alphas_cumprod(config).tolist()
    final = 1.0 if config.final_alpha_one else table[0]
    levels = []
    for t in timesteps:
        if t >= config.train_steps:
            raise InputError(f"timestep {t}; the schedule has 0..{config.train_steps - 1}")
        a = table[t] if t >= 0 else final
        shrunk = 1.0 + (config.x0_scale - 1.0) * min(max(t, 0) / (config.x0_scale_steps - 1), 1.0)
        # the reference takes 1 - a and the roots in float32, which departs from these by a few 1e-8 of the level
        levels.append(Level(a**0.5 * shrunk, (1.0 - a) ** 0.5))
    return levels
