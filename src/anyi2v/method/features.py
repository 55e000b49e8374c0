"""Features of condition images, computed by inversion or by adding noise, or read from a cache."""

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs
from anyi2v.guard import all_finite, failure
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.features_cache import cache_key, cached
from anyi2v.method.inversion import invert, noise_directly
from anyi2v.method.noise import stream
from anyi2v.taps import no_taps
from anyi2v.versions import processor


def injects(config: MethodConfig) -> bool:
    """Return whether a job needs features of its condition image."""
    return bool(config.inject_hidden or config.inject_query) and config.inject_steps + config.optimise_steps > 0


def condition_features(job: Job, denoiser: Denoiser, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
    """Compute the features to inject, one clip per image and prompt of `denoiser`; empty if nothing is injected.

    Raises:
        NumericsError: a latent or a feature became NaN or infinite.
    """
    config, backbone = job.config, job.backbone
    if not injects(config):
        return {}
    with job.stages.stage("encode"), torch.no_grad():
        latent = backbone.vae.encode(2 * images.to(backbone.device) - 1)
    if not all_finite(latent):
        raise failure("the latent of the condition image", "encode", dtype=backbone.unet.dtype)
    latent = latent[:, None]
    names = (*config.inject_hidden, *config.inject_query)
    steps = inversion_pairs(backbone.config.schedule, until=config.inversion_timestep, stride=config.inversion_stride)
    if config.inversion == "noise":
        noise = torch.randn(latent.shape, generator=stream(job.seed, "inversion")).to(latent.device)
        with job.stages.stage("inversion"):
            return noise_directly(denoiser.images(), latent, noise, steps[-1].to, steps[-1].t, names)

    def inverted() -> dict[str, Tensor]:
        report = job.stages.counter("inversion", len(steps))
        return invert(denoiser.images(len(steps)), latent, steps, names, report=report)

    with job.stages.stage("inversion"):
        if job.cache is None or job.taps is not no_taps:
            return inverted()
        key = cache_key(_settings(job), {"latent": latent, "text": denoiser.positive}, backbone.unet)
        return cached(job.cache, key, names, inverted, device=backbone.device)


def _settings(job: Job) -> dict[str, Any]:
    """Everything except tensors that determines the features, for the cache key."""
    backbone, config = job.backbone, job.config
    return {
        "schedule": asdict(backbone.config.schedule),
        "until": config.inversion_timestep,
        "stride": config.inversion_stride,
        "names": sorted((*config.inject_hidden, *config.inject_query)),
        "fps": job.fps,
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
        "low_memory": job.low_memory,  # unpacked weights round differently
        "operators": backbone.operators,
        "unet": asdict(backbone.config.unet),  # heads and norm groups do not show in the shapes of weights
        "threads": torch.get_num_threads(),  # threads and processor affect the rounding of sums
        "processor": processor(backbone.device),
    }
