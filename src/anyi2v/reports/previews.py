"""Previews of latents as small pictures, by a linear map instead of the autoencoder."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.vae import AutoencoderKL

SAMPLES, CELLS = 16, 8


@dataclass(frozen=True)
class Preview:
    """A linear map of each latent cell to one pixel, much faster than the decoder; see `fit_preview`."""

    weight: Float[Tensor, "c 3"]
    bias: Float[Tensor, "3"]

    def __call__(self, z: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b 3 h w"]:
        """Convert latents to pictures in [0, 1], on the CPU."""
        rgb = z.detach().float().cpu().movedim(-3, -1) @ self.weight + self.bias
        return rgb.movedim(-1, -3).clamp(0, 1)


@torch.no_grad()
def fit_preview(vae: AutoencoderKL) -> Preview:
    """Fit the affine map from a latent cell to the mean colour of its pixels by least squares.

    The training data are encoded images of random colours, with a fixed seed.
    """
    generator, c = torch.Generator().manual_seed(0), vae.config.latent_channels
    colours = torch.rand(SAMPLES, 3, CELLS // 2, CELLS // 2, generator=generator)
    images = F.interpolate(colours, scale_factor=2 * vae.config.factor, mode="bilinear")
    device = next(vae.parameters()).device
    latents = vae.encode(2 * images.to(device) - 1).float().cpu()
    pixels = F.adaptive_avg_pool2d(images, CELLS)
    rows = torch.cat([latents.movedim(1, -1).reshape(-1, c), torch.ones(SAMPLES * CELLS**2, 1)], 1)
    solution = torch.linalg.lstsq(rows, pixels.movedim(1, -1).reshape(-1, 3)).solution
    return Preview(solution[:-1], solution[-1])
