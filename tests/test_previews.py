"""Previews of latents."""

import torch

from anyi2v.checkpoints.checkpoint import load
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.reports.previews import fit_preview

from .networks import tiny_backbone


def test_a_preview_shows_the_colours_of_the_image() -> None:
    vae, image = load("micro").vae, make_case(1003, "photo").image
    with torch.no_grad():
        z = vae.encode(2 * image[None] - 1)
    shown = fit_preview(vae)(z[:, None])[0, 0]
    assert shown.shape == (3, *z.shape[-2:])
    small = torch.nn.functional.adaptive_avg_pool2d(image, z.shape[-1])
    # a linear map of four numbers: measured 0.36 of the distance that one colour for all has
    assert (shown - small).abs().mean() < 0.6 * (small - small.mean((1, 2), keepdim=True)).abs().mean()


def test_previews_are_pictures_and_always_the_same() -> None:
    vae = tiny_backbone().vae
    z = 5 * torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = (fit_preview(vae)(z) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1, 3, 3, 8, 8) and first.min() >= 0 and first.max() <= 1
