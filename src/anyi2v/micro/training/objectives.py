"""Losses and trained parameters of each training stage of the micro backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.sparse_control import adding
from anyi2v.backbone.text import tokenize
from anyi2v.backbone.unet import record
from anyi2v.diffusion import alphas_cumprod
from anyi2v.method.config import MethodConfig
from anyi2v.micro.training.architecture import sparse_control
from anyi2v.micro.training.lessons import MICRO, Lessons
from anyi2v.micro.training.options import Args
from anyi2v.micro.training.training_data import EMPTY_SHARE, analytic_latents, known_clip_batch, pair_batch
from anyi2v.micro.world.world import Split
from anyi2v.numerics.adain import patch_adain
from anyi2v.taps import no_tap

OFFSET_NOISE = 0.1
"""Standard deviation of the noise's mean per frame and channel; without it the mean colour leaks through the last noise
level."""
AGREEMENT_TIMESTEPS = 100, 700
"""Range of timesteps at which features of condition images are compared."""
Stage = Literal["images", "vae", "motion", "control"]
STAGES: tuple[Stage, ...] = ("images", "vae", "motion")
"""Of a backbone, in their order; "control" is trained for a finished one."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training stage."""

    batch: int
    """Batch size per process."""
    lr: float
    loss: Callable[[Backbone, int, int, int], Tensor]
    """(backbone, first sample, count, noise seed) -> loss."""
    parameters: Callable[[Backbone], list[nn.Parameter]]


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise with a random mean per frame and channel (offset noise)."""
    offset = torch.randn(*latents.shape[:-2], 1, 1, generator=generator)
    return torch.randn(latents.shape, generator=generator) + OFFSET_NOISE * offset


def signal_power(schedule: ScheduleConfig, timesteps: Tensor) -> Float[Tensor, "b 1 1 1 1"]:
    """Return the share of the clean latents in the total power at each timestep."""
    return alphas_cumprod(schedule)[timesteps][:, None, None, None, None]


def noised(latents: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """Add noise to latents such that the signal's share of the power is `signal`."""
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def noise_loss(
    backbone: Backbone,
    latents: Tensor,
    captions: list[str],
    timesteps: Tensor,
    generator: torch.Generator,
    *,
    video: bool,
    condition: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the error of the prediction, weighted over noise levels as in Hang et al. 2023.

    The weight of the noise prediction is 0.8 min-SNR-5 + 0.2, that of v is min-SNR-5 with SNR + 1 instead of SNR.
    With a `condition`, the backbone's sparse control network is active. `weights` are those of the latent cells.

    For videos, noise predictions at high noise are weighted up, by 1 / sqrt(SNR) below an SNR of one: there the frames
    agree on positions, although the noise error is smallest there; the error of v is not.
    """
    device = backbone.device
    noise = noise_like(latents, generator).to(device)
    signal = signal_power(backbone.config.schedule, timesteps).to(device)
    z = noised(latents.to(device), noise, signal)
    text = backbone.text(tokenize(backbone.config.text, captions).to(device))
    tap = no_tap
    if condition is not None:
        control = sparse_control(backbone)
        tap = adding(control(condition.to(device), timesteps.to(device), text, temporal=video))
    predicted = backbone.unet(z, timesteps.to(device), text, temporal=video, tap=tap)
    snr = (signal / (1 - signal)).flatten()
    if backbone.config.schedule.prediction == "v":
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents.to(device)
        weight = (snr.clamp(max=5) + 1) / (snr + 1)
    else:
        target = noise
        weight = 0.8 * snr.clamp(max=5) / snr + 0.2
        if video:
            weight = weight * snr.clamp(max=1).rsqrt()
    error = (predicted.float() - target).square()
    if weights is not None:
        error = weights.to(device) * error
    return (weight * error.flatten(1).mean(1)).mean()


def agreement_loss(
    backbone: Backbone, lessons: Lessons, split: Split, first: int, count: int, generator: torch.Generator
) -> Tensor:
    """Compute the distance between features of a condition image, once injected, and those of the prompted photo.

    This is the relative squared error of the debiased residual hiddens and the queries that the method injects; the
    photo's features have no gradient. Large backbones have seen every content in every style, so that their features
    transfer between styles. The world is too small for this to emerge, and without this loss line drawings and
    silhouettes guide little.
    """
    conditions, photos, captions = lessons.pairs(split, first, count)
    timesteps = torch.randint(*AGREEMENT_TIMESTEPS, (count,), generator=generator)
    latents = lessons.latents(torch.stack([conditions, photos]))[:, :, None]
    noise = noise_like(latents[0], generator)
    condition, photo = noised(latents, noise, signal_power(backbone.config.schedule, timesteps)).to(backbone.device)
    text = backbone.text(tokenize(backbone.config.text, captions).to(backbone.device))
    hiddens, queries = MethodConfig().inject_hidden, MethodConfig().inject_query

    def features(z: Tensor) -> dict[str, Tensor]:
        names = hiddens + queries
        seen = record(backbone.unet, names, z, timesteps.to(z.device), text, temporal=False, stop="layer")
        return {name: seen[name].flatten(0, 1).float() for name in names}

    found = features(condition)
    with torch.no_grad():
        wanted = features(photo)
    injected = found | {name: patch_adain(found[name], wanted[name], 0) for name in hiddens}
    errors = [(injected[name] - x).square().mean() / x.var() for name, x in wanted.items()]
    return torch.stack(errors).mean()


def image_loss(
    backbone: Backbone, first: int, count: int, seed: int, *, lessons: Lessons = MICRO, agreement: float = 0.02
) -> Tensor:
    """Loss of stage "images": the error of the prediction, and on half as many images the modality agreement."""
    split = "train" if seed >= 0 else "validation"
    images, captions, weights = lessons.images(split, first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    timesteps = lessons.timesteps(count, generator)
    latents = lessons.latents(images)[:, None]
    error = noise_loss(backbone, latents, captions, timesteps, generator, video=False, weights=weights)
    if not agreement:
        return error
    return error + agreement * agreement_loss(backbone, lessons, split, first, max(1, count // 2), generator)


def mostly_high(count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw timesteps for videos, 60 % of them at high noise, which determines layout and motion."""
    high = torch.rand(count, generator=generator) < 0.6
    low, top = (torch.randint(a, b, (count,), generator=generator) for a, b in ((0, 1000), (400, 1000)))
    return torch.where(high, top, low)


def motion_loss(backbone: Backbone, first: int, count: int, seed: int, *, lessons: Lessons = MICRO) -> Tensor:
    """Stage "motion"."""
    clips, captions, weights = lessons.clips("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    timesteps, latents = mostly_high(count, generator), lessons.latents(clips)
    return noise_loss(backbone, latents, captions, timesteps, generator, video=True, weights=weights)


def control_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "control": two batches of single frames to each of clips, which takes three times as long.

    Single frames teach where things are, clips to carry it to the frames of which nothing is known.
    """
    split: Split = "train" if seed >= 0 else "validation"
    generator = torch.Generator().manual_seed(abs(seed))
    if seed % 3:
        conditions, photos, captions = pair_batch(split, 4 * first, 4 * count)
        empty = torch.rand(len(captions), generator=generator) < EMPTY_SHARE
        captions = ["" if none else text for none, text in zip(empty, captions, strict=True)]
        condition = analytic_latents(conditions)[:, None]
        condition = torch.cat([condition, torch.ones_like(condition[:, :, :1])], dim=2)
        latents, video = analytic_latents(photos)[:, None], False
    else:
        condition, clips, captions = known_clip_batch(split, first, count)
        latents, video = analytic_latents(clips), True
    timesteps = mostly_high(len(latents), generator)
    return noise_loss(backbone, latents, captions, timesteps, generator, video=video, condition=condition)


def vae_loss(backbone: Backbone, first: int, count: int, seed: int, *, lessons: Lessons = MICRO) -> Tensor:
    """Loss of stage "vae": the encoder regresses the analytic latents, the decoder restores images from noisy ones."""
    images = lessons.images("train" if seed >= 0 else "validation", first, count).images
    generator = torch.Generator().manual_seed(abs(seed))
    device = backbone.device
    latents = lessons.latents(images)
    noise = torch.randn(latents.shape, generator=generator)
    least, most = lessons.jitter
    jitter = (least + (most - least) * torch.rand(count, 1, 1, 1, generator=generator)) * noise
    pixels, target = (2 * images - 1).to(device), latents.to(device)
    mean, logvar = backbone.vae.moments(pixels)
    error = backbone.vae.decode(target + jitter.to(device), chunk=count) - pixels
    # the posterior is not used; a constant keeps it finite and narrow
    narrow = (logvar + 8).square().mean()
    return error.square().mean() + 0.5 * error.abs().mean() + (mean - target).square().mean() + 1e-3 * narrow


def image_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Return all parameters except the temporal layers and the autoencoder."""
    spatial = [p for name, p in backbone.unet.named_parameters() if "temporal" not in name]
    return spatial + list(backbone.text.parameters())


def motion_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Return the parameters of the temporal layers."""
    return [p for name, p in backbone.unet.named_parameters() if "temporal" in name]


def control_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """The sparse control network."""
    return list(sparse_control(backbone).parameters())


def recipes(lessons: Lessons = MICRO, agreement: float = 0.02) -> dict[Stage, Recipe]:
    """Return the recipes of all stages."""
    images = partial(image_loss, lessons=lessons, agreement=agreement)
    return {
        "images": Recipe(24, 1.6e-3, images, image_parameters),
        "motion": Recipe(4, 1.6e-3, partial(motion_loss, lessons=lessons), motion_parameters),
        "control": Recipe(3, 1.5e-3, control_loss, control_parameters),
        "vae": Recipe(8, 4e-3, partial(vae_loss, lessons=lessons), lambda backbone: list(backbone.vae.parameters())),
    }


def stages(args: Args) -> tuple[Stage, ...]:
    """What is trained."""
    if args.control:
        return ("control",)
    minutes: dict[Stage, float] = {"images": args.images, "vae": args.vae, "motion": args.motion}
    return tuple(s for s in STAGES if minutes[s] and (s == "motion" or args.spatial is None))
