"""Sheets of samples during training, for a few captions of the validation split."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.sparse_control import adding
from anyi2v.denoiser import noise
from anyi2v.diffusion import guided, sampling_pairs
from anyi2v.micro.training.architecture import sparse_control
from anyi2v.micro.training.lessons import MICRO, Lessons
from anyi2v.micro.training.objectives import Stage
from anyi2v.micro.training.training_data import known_clip_batch
from anyi2v.reports.plots import contact_sheet
from anyi2v.samplers import ddim
from anyi2v.taps import no_tap

STEPS, GUIDANCE_SCALE = 12, 3.0


@torch.no_grad()
def sample(
    backbone: Backbone,
    captions: Sequence[str],
    frames: int,
    *,
    condition: Tensor | None = None,
    steps: int = STEPS,
    scale: float = GUIDANCE_SCALE,
    eta: float = 1.0,
    seed: int = 0,
) -> Float[Tensor, "b f c h w"]:
    """Sample latents for captions with the noise of `seed`; a single frame is sampled with the temporal layers off.

    With a `condition`, the backbone's sparse control network is active.
    """
    generator, video = torch.Generator().manual_seed(seed), frames > 1
    factor, channels = backbone.config.vae.factor, backbone.config.vae.latent_channels
    shape = (len(captions), frames, channels, backbone.config.height // factor, backbone.config.width // factor)
    z = torch.randn(shape, generator=generator).to(backbone.device)
    text = backbone.encode_text([""] * len(captions) + list(captions))
    for step in sampling_pairs(backbone.config.schedule, steps):
        tap = no_tap
        if condition is not None:
            tap = adding(sparse_control(backbone)(torch.cat([condition, condition]), step.t, text, temporal=video))
        uncond, cond = backbone.unet(torch.cat([z, z]), step.t, text, temporal=video, tap=tap).chunk(2)
        predicted = noise(guided(uncond, cond, scale), z, step.t, backbone.config.schedule)
        z = ddim(z, predicted, step, eta=eta, generator=generator)
    return z.cpu()


@torch.no_grad()
def sample_sheet(backbone: Backbone, stage: Stage, count: int, lessons: Lessons = MICRO) -> UInt8[np.ndarray, "h w 3"]:
    """Draw `count` samples with their captions, the first of the validation split.

    Stage "images" shows pictures, "motion" clips of photos, "vae" images and their reconstructions, and "control" the
    known first frame and clips of photos. All but "vae" are shown by a preview of their latents, because the
    autoencoder is trained after the UNet.
    """
    frames = backbone.config.frames
    if stage == "control":
        condition, _, captions = known_clip_batch("validation", 0, count)
        clips = sample(backbone, captions, frames, condition=condition)
        shown = condition[range(count), condition[:, :, -1, 0, 0].argmax(1), :-1]
        pictures = lessons.preview(torch.cat([shown[:, None], clips], dim=1))
        return contact_sheet(dict(zip(_numbered(captions), pictures, strict=True)))
    video = stage == "motion"
    images, captions, _ = (lessons.clips if video else lessons.images)("validation", 0, count)
    if stage == "vae":
        latents, _ = backbone.vae.moments((2 * images - 1).to(backbone.device))
        decoded = (backbone.vae.decode(latents, chunk=count) / 2 + 0.5).clamp(0, 1).cpu()
        pairs = torch.stack([images, decoded], dim=1)
        return contact_sheet(dict(zip(_numbered(captions), pairs, strict=True)), heads=("image", "decoded"))
    pictures = lessons.preview(sample(backbone, captions, frames if video else 1))
    return contact_sheet(dict(zip(_numbered(captions), pictures, strict=True)))


def _numbered(captions: Sequence[str]) -> list[str]:
    return [f"{i + 1}: {text}" for i, text in enumerate(captions)]
