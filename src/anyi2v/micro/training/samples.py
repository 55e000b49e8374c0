"""Sheets of samples during training, for a few captions of the validation split."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.sparse_control import adding
from anyi2v.diffusion import guided, sampling_pairs
from anyi2v.micro.training.architecture import sparse_control
from anyi2v.micro.training.objectives import Stage
from anyi2v.micro.training.training_data import known_clip_batch, preview
from anyi2v.micro.world.modalities import caption, render
from anyi2v.micro.world.world import FRAMES, MODALITIES, Modality, sample_scene, split_generator, still
from anyi2v.reports.plots import contact_sheet
from anyi2v.samplers import ddim
from anyi2v.taps import no_tap

STEPS, GUIDANCE_SCALE = 12, 3.0


@torch.no_grad()
def sample(
    backbone: Backbone, captions: Sequence[str], frames: int, *, video: bool, condition: Tensor | None = None
) -> Float[Tensor, "b f c h w"]:
    """Sample latents for captions, always with the same noise; `video` turns the temporal layers on.

    With a `condition`, the backbone's sparse control network is active.
    """
    generator = torch.Generator().manual_seed(0)
    factor, channels = backbone.config.vae.factor, backbone.config.vae.latent_channels
    shape = (len(captions), frames, channels, backbone.config.height // factor, backbone.config.width // factor)
    z = torch.randn(shape, generator=generator).to(backbone.device)
    text = backbone.encode_text([""] * len(captions) + list(captions))
    for step in sampling_pairs(backbone.config.schedule, STEPS):
        tap = no_tap
        if condition is not None:
            tap = adding(sparse_control(backbone)(torch.cat([condition, condition]), step.t, text, temporal=video))
        uncond, cond = backbone.unet(torch.cat([z, z]), step.t, text, temporal=video, tap=tap).chunk(2)
        z = ddim(z, guided(uncond, cond, GUIDANCE_SCALE), step, eta=1.0, generator=generator)
    return z.cpu()


@torch.no_grad()
def sample_sheet(backbone: Backbone, stage: Stage, count: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw `count` samples with their captions.

    Stage "images" shows pictures in all modalities in turn, "motion" clips of photos, "vae" images and their
    reconstructions, and "control" the known first frame and clips of photos. All but "vae" are shown by the mean
    colours of their latents, because the autoencoder is trained after the UNet.
    """
    if stage == "control":
        condition, _, captions = known_clip_batch("validation", 0, count)
        clips = sample(backbone, captions, FRAMES, video=True, condition=condition)
        shown = condition[range(count), condition[:, :, -1, 0, 0].argmax(1), :-1]
        names = [f"{i + 1}: {text}" for i, text in enumerate(captions)]
        pictures = preview(torch.cat([shown[:, None], clips], dim=1))
        return contact_sheet(dict(zip(names, pictures, strict=True)))
    scenes = [sample_scene(split_generator("validation", i)) for i in range(count)]
    modalities: list[Modality] = [
        MODALITIES[i % len(MODALITIES)] if stage != "motion" else "photo" for i in range(count)
    ]
    # a clip's caption may say that the object leaves; a picture's caption only describes its content
    shown = [scene if stage == "motion" else still(scene, 0) for scene in scenes]
    captions = [caption(scene, modality) for scene, modality in zip(shown, modalities, strict=True)]
    names = [f"{i + 1}: {text}" for i, text in enumerate(captions)]
    if stage == "vae":
        images = torch.stack([render(scene, modality)[0] for scene, modality in zip(shown, modalities, strict=True)])
        latents, _ = backbone.vae.moments((2 * images - 1).to(backbone.device))
        decoded = (backbone.vae.decode(latents, chunk=count) / 2 + 0.5).clamp(0, 1).cpu()
        pairs = torch.stack([images, decoded], dim=1)
        return contact_sheet(dict(zip(names, pairs, strict=True)), heads=("image", "decoded"))
    video = stage == "motion"
    pictures = preview(sample(backbone, captions, FRAMES if video else 1, video=video))
    return contact_sheet(dict(zip(names, pictures, strict=True)))
