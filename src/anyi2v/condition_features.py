"""Features of condition images: encoded, and inverted or noised, or looked up in a cache."""

from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.checkpoint import Backbone
from anyi2v.config import MethodConfig
from anyi2v.diffusion import inversion_timesteps
from anyi2v.inversion_cache import cache_key, cached
from anyi2v.method.guard import all_finite, failure
from anyi2v.method.inversion import invert, noise_directly
from anyi2v.taps import Taps, no_taps
from anyi2v.timing import Stages
from anyi2v.versions import processor


def injects(config: MethodConfig) -> bool:
    """Whether a job needs features of its condition image."""
    return bool(config.inject_hidden or config.inject_query) and config.inject_steps + config.optimise_steps > 0


def condition_features(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    text: Float[Tensor, "b l d"],
    config: MethodConfig,
    fps: int,
    stages: Stages,
    generator: torch.Generator,
    taps: Taps,
    cache: Path | None,
    low_memory: bool,
) -> dict[str, Tensor]:
    """The features that the injection needs; none if nothing is injected. For the arguments see `animate`.

    Raises:
        NumericsError: a latent or a feature became NaN or infinite.
    """
    if not injects(config):
        return {}
    with stages.stage("encode"), torch.no_grad():
        latent = backbone.vae.encode(2 * images.to(backbone.device) - 1)
    if not all_finite(latent):
        raise failure("the latent of the condition image", "encode", dtype=backbone.unet.dtype)
    schedule, until, stride = backbone.config.schedule, config.inversion_timestep, config.inversion_stride
    names = (*config.inject_hidden, *config.inject_query)
    latent = latent[:, None]
    if config.inversion == "noise":
        noise = torch.randn(latent.shape, generator=generator).to(latent.device)
        with stages.stage("inversion"):
            return noise_directly(
                backbone.unet, latent, text, schedule, names, until=until, noise=noise, fps=fps, taps=taps
            )
    passes = len(inversion_timesteps(schedule, until=until, stride=stride))

    def inverted() -> dict[str, Tensor]:
        with stages.bar("inversion", passes) as bar:
            return invert(
                backbone.unet,
                latent,
                text,
                schedule,
                names,
                until=until,
                stride=stride,
                fps=fps,
                taps=taps,
                low_memory=low_memory,
                report=bar.update,
            )

    with stages.stage("inversion"):
        if cache is None or taps is not no_taps:
            return inverted()
        settings = {
            "schedule": asdict(schedule),
            "until": until,
            "stride": stride,
            "names": sorted(names),
            "fps": fps,
            "dtype": str(backbone.dtype),
            "device": backbone.device.type,
            "low_memory": low_memory,  # reads the weights in another order: other rounding
            "unet": asdict(backbone.config.unet),  # its heads and norm groups, which no weight's shape tells
            "threads": torch.get_num_threads(),  # they and the processor decide how sums are rounded
            "processor": processor(backbone.device),
        }
        key = cache_key(settings, {"latent": latent, "text": text}, backbone.unet)
        return cached(cache, key, names, inverted, device=backbone.device)
