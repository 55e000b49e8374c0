"""Features of the condition image from its DDIM inversion with temporal layers off (Section 3.2)."""

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
"""Number of passes between checks of the latents for NaN; each check leaves a GPU idle for a moment."""


def no_report(count: int) -> None:
    """Report no progress; the default."""


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
    """Invert latents and record the tensors at the hook points `names` in the pass at t_alpha, the last of `steps`.

    The latent moves up the noise levels by inverse DDIM steps: the UNet is evaluated at t on the latent of the previous
    level, then the latent moves to the level of t. There is no guidance, and all temporal layers are off, because the
    input is a single image. The last pass ends at the last requested point. Reference: FudanCVL/AnyI2V, `inversion`
    with a 999-step inverse schedule.

    Args:
        network: `denoiser.images(len(steps))`.
        latent: clean latents of the condition images.
        steps: from `diffusion.inversion_pairs`.
        names: hook points to record; each tensor has a frame axis of length one.
        report: called with the number of newly finished passes, for a progress bar.

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
    """Record the features of the latent with random noise of level `at`, that of timestep `t`, instead of inverting.

    An ablation of the inversion: sampling from this noise does not lead back to the image.
    """
    return network.features(tuple(names), add_noise(latent, noise, at), t)


@torch.no_grad()
def round_trip(
    network: ImageDenoiser, latent: Float[Tensor, "b 1 c h w"], steps: Sequence[Step]
) -> Float[Tensor, "b 1 c h w"]:
    """Invert the latent along `steps`, then sample back along the same steps with DDIM.

    No guidance, temporal layers off. Each sampling step evaluates the network at the timestep it starts from.
    """
    z = latent
    for step in steps:
        z = transport(z, network(z, step.t), step.at, step.to)
    for step in reversed(steps):
        z = transport(z, network(z, step.t), step.to, step.at)
    return z


def _check_latents(passes: Sequence[tuple[int, Tensor, Tensor]], network: ImageDenoiser) -> None:
    """Raise NumericsError for the first pass, given as timestep and latents before and after, whose result is not
    finite."""
    if all_finite(*(after for *_, after in passes)):
        return
    t, before, _ = next(made for made in passes if not all_finite(made[2]))
    raise failure("the latent", Pass("inversion", t), culprit=network.culprit(before, t), dtype=network.dtype)
