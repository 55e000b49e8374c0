"""Section 3.2: features of the condition image, from its DDIM inversion with the temporal layers off."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.unet import UNet, record
from anyi2v.diffusion import add_noise, inversion_pairs, level, transport


def no_report(count: int) -> None:
    """The default progress report: none."""


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
        report: told how many passes are done, for a progress bar.

    Raises:
        InputError: the stride does not lead from 1 to `until`.
        HookError: an unknown name.
    """
    names = tuple(names)
    z = latent
    for t, at, to in inversion_pairs(schedule, until=until, stride=stride):
        if t == until:
            features = record(unet, names, z, t, text, fps=fps, temporal=False)
            report(1)
            return {name: tensor.detach() for name, tensor in features.items()}
        z = transport(z, unet(z, t, text, fps=fps, temporal=False), at, to)
        report(1)
    raise AssertionError("the schedule ends at `until`")


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
) -> dict[str, Tensor]:
    """The same features of the latent with random noise at the level of t_alpha: one UNet pass, no inversion.

    The ablation of the inversion; the noise is not the one that would lead the sampler back to the image.
    """
    z = add_noise(latent, noise, level(schedule, until))
    features = record(unet, tuple(names), z, until, text, fps=fps, temporal=False)
    return {name: tensor.detach() for name, tensor in features.items()}
