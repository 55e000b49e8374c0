"""Training batches of the scenes as functions of the sample's number, and their latents."""

from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from anyi2v.backbone.config import (
    BackboneConfig,
    MotionConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from anyi2v.micro.training.lessons import Lessons, Pictures
from anyi2v.micro.world.world import Split, choice, uniform
from benchmarks.scenes.codec import PatchPCA, fit
from benchmarks.scenes.drawing import MODALITIES, Modality, Sprites, caption, painted, render, sprites
from benchmarks.scenes.scenes import FRAMES, SIZE, WORDS, Scene, restyled, sample_scene, split_generator, still

CHANNELS, FACTOR, WHITENING = 12, 4, 0.75
"""Latent channels, pixels per cell, and how far the channels' deviations are made equal; see `PatchPCA`."""
PHOTO_SHARE = 0.6
"""Share of photos among single pictures; the other modalities share the rest evenly."""
EMPTY_SHARE = 0.1
"""Share of empty captions, for classifier-free guidance."""
OBJECT_WEIGHT = 3.0
"""Additional loss weight, on top of 1, in the cells of the objects and around them."""
JITTER = 0.02, 0.25
"""Standard deviation of the noise that the decoder removes."""
OUTLINES = 150, 700
"""Timesteps that determine outlines; half of a batch of single pictures is drawn from this range."""

CONFIG = BackboneConfig(
    name="scenes",
    unet=UNetConfig(
        channels=(32, 64, 96, 96),
        attention=(False, True, True, False),
        latent_channels=CHANNELS,
        context_dim=64,
        heads=4,
        groups=16,
        temporal=MotionConfig(heads=4, groups=16, max_frames=32),
    ),
    vae=VAEConfig(channels=(16, 32, 48), layers=1, groups=1, scale=1.0, latent_channels=CHANNELS),
    text=TextConfig(width=64, layers=2, heads=4, mlp_ratio=2.0, length=24, vocab_size=len(WORDS), words=WORDS),
    schedule=ScheduleConfig(prediction="v"),
    height=SIZE,
    width=SIZE,
    frames=FRAMES,
    fps=8,
)


@cache
def _sprites(package: Path) -> Sprites:
    return sprites(package)


@cache
def _codec(package: Path) -> PatchPCA:
    """Fit the latents' components to pictures, half of them photos."""
    pictures, _, _ = images(package, "validation", 100_000, 400)
    return fit(2 * pictures - 1, FACTOR, CHANNELS, WHITENING)


def _frame(split: Split, index: int) -> tuple[Scene, Generator]:
    generator = split_generator(split, index)
    scene = sample_scene(generator)
    return still(scene, int(torch.randint(scene.frames, (), generator=generator))), generator


def images(package: Path, split: Split, first: int, count: int) -> Pictures:
    """Return single frames in [0, 1] in all modalities, captions, and weights of the loss."""
    known, pictures, captions, weights = _sprites(package), [], [], []
    for index in range(first, first + count):
        scene, generator = _frame(split, index)
        photo = uniform(generator, 0, 1) < PHOTO_SHARE
        modality: Modality = "photo" if photo else choice(generator, MODALITIES[1:])
        pictures.append(render(scene, modality, known)[0])
        captions.append("" if uniform(generator, 0, 1) < EMPTY_SHARE else caption(scene, modality))
        weights.append(near(painted(scene, known).alpha.amax(0)[0]))
    return Pictures(torch.stack(pictures), captions, torch.stack(weights)[:, None])


def near(alpha: Float[Tensor, "1 h w"]) -> Float[Tensor, "1 h2 w2"]:
    """Return the weights of latent cells: higher at the objects and around them; their mean is one."""
    cells = F.max_pool2d(F.max_pool2d(alpha, FACTOR), 3, stride=1, padding=1)
    weights = 1 + OBJECT_WEIGHT * cells
    return weights / weights.mean()


def pairs(package: Path, split: Split, first: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return single frames in any modality, the same objects as photos in other styles, and captions of the photos."""
    known, conditions, photos, captions = _sprites(package), [], [], []
    for index in range(first, first + count):
        scene, generator = _frame(split, index)
        conditions.append(render(scene, choice(generator, MODALITIES), known)[0])
        scene = restyled(generator, scene)
        photos.append(render(scene, "photo", known)[0])
        captions.append(caption(scene, "photo"))
    return torch.stack(conditions), torch.stack(photos), captions


def clips(package: Path, split: Split, first: int, count: int) -> Pictures:
    """Return clips of photos in [0, 1], captions, and weights of the loss."""
    known, found, captions, weights = _sprites(package), [], [], []
    for index in range(first, first + count):
        generator = split_generator(split, index)
        scene = sample_scene(generator)
        found.append(render(scene, "photo", known))
        captions.append("" if uniform(generator, 0, 1) < EMPTY_SHARE else caption(scene, "photo"))
        weights.append(torch.stack([near(alpha) for alpha in painted(scene, known).alpha.amax(0)]))
    return Pictures(torch.stack(found), captions, torch.stack(weights))


def latents(package: Path, pictures: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n c h2 w2"]:
    """Return the components of the pictures' patches."""
    found = _codec(package).encode(2 * pictures.flatten(0, -4) - 1)
    return found.unflatten(0, pictures.shape[:-3])


def preview(package: Path, found: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n 3 h2 w2"]:
    """Return the pictures in [0, 1] of latents."""
    pictures = _codec(package).decode(found.flatten(0, -4)) / 2 + 0.5
    return pictures.clamp(0, 1).unflatten(0, found.shape[:-3])


def timesteps(count: int, generator: Generator) -> Int[Tensor, " n"]:
    """Draw timesteps, half of them from those that determine outlines."""
    anywhere, there = (torch.randint(*r, (count,), generator=generator) for r in ((0, 1000), OUTLINES))
    return torch.where(torch.arange(count) % 2 == 0, anywhere, there)


def lessons(package: Path) -> Lessons:
    """Return what the backbone "scenes" learns from, given the unpacked npm package @lobehub/fluent-emoji-3d."""
    return Lessons(
        config=CONFIG,
        images=partial(images, package),
        pairs=partial(pairs, package),
        clips=partial(clips, package),
        latents=partial(latents, package),
        preview=partial(preview, package),
        timesteps=timesteps,
        jitter=JITTER,
    )
