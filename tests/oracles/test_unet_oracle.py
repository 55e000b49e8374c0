"""Our UNet against diffusers, through the converter's rules, on random small networks.

UNet2DConditionModel checks the spatial part. UNetMotionModel checks the motion modules with their norm over
the clip; AnimateDiff's norm per frame, which diffusers does not have, is checked by recordings.
"""

import random
from typing import Any

import pytest
import torch

from anyi2v.backbone.unet import UNet
from weights_converters.diffusers_configs import motion_config, unet_config
from weights_converters.diffusers_layout import MOTION, UNET
from weights_converters.keymap import convert

from .compare import ROUNDING, adopt, difference, random_weights

diffusers = pytest.importorskip("diffusers", reason="diffusers, the oracle, is in the extra 'dev'")


def random_configs(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a UNet2DConditionModel and a MotionAdapter that fits it."""
    pick = random.Random(seed)
    levels = pick.randint(2, 4)
    attention = [pick.random() < 0.7 for _ in range(levels)]
    # powers of two: only then do both round the frequencies of the time embedding, float32 in both, equally
    channels = [pick.choice([8, 16]) for _ in range(levels)]
    layers = pick.randint(1, 2)
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "layers_per_block": layers,
        "attention_head_dim": pick.choice([1, 2, 4]),
        "cross_attention_dim": pick.choice([6, 8]),
        "norm_num_groups": pick.choice([2, 4]),
    }
    adapter = {
        "block_out_channels": channels,
        "motion_layers_per_block": layers,
        "motion_num_attention_heads": pick.choice([1, 2, 4]),
        "motion_norm_num_groups": unet["norm_num_groups"],
        "motion_max_seq_length": pick.choice([4, 9]),
        "use_motion_mid_block": pick.random() < 0.5,
    }
    return unet, adapter


def random_inputs(seed: int, context_dim: int, size: tuple[int, int]) -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 3, 4, *size, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 5, context_dim, generator=generator, dtype=torch.float64)
    return z, int(torch.randint(1000, (), generator=generator)), text


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_images_agree(seed: int) -> None:
    """With and without odd grids, on which the way up must meet the skip connections' sizes."""
    config, _ = random_configs(seed)
    theirs: Any = random_weights(diffusers.UNet2DConditionModel(**config), seed)
    ours = adopt(UNet(unet_config(config)), theirs, UNET)
    z, t, text = random_inputs(seed, config["cross_attention_dim"], (8, 16) if seed % 2 else (10, 12))
    out = ours(z, t, text, temporal=False)
    for frame in range(z.shape[1]):
        assert difference(out[:, frame], theirs(z[:, frame], t, text).sample) <= ROUNDING


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_videos_agree(seed: int) -> None:
    config, motion = random_configs(seed)
    spatial: Any = random_weights(diffusers.UNet2DConditionModel(**config), seed)
    adapter: Any = random_weights(diffusers.MotionAdapter(**motion), seed + 1)
    theirs: Any = diffusers.UNetMotionModel.from_unet2d(spatial, adapter).double().eval()

    ours = UNet(unet_config(config, motion_config(motion, config)))
    targets = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    sources = {f"2d {key}": tensor for key, tensor in spatial.state_dict().items()}
    sources |= {f"motion {key}": tensor for key, tensor in adapter.state_dict().items()}
    rules = [rule.within("2d ", "") for rule in UNET] + [rule.within("motion ", "") for rule in MOTION]
    ours.double().load_state_dict(convert(sources, rules, targets)[0])
    ours.eval()

    z, t, text = random_inputs(seed, config["cross_attention_dim"], (8, 16))
    expected = theirs(z.transpose(1, 2), t, text.repeat_interleave(3, dim=0)).sample.transpose(1, 2)
    out = ours(z, t, text)
    assert difference(out, expected) <= ROUNDING
    # the motion modules must have had a say
    assert difference(ours(z, t, text, temporal=False), expected) > 0.01
