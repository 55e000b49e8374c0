"""Noise schedules, timesteps, and the DDIM formula that moves a latent between two noise levels.

Pure functions of a `ScheduleConfig`; there is no scheduler object and no state. Levels are Python floats derived from
the float32 table `alphas_cumprod` that the networks were trained with.

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

    The signal is sqrt(alphas_cumprod), multiplied by a factor below 1 on some backbones (`ScheduleConfig.x0_scale`).
    """

    signal: float
    noise: float


CLEAN = Level(1.0, 0.0)
"""The noise-free level; `transport(z, eps, at, CLEAN)` is the predicted x0."""


@dataclass(frozen=True)
class Step:
    """One sampling or inversion step: the network is evaluated at timestep `t`, and the latent moves from `at` to
    `to`."""

    index: int
    """Position of the step, from 0."""
    t: int
    at: Level
    to: Level


def alphas_cumprod(config: ScheduleConfig) -> Float[Tensor, "t"]:
    """Return the cumulative product of 1 - beta per training timestep, decreasing from 1, as float32 on the CPU.

    `config.curve` "linear" spaces the betas evenly, "scaled_linear" their square roots.
    """
    start, end, power = config.beta_start, config.beta_end, 1
    if config.curve == "scaled_linear":
        start, end, power = start**0.5, end**0.5, 2
    betas = torch.linspace(start, end, config.train_steps, dtype=torch.float32, device="cpu") ** power
    return torch.cumprod(1.0 - betas, dim=0)


def level(config: ScheduleConfig, t: int) -> Level:
    """Return the noise level of timestep `t`; any negative `t` means the final level, see `final_alpha_one`.

    Raises InputError for t >= train_steps.
    """
    return _levels(config, [t])[0]


def sampling_timesteps(config: ScheduleConfig, steps: int, *, spacing: Spacing | None = None) -> list[int]:
    """Return the timesteps at which a sampler with `steps` steps evaluates the network, descending.

    "leading" (the published code) uses an integer stride from `steps_offset` upwards: 961, 921, ..., 1 for 25 of 1000
    steps. "uniform" takes every timestep at that stride, so possibly more than `steps`. "trailing" includes the last
    timestep, "linspace" includes both ends.

    Raises InputError if `steps` is not in 1..train_steps, or if the offset moves the first timestep past the end of the
    schedule.
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
            f"sampling steps = {steps} with steps_offset = {config.steps_offset} starts at timestep {first}, "
            f"but the last one is {total - 1}; use fewer steps, or steps_offset at most "
            f"{total - 1 - (steps - 1) * stride}"
        )
    return list(range(first, config.steps_offset - 1, -stride))


def sampling_pairs(config: ScheduleConfig, steps: int, *, spacing: Spacing | None = None) -> list[Step]:
    """Return the steps of a DDIM sampler, from noise to image; each moves to the next timestep's level.

    The last step moves to t - train_steps // steps, as in diffusers. This is negative, hence the final level, unless
    there are so many steps that the stride does not exceed `steps_offset`.
    """
    timesteps = sampling_timesteps(config, steps, spacing=spacing)
    after = [*timesteps[1:], timesteps[-1] - config.train_steps // steps]
    return _steps(timesteps, _levels(config, timesteps), _levels(config, after))


def inversion_timesteps(config: ScheduleConfig, *, until: int, stride: int = 1) -> list[int]:
    """Return the timesteps of DDIM inversion, ascending: steps_offset, steps_offset + stride, ..., `until`.

    The published code has stride 1 and until 201, that is 201 network calls.

    Raises InputError if `until` is outside the schedule or not reached with `stride`; the message lists the nearest
    strides that reach it.
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
            f"it must divide {span}; the nearest that do are {', '.join(map(str, near))}"
        )
    return list(range(start, until + 1, stride))


def inversion_pairs(config: ScheduleConfig, *, until: int, stride: int = 1) -> list[Step]:
    """Return the steps of DDIM inversion, from image to noise.

    The network is evaluated at t on the latent at level t - stride, which then moves to the level of t (diffusers'
    DDIMInverseScheduler). A negative t - stride means the final level; with stride 1 and offset 1 the image's latent is
    therefore treated as having the level of timestep 0, as in the published code.
    """
    timesteps = inversion_timesteps(config, until=until, stride=stride)
    before = [t - stride for t in timesteps]
    return _steps(timesteps, _levels(config, before), _levels(config, timesteps))


def transport(
    z: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], at: Level, to: Level
) -> Float[Tensor, "*shape"]:
    """Move `z` from level `at` to level `to` along the noise prediction `eps` (Song et al. Eq. 12, sigma 0).

    If `to` has less noise this is a DDIM step, if it has more the inverse; for `CLEAN` it returns the predicted x0.
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
    """Apply `transport` and add fresh noise (Song et al. Eq. 12 with sigma of Eq. 16): eta 0 is DDIM, eta 1 DDPM.

    Raises InputError for eta outside 0..1, and for eta > 0 without a generator or if `to` has more noise.
    """
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta = {eta}; choose 0 (DDIM, deterministic) to 1 (DDPM)")
    if eta == 0.0:
        return transport(z, eps, at, to)
    if generator is None:
        raise InputError(f"eta = {eta} adds random noise: pass generator=torch.Generator(), or set eta = 0")
    if to.noise > at.noise:
        raise InputError(f"eta = {eta} needs a step to less noise, but it goes from {at.noise} to {to.noise}")
    # alphas_cumprod is 1 - noise^2, regardless of the factor on the signal
    fresh = (1.0 - (1.0 - at.noise**2) / (1.0 - to.noise**2)) ** 0.5 * to.noise / at.noise
    sigma = eta * fresh
    kept = max(to.noise**2 - sigma**2, 0.0) ** 0.5
    noise = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
    return transport(z, eps, at, Level(to.signal, kept)) + sigma * noise.to(z.device)


def add_noise(x0: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], at: Level) -> Float[Tensor, "*shape"]:
    """Return `x0` noised to level `at` with the noise `eps`."""
    return at.signal * x0 + at.noise * eps


def noise_from_v(v: Float[Tensor, "*shape"], z: Float[Tensor, "*shape"], at: Level) -> Float[Tensor, "*shape"]:
    """Return the noise in `z`, given v = signal * eps - noise * x0 (Salimans & Ho 2022, app. D)."""
    return (at.signal * v + at.noise * z) / (at.signal**2 + at.noise**2)


def guided(uncond: Float[Tensor, "*shape"], cond: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """Combine predictions by classifier-free guidance (Ho & Salimans 2022): scale 0 is unconditional, 1 conditional."""
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
        # the reference computes 1 - a and the roots in float32, a relative difference of a few 1e-8
        levels.append(Level(a**0.5 * shrunk, (1.0 - a) ** 0.5))
    return levels
