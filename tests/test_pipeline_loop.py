"""A whole job against the paper's algorithm written out plainly: one pass of the network per line, no shortcuts.

The reference below shares only the network, Eq. 1 to 8 (which have tests of their own) and the tables of noise levels
with the product. Steps, passes, texts, injections, updates and the frame rate are counted here independently.
"""

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import record
from anyi2v.diffusion import alphas_cumprod
from anyi2v.method.alignment import align, reduce
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import AlignmentOptions, MethodConfig
from anyi2v.method.noise import stream
from anyi2v.numerics.adain import patch_adain
from anyi2v.pipeline import animate
from anyi2v.tracks import Track, Tracks

from .networks import SHORT, tiny_backbone

BACKBONE = tiny_backbone()
V = copy(BACKBONE)
"""The same networks, whose UNet's output is taken for v."""
V.config = replace(BACKBONE.config, schedule=replace(BACKBONE.config.schedule, prediction="v"))
TRACKS = Tracks(16, 16, (Track("a", ((1.0, 1.0, 8.0, 8.0), (7.0, 6.0, 14.0, 13.0)), ((5.0, 3.0),)),))
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPT, NEGATIVE = "a red ball", "a blue ball"
FRAMES = 4


def moved(z: Tensor, eps: Tensor, at: float, to: float, sigma: float = 0.0) -> Tensor:
    """DDIM, Eq. 12 of Song et al. 2021 without its last term, between two values of alphas_cumprod."""
    return to**0.5 * (z - (1 - at) ** 0.5 * eps) / at**0.5 + (1 - to - sigma**2) ** 0.5 * eps


def predicted(backbone: Backbone, z: Tensor, t: int, text: Tensor, **options: Any) -> Tensor:
    """The noise, of which v is the difference from the signal (Salimans & Ho 2022)."""
    output, abar = BACKBONE.unet(z, t, text, **options), alphas_cumprod(BACKBONE.config.schedule)[t].item()
    return output if backbone is BACKBONE else abar**0.5 * output + (1 - abar) ** 0.5 * z


def inverted(config: MethodConfig, text: Tensor, backbone: Backbone) -> dict[str, Tensor]:
    """Section 3.2: the condition's features at t_alpha, temporal layers off."""
    abar = alphas_cumprod(BACKBONE.config.schedule).tolist()
    z = BACKBONE.vae.encode(2 * IMAGE[None] - 1)[:, None]
    t = 1
    while t < config.inversion_timestep:
        before = abar[t - config.inversion_stride] if t >= config.inversion_stride else 1.0
        z = moved(z, predicted(backbone, z, t, text, temporal=False), before, abar[t])
        t += config.inversion_stride
    names = (*config.inject_hidden, *config.inject_query)
    return record(BACKBONE.unet, names, z, config.inversion_timestep, text, temporal=False)


class Inject:
    """Eq. 1 and 2, and K and V of frame 1 for all frames."""

    def __init__(self, config: MethodConfig, features: dict[str, Tensor]):
        self.config, self.features = config, features

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name in {f"{layer}.context" for layer in self.config.share_kv}:
            return x[:, :1]
        if name in self.config.inject_query:
            return torch.cat([self.features[name], x[:, 1:]], 1)
        if name in self.config.inject_hidden:
            first = patch_adain(self.features[name], x[:, :1].detach(), self.config.patch)
            return torch.cat([first, x[:, 1:]], 1)
        return x


def updated(z: Tensor, t: int, text: Tensor, tap: Inject, config: MethodConfig) -> Tensor:
    """Section 3.3: the updates of AdamW (Loshchilov & Hutter 2019, Algorithm 2) before one denoising step."""
    crops = make_crops(TRACKS.resample(FRAMES), (16, 16), FRAMES)
    first = second = torch.zeros_like(z)
    for k in range(1, config.iterations + 1):
        leaf = z.detach().requires_grad_()
        seen: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen[name] = tap(name, x)
            return seen[name]

        BACKBONE.unet(leaf, t, text, tap=keep)
        features = [reduce(seen[name][0], config.pca_dim) for name in config.align]
        loss = align(features, crops, [crops.maps(*x.shape[1:3]) for x in features], AlignmentOptions.of(config)).loss
        (gradient,) = torch.autograd.grad(loss, leaf)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        z = z - config.lr * config.weight_decay * z - config.lr * step
    return z


@torch.no_grad()
def written_out(config: MethodConfig, backbone: Backbone = BACKBONE, seed: int = 0) -> Tensor:
    """The video of a job; the last denoising step ends without noise."""
    text, abar = BACKBONE.encode_text([PROMPT]), alphas_cumprod(BACKBONE.config.schedule).tolist()
    unwanted = BACKBONE.encode_text([NEGATIVE])
    z = torch.randn(1, FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    fresh, tap = stream(seed, "eta"), Inject(config, inverted(config, text, backbone))
    stride = 1000 // config.steps
    for i in range(config.steps):
        t = 1 + (config.steps - 1 - i) * stride
        if i < config.optimise_steps:
            with torch.enable_grad():
                z = updated(z, t, text, tap, config)
        eps = predicted(backbone, z, t, text, **({"tap": tap} if i < config.inject_steps else {}))
        if config.guidance_steps is None or i < config.guidance_steps:
            plain = predicted(backbone, z, t, unwanted)
            eps = plain + config.guidance_scale * (eps - plain)
        at, to = abar[t], abar[t - stride] if t >= stride else 1.0
        sigma = config.eta * ((1 - to) / (1 - at)) ** 0.5 * (1 - at / to) ** 0.5  # Eq. 16
        z = moved(z, eps, at, to, sigma) + sigma * torch.randn(z.shape, generator=fresh)
    return (BACKBONE.vae.decode(z[0]) / 2 + 0.5).clamp(0, 1)


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "injection longer than optimisation": {"inject_steps": 3, "optimise_steps": 1},
    "optimisation longer than injection": {"inject_steps": 1, "optimise_steps": 2},
    "no injection into denoising": {"inject_steps": 0},
    "no optimisation": {"optimise_steps": 0},
    "one update": {"iterations": 1},
    "two guided steps": {"guidance_steps": 2, "optimise_steps": 0},
    "a stride": {"inversion_timestep": 41, "inversion_stride": 10, "optimise_steps": 0},
    "whole boxes": {"mask": "none"},
    "noise in every step": {"eta": 0.7, "optimise_steps": 0},
    "keys and values shared in one layer": {"share_kv": SHORT.share_kv[1:], "optimise_steps": 0},
}


JOBS = [*((name, BACKBONE) for name in CASES), ("as it is", V), ("a stride", V)]


@pytest.mark.parametrize(("name", "backbone"), JOBS)
def test_a_job_is_the_algorithm_written_out(name: str, backbone: Backbone) -> None:
    config = replace(SHORT, **CASES[name])
    video = animate(backbone, IMAGE, PROMPT, TRACKS, config=config, negative_prompt=NEGATIVE).video
    gap = (video - written_out(config, backbone)).abs()
    # rounding in float32; AdamW's sign-like first update makes a step of lr of the rounding of a tiny gradient
    assert gap.median() < 1e-6, gap.median()
    assert (gap > 1e-3).float().mean() < 0.02, gap.max()
