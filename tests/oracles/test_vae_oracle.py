"""Our autoencoder against diffusers' AutoencoderKL, through the converter's rules, on random small networks."""

import random
from typing import Any

import pytest
import torch

from anyi2v.backbone.vae import AutoencoderKL
from weights_converters.diffusers_configs import vae_config
from weights_converters.diffusers_layout import VAE

from .compare import ROUNDING, adopt, difference, random_weights

diffusers = pytest.importorskip("diffusers", reason="diffusers, the oracle, is in the extra 'dev'")


def random_config(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    levels = pick.randint(1, 4)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [pick.choice([4, 8, 12]) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": pick.randint(1, 2),
        "latent_channels": pick.randint(1, 4),
        "norm_num_groups": pick.choice([1, 2, 4]),
        "act_fn": "silu",
        "scaling_factor": pick.choice([1.0, 0.18215]),
    }


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_both_ways_agree(seed: int) -> None:
    config = random_config(seed)
    theirs: Any = random_weights(diffusers.AutoencoderKL(**config), seed)
    ours = adopt(AutoencoderKL(vae_config(config)), theirs, VAE)
    factor, scale = ours.config.factor, ours.config.scale
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 2 * factor, 3 * factor, generator=generator, dtype=torch.float64) * 2 - 1

    posterior = theirs.encode(image).latent_dist
    mean, logvar = ours.moments(image)
    assert difference(mean, posterior.mean) <= ROUNDING
    assert difference(logvar, posterior.logvar) <= ROUNDING
    assert difference(ours.encode(image), scale * posterior.mode()) <= ROUNDING
    latents = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    assert difference(ours.decode(latents, chunk=1), theirs.decode(latents / scale).sample) <= ROUNDING
