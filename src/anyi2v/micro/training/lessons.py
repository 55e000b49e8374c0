"""What a backbone learns: its configuration, and training batches as functions of a sample's number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from anyi2v.backbone.config import BackboneConfig
from anyi2v.micro.training.architecture import CONFIG
from anyi2v.micro.training.training_data import analytic_latents, clip_batch, image_batch, pair_batch, preview
from anyi2v.micro.world.world import Split


class Pictures(NamedTuple):
    """A batch of single pictures or clips."""

    images: Float[Tensor, "n *f 3 h w"]
    """In [0, 1]."""
    captions: list[str]
    weights: Float[Tensor, "n f 1 h2 w2"] | None = None
    """Weights of the loss per latent cell; None: equal."""


@dataclass(frozen=True)
class Lessons:
    """The material of a backbone's training.

    `images`, `pairs` and `clips` return the samples `first` to `first + count - 1` of a split, given as (split, first,
    count); each depends only on its number.
    """

    config: BackboneConfig
    images: Callable[[Split, int, int], Pictures]
    """Single pictures in all modalities."""
    pairs: Callable[[Split, int, int], tuple[Tensor, Tensor, list[str]]]
    """Pictures in any modality, photos of the same layout in another style, and the captions of the photos."""
    clips: Callable[[Split, int, int], Pictures]
    """Clips of photos."""
    latents: Callable[[Tensor], Tensor]
    """(images in [0, 1]) -> latents that need no network; the autoencoder learns to compute and to invert them."""
    preview: Callable[[Tensor], Tensor]
    """(latents) -> approximate images in [0, 1], for sheets of samples."""
    timesteps: Callable[[int, Generator], Int[Tensor, " n"]]
    """(count, generator) -> timesteps of single pictures."""
    jitter: tuple[float, float] = (0.05, 0.05)
    """Smallest and largest standard deviation of the noise on latents from which the decoder learns to restore images;
    sampled latents are not free of noise."""


def uniform_timesteps(count: int, generator: Generator) -> Int[Tensor, " n"]:
    """Draw any of the 1000 timesteps."""
    return torch.randint(1000, (count,), generator=generator)


def _images(split: Split, first: int, count: int) -> Pictures:
    return Pictures(*image_batch(split, first, count))


def _clips(split: Split, first: int, count: int) -> Pictures:
    return Pictures(*clip_batch(split, first, count))


MICRO = Lessons(CONFIG, _images, pair_batch, _clips, analytic_latents, preview, uniform_timesteps)
"""The synthetic world of flat shapes."""
