"""Section 3.2: features of the condition image, from its DDIM inversion with the temporal layers off."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.graphs import graphed
from anyi2v.backbone.packed import packed
from anyi2v.backbone.unet import UNet, record
from anyi2v.diffusion import add_noise, inversion_pairs, level, transport
from anyi2v.grad_modes import own_modes
from anyi2v.method.guard import all_finite, bad_layer, failure, first_bad_layer
from anyi2v.taps import Pass, Taps, no_taps

ASK_EVERY = 16
"""Passes after which the latents are asked whether they are finite: a GPU would stand still after each."""
PACK_FROM = 64
"""Passes from which on packing the weights gains time; it takes that of 5 passes and saves a sixth of each."""


def no_report(count: int) -> None:
    """The default progress report: none."""


@own_modes
@torch.no_grad()
def invert(
    unet: UNet,
    latent: Float[Tensor, "b 1 c h w"],
    text: Float[Tensor, "b l d"],
    schedule: ScheduleConfig,
    names: Iterable[str],
    *,
    until: int,
    stride: int = 1,
    fps: float | None = None,
    taps: Taps = no_taps,
    low_memory: bool = False,
    report: Callable[[int], object] = no_report,
) -> dict[str, Tensor]:
    """The tensors at the hook points `names` in the UNet's pass at timestep `until` (t_alpha).

    The latent climbs the noise levels t = 1, 1 + stride, ..., by the inverse DDIM step: the UNet is evaluated
    at t on the latent of the level before, then the latent moves to the level of t. No guidance, and every
    temporal layer is passed by, so that the image stays a single image. The pass at `until` ends at the last
    wanted point. Reference: FudanCVL/AnyI2V, `inversion` with a 999-step inverse schedule.

    Args:
        latent: clean latents of the condition images.
        text: states of the prompt that the video will be made with.
        names: hook points to record; each tensor has a frame axis of length one.
        until: t_alpha of the paper, a training timestep.
        stride: 1 is the published schedule; larger strides take fewer UNet passes.
        fps: for a UNet that embeds the frame rate: that of the video.
        taps: gives the tap of each pass.
        low_memory: keep the weights once; otherwise the many passes on a CPU read them from a faster copy.
        report: told how many passes are done, for a progress bar.

    Raises:
        InputError: the stride does not lead from 1 to `until`.
        HookError: an unknown name.
        NumericsError: the latent or a recorded feature is not finite.
    """
    names = tuple(names)
    steps, z = inversion_pairs(schedule, until=until, stride=stride), latent
    text = text.to(unet.dtype)  # once: a packed network knows it again
    if len(steps) >= PACK_FROM and not low_memory:
        unet = packed(unet)
    unet = graphed(unet)
    unasked: list[tuple[Pass, Tensor, Tensor]] = []
    for t, at, to in steps:
        here = Pass("inversion", t)
        if len(unasked) == ASK_EVERY or t == until:
            _check_latents(unasked, unet, text, fps, taps)
            unasked = []
        if t == until:
            features = record(unet, names, z, t, text, fps=fps, temporal=False, edit=taps(here))
            report(1)
            return _checked(features, unet, z, text, fps, here, taps)
        before, z = z, transport(z, unet(z, t, text, fps=fps, temporal=False, tap=taps(here)), at, to)
        unasked.append((here, before, z))
        report(1)
    raise AssertionError("the schedule ends at `until`")


@own_modes
@torch.no_grad()
def noise_directly(
    unet: UNet,
    latent: Float[Tensor, "b 1 c h w"],
    text: Float[Tensor, "b l d"],
    schedule: ScheduleConfig,
    names: Iterable[str],
    *,
    until: int,
    noise: Float[Tensor, "b 1 c h w"],
    fps: float | None = None,
    taps: Taps = no_taps,
) -> dict[str, Tensor]:
    """The same features of the latent with random noise at the level of t_alpha: one UNet pass, no inversion.

    The ablation of the inversion; the noise is not the one that would lead the sampler back to the image.
    """
    z = add_noise(latent, noise, level(schedule, until))
    here = Pass("inversion", until)
    features = record(unet, tuple(names), z, until, text, fps=fps, temporal=False, edit=taps(here))
    return _checked(features, unet, z, text, fps, here, taps)


def _check_latents(
    passes: Sequence[tuple[Pass, Tensor, Tensor]], unet: UNet, text: Tensor, fps: float | None, taps: Taps
) -> None:
    """Raises NumericsError for the first pass, of those with the latents before and after, that made one not finite."""
    if all_finite(*(after for *_, after in passes)):
        return
    here, before, _ = next(made for made in passes if not all_finite(made[2]))
    raise failure("the latent", here, culprit=_culprit(unet, before, text, fps, here, taps), dtype=unet.dtype)


def _checked(
    features: Mapping[str, Tensor], unet: UNet, z: Tensor, text: Tensor, fps: float | None, at: Pass, taps: Taps
) -> dict[str, Tensor]:
    """Without gradient; raises NumericsError for the first, in the order of the pass, that is not finite."""
    if not all_finite(*features.values()):
        culprit = f"{bad_layer(features)}; {_culprit(unet, z, text, fps, at, taps)}"
        raise failure("a recorded feature", at, culprit=culprit, dtype=unet.dtype)
    return {name: tensor.detach() for name, tensor in features.items()}


def _culprit(unet: UNet, z: Tensor, text: Tensor, fps: float | None, at: Pass, taps: Taps) -> str:
    return first_bad_layer(partial(unet, z, at.timestep, text, fps=fps, temporal=False), taps(at))


@torch.no_grad()
def round_trip(
    unet: UNet,
    latent: Float[Tensor, "b 1 c h w"],
    text: Float[Tensor, "b l d"],
    schedule: ScheduleConfig,
    *,
    until: int,
    stride: int = 1,
    fps: float | None = None,
) -> Float[Tensor, "b 1 c h w"]:
    """The latent after inversion to the level of timestep `until` and DDIM sampling back along the same steps.

    No guidance, temporal layers off. Each step back evaluates the network at the timestep it leaves.
    """
    steps = inversion_pairs(schedule, until=until, stride=stride)
    z = latent
    for t, at, to in steps:
        z = transport(z, unet(z, t, text, fps=fps, temporal=False), at, to)
    for t, at, to in reversed(steps):
        z = transport(z, unet(z, t, text, fps=fps, temporal=False), to, at)
    return z
