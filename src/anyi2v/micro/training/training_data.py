"""Training batches of the synthetic world as functions of the step, and analytic target latents of the VAE."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.sparse_control import masked
from anyi2v.micro.world.modalities import caption, render
from anyi2v.micro.world.world import (
    BACKGROUND_COLOURS,
    MODALITIES,
    Modality,
    Scene,
    Split,
    choice,
    other_colours,
    recoloured,
    sample_scene,
    split_generator,
    still,
    uniform,
)

PHOTO_SHARE = 0.55
"""Share of photos among images; the other modalities share the rest evenly."""
EMPTY_SHARE = 0.1
"""Share of empty captions, for classifier-free guidance."""


def _frame(split: Split, index: int) -> tuple[Scene, torch.Generator]:
    """Sample a random frame of a random scene; also return the generator for further choices."""
    generator = split_generator(split, index)
    scene = sample_scene(generator)
    return still(scene, int(torch.randint(scene.frames, (), generator=generator))), generator


def image_batch(split: Split, first: int, count: int) -> tuple[Float[Tensor, "n 3 h w"], list[str]]:
    """Return the single frames `first` to `first + count - 1` of a split, in [0, 1], and their captions."""
    images, captions = [], []
    for index in range(first, first + count):
        scene, generator = _frame(split, index)
        photo = uniform(generator, 0, 1) < PHOTO_SHARE
        modality: Modality = "photo" if photo else choice(generator, MODALITIES[1:])
        empty = uniform(generator, 0, 1) < EMPTY_SHARE
        images.append(render(scene, modality))
        captions.append("" if empty else caption(scene, modality))
    return torch.cat(images), captions


def pair_batch(
    split: Split, first: int, count: int
) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"], list[str]]:
    """Return single frames in any modality, the same as photos in other colours, and the captions of the photos."""
    conditions, photos, captions = [], [], []
    for index in range(first, first + count):
        scene, generator = _frame(split, index)
        conditions.append(render(scene, choice(generator, MODALITIES)))
        background = choice(generator, tuple(BACKGROUND_COLOURS))
        scene = recoloured(scene, other_colours(generator, scene, unseen_pair=False), background)
        photos.append(render(scene, "photo"))
        captions.append(caption(scene, "photo"))
    return torch.cat(conditions), torch.cat(photos), captions


def clip_batch(split: Split, first: int, count: int) -> tuple[Float[Tensor, "n f 3 h w"], list[str]]:
    """Return clips of photos, numbered like the images, in [0, 1], and their captions."""
    clips, captions = [], []
    for index in range(first, first + count):
        generator = split_generator(split, index)
        scene = sample_scene(generator)
        empty = uniform(generator, 0, 1) < EMPTY_SHARE
        clips.append(render(scene, "photo"))
        captions.append("" if empty else caption(scene, "photo"))
    return torch.stack(clips), captions


def known_clip_batch(
    split: Split, first: int, count: int
) -> tuple[Float[Tensor, "n f 5 h2 w2"], Float[Tensor, "n f 3 h w"], list[str]]:
    """What is known of a frame or two in any modality, the clips as photos in other colours, and their captions.

    Known is frame 1 in two clips of three, else any frame, and in half of those another one too.
    """
    conditions, clips, captions = [], [], []
    for index in range(first, first + count):
        generator = split_generator(split, index)
        scene = sample_scene(generator)
        modality: Modality = choice(generator, MODALITIES)
        known = {0}
        if uniform(generator, 0, 1) < 1 / 3:
            known = set(torch.randint(scene.frames, (2,), generator=generator).tolist()[: choice(generator, (1, 2))])
        images = {frame: analytic_latents(render(still(scene, frame), modality))[0] for frame in sorted(known)}
        conditions.append(masked(images, scene.frames)[0])
        background = choice(generator, tuple(BACKGROUND_COLOURS))
        scene = recoloured(scene, other_colours(generator, scene, unseen_pair=False), background)
        clips.append(render(scene, "photo"))
        captions.append("" if uniform(generator, 0, 1) < EMPTY_SHARE else caption(scene, "photo"))
    return torch.stack(conditions), torch.stack(clips), captions


def analytic_latents(images: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 4 h2 w2"]:
    """Compute latents without a network: mean colour and contrast of each 2x2 cell.

    They are scaled to a standard deviation of about one. The UNet is trained on them, independently of the autoencoder,
    whose encoder learns to compute them and whose decoder learns to invert them.
    """
    cells = images.unfold(-2, 2, 2).unfold(-2, 2, 2).flatten(-2)
    colour = 2.2 * (cells.mean(-1) - 0.3)
    contrast = 12 * cells.mean(-4).std(-1) - 0.3
    return torch.cat([colour, contrast[..., None, :, :]], dim=-3)


def preview(latents: Float[Tensor, "*n 4 h w"]) -> Float[Tensor, "*n 3 h2 w2"]:
    """Convert the mean colours of analytic latents to an image in [0, 1]."""
    colour = (latents[..., :3, :, :] / 2.2 + 0.3).clamp(0, 1)
    return colour.repeat_interleave(2, -1).repeat_interleave(2, -2)
