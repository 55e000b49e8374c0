"""Small random networks that several tests share."""

import torch

from anyi2v.backbone.config import MotionConfig, UNetConfig
from anyi2v.backbone.unet import UNet

TINY = UNetConfig(
    channels=(8, 16, 16),
    attention=(True, True, False),
    layers=1,
    context_dim=8,
    heads=2,
    groups=4,
    temporal=MotionConfig(heads=2, groups=4, max_frames=8),
)


def tiny_unet(config: UNetConfig = TINY, seed: int = 0) -> UNet:
    """A random UNet in float64, its zero-initialised temporal projections made to count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet(config)
        for name, parameter in unet.named_parameters():
            if "temporal" in name and "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return unet.double().eval().requires_grad_(False)


def inputs(batch: int = 1, frames: int = 3, height: int = 8, width: int = 8, seed: int = 0):
    """Latents, a timestep and text for the tiny UNet, in float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, frames, 4, height, width, generator=generator, dtype=torch.float64)
    text = torch.randn(batch, 5, TINY.context_dim, generator=generator, dtype=torch.float64)
    return z, 301, text
