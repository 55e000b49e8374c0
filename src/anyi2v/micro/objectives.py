"""What each training stage of the micro backbone minimises, and which parameters it moves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from anyi2v.backbone.checkpoint import Backbone
from anyi2v.backbone.text import tokenize
from anyi2v.diffusion import alphas_cumprod
from anyi2v.micro.training_data import analytic_latents, clip_batch, image_batch

OFFSET_NOISE = 0.1
"""Of the noise's mean per frame and channel; without it the mean colour leaks through the last noise level."""
Stage = Literal["images", "vae", "motion"]
STAGES: tuple[Stage, ...] = ("images", "vae", "motion")


@dataclass(frozen=True)
class Recipe:
    """What differs between the stages."""

    batch: int
    """Per process."""
    lr: float
    loss: Callable[[Backbone, int, int, int], Tensor]
    """(backbone, first sample, count, noise seed) -> loss."""
    parameters: Callable[[Backbone], list[nn.Parameter]]


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise whose mean per frame and channel wanders (offset noise)."""
    offset = torch.randn(*latents.shape[:-2], 1, 1, generator=generator)
    return torch.randn(latents.shape, generator=generator) + OFFSET_NOISE * offset


def noise_loss(
    backbone: Backbone,
    latents: Tensor,
    captions: list[str],
    timesteps: Tensor,
    generator: torch.Generator,
    *,
    video: bool,
) -> Tensor:
    """Error of the noise prediction, weighted 0.8 min-SNR-5 + 0.2 (Hang et al. 2023).

    Of videos, predictions at high noise count more, by 1 / sqrt(SNR) below an SNR of one: there the frames agree on
    where things are, although the error in the noise is smallest there.
    """
    device = backbone.device
    noise = noise_like(latents, generator).to(device)
    signal = alphas_cumprod(backbone.config.schedule)[timesteps].to(device)[:, None, None, None, None]
    z = signal.sqrt() * latents.to(device) + (1 - signal).sqrt() * noise
    text = backbone.text(tokenize(backbone.config.text, captions).to(device))
    predicted = backbone.unet(z, timesteps.to(device), text, temporal=video)
    snr = (signal / (1 - signal)).flatten()
    weight = 0.8 * snr.clamp(max=5) / snr + 0.2
    if video:
        weight = weight * snr.clamp(max=1).rsqrt()
    return (weight * (predicted.float() - noise).square().flatten(1).mean(1)).mean()


def image_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "images"."""
    images, captions = image_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    timesteps = torch.randint(1000, (count,), generator=generator)
    return noise_loss(backbone, analytic_latents(images)[:, None], captions, timesteps, generator, video=False)


def motion_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "motion"; layout and motion are decided at high noise, so 60 % of the timesteps lie there."""
    clips, captions = clip_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    high = torch.rand(count, generator=generator) < 0.6
    low, top = (torch.randint(a, b, (count,), generator=generator) for a, b in ((0, 1000), (400, 1000)))
    timesteps = torch.where(high, top, low)
    return noise_loss(backbone, analytic_latents(clips), captions, timesteps, generator, video=True)


def vae_loss(backbone: Backbone, first: int, count: int, seed: int) -> Tensor:
    """Stage "vae": the encoder regresses the analytic latents, the decoder restores the image from noisy ones."""
    images, _ = image_batch("train" if seed >= 0 else "validation", first, count)
    generator = torch.Generator().manual_seed(abs(seed))
    device = backbone.device
    jitter = 0.05 * torch.randn(analytic_latents(images).shape, generator=generator)
    pixels, target = (2 * images - 1).to(device), analytic_latents(images).to(device)
    mean, logvar = backbone.vae.moments(pixels)
    error = backbone.vae.decode(target + jitter.to(device), chunk=count) - pixels
    # the posterior is not used; a constant keeps it finite and narrow
    narrow = (logvar + 8).square().mean()
    return error.square().mean() + 0.5 * error.abs().mean() + (mean - target).square().mean() + 1e-3 * narrow


def image_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """Everything but the temporal layers and the autoencoder."""
    spatial = [p for name, p in backbone.unet.named_parameters() if "temporal" not in name]
    return spatial + list(backbone.text.parameters())


def motion_parameters(backbone: Backbone) -> list[nn.Parameter]:
    """The temporal layers."""
    return [p for name, p in backbone.unet.named_parameters() if "temporal" in name]


RECIPES: dict[Stage, Recipe] = {
    "images": Recipe(24, 1.6e-3, image_loss, image_parameters),
    "motion": Recipe(4, 1.6e-3, motion_loss, motion_parameters),
    "vae": Recipe(8, 4e-3, vae_loss, lambda backbone: list(backbone.vae.parameters())),
}
