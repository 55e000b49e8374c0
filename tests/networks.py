"""Small random networks that several tests share."""

import torch

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.backbone.unet import UNet
from anyi2v.method.config import MethodConfig

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


WORDS = ("<pad>", "<bos>", "<eos>", "a", "red", "blue", "ball")
LAYERS = ("up_blocks.1.attentions.0", "up_blocks.2.attentions.0")
QUERIES = ("up_blocks.1.attentions.0.query", "up_blocks.2.attentions.0.query")
HIDDENS = ("up_blocks.1.resnets.0.hidden", "up_blocks.2.resnets.0.hidden")
SHORT = MethodConfig(
    steps=4,
    guidance_scale=2.0,
    inversion_timestep=5,
    inject_hidden=HIDDENS,
    inject_query=QUERIES,
    share_kv=LAYERS,
    inject_steps=2,
    align=QUERIES,
    optimise_steps=2,
    iterations=2,
    pca_dim=4,
    pca_solver="exact",
    patch=2,
)
"""A method that runs in a fraction of a second on the tiny backbone."""


def tiny_backbone(seed: int = 0) -> Backbone:
    """A random backbone of 16 x 16 pixels and 4 frames, VAE factor 2, in float32."""
    config = BackboneConfig(
        name="tiny",
        unet=TINY,
        vae=VAEConfig(channels=(4, 4), layers=1, groups=1, scale=1.0),
        text=TextConfig(width=8, layers=1, heads=2, mlp_ratio=2.0, length=6, vocab_size=len(WORDS), words=WORDS),
        height=16,
        width=16,
        frames=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = build(config)
    backbone.unet = tiny_unet(seed=seed).float()
    for network in backbone.networks.values():
        network.eval().requires_grad_(False)
    return backbone
