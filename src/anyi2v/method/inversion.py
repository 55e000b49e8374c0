"""Section 3.2: features of the condition image, from its DDIM inversion with the temporal layers off."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.denoiser import ImageDenoiser
from anyi2v.diffusion import Level, Step, add_noise, transport
from anyi2v.execution.grad_modes import own_modes
from anyi2v.guard import all_finite, failure
from anyi2v.taps import Pass

CHECK_EVERY = 16
"""Passes after which the latents are checked for NaN: a GPU would be idle after each check."""


def no_report(count: int) -> None:
    """The default progress report: none."""


@own_modes
@torch.no_grad()
def invert(
    network: ImageDenoiser,
    latent: Float[Tensor, "b 1 c h w"],
    steps: Sequence[Step],
    names: Iterable[str],
    *,
    report: Callable[[int], object] = no_report,
) -> dict[str, Tensor]:
    """The tensors at the hook points `names` in the UNet's pass at the last timestep of `steps` (t_alpha).

    The latent climbs the noise levels by the inverse DDIM step: the UNet is evaluated at t on the latent of the level
    before, then the latent moves to the level of t. No guidance, and every temporal layer is off, so that the image
    stays a single image. The last pass ends at the last wanted point. Reference: FudanCVL/AnyI2V, `inversion` with a
    999-step inverse schedule.

    Args:
        network: `Denoiser.images` for as many passes as there are steps.
        latent: clean latents of the condition images.
        steps: from `diffusion.inversion_pairs`.
        names: hook points to record; each tensor has a frame axis of length one.
        report: called with the number of passes just done, for a progress bar.

    Raises:
        HookError: an unknown name.
        NumericsError: the latent or a recorded feature is not finite.
    """
    z = latent
    pending: list[tuple[int, Tensor, Tensor]] = []
    for step in steps[:-1]:
        before, z = z, transport(z, network(z, step.t), step.at, step.to)
        pending.append((step.t, before, z))
        if len(pending) == CHECK_EVERY:
            _check_latents(pending, network)
            pending = []
        report(1)
    _check_latents(pending, network)
    features = network.features(tuple(names), z, steps[-1].t)
    report(1)
    return features


@own_modes
@torch.no_grad()
def noise_directly(
    network: ImageDenoiser,
    latent: Float[Tensor, "b 1 c h w"],
    noise: Float[Tensor, "b 1 c h w"],
    at: Level,
    t: int,
    names: Iterable[str],
) -> dict[str, Tensor]:
    """The same features of the latent with random noise of the level `at`, that of timestep `t`: no inversion.

    The ablation of the inversion; the noise is not the one that would lead the sampler back to the image.
    """
    return network.features(tuple(names), add_noise(latent, noise, at), t)


@torch.no_grad()
def round_trip(
    network: ImageDenoiser, latent: Float[Tensor, "b 1 c h w"], steps: Sequence[Step]
) -> Float[Tensor, "b 1 c h w"]:
    """The latent after inversion along `steps` and DDIM sampling back along the same steps.

    No guidance, temporal layers off. Each step back evaluates the network at the timestep it leaves.
    """
    z = latent
    for step in steps:
        z = transport(z, network(z, step.t), step.at, step.to)
    for step in reversed(steps):
        z = transport(z, network(z, step.t), step.to, step.at)
    return z


def _check_latents(passes: Sequence[tuple[int, Tensor, Tensor]], network: ImageDenoiser) -> None:
    """Raises NumericsError for the first pass, given as timestep and latents before and after, that gave NaN."""
    if all_finite(*(after for *_, after in passes)):
        return
    t, before, _ = next(made for made in passes if not all_finite(made[2]))
    raise failure("the latent", Pass("inversion", t), culprit=network.culprit(before, t), dtype=network.dtype)
