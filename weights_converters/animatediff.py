"""AnimateDiff's own layout: one UNet with the motion modules inside, configured by an inference yaml.

Reference: AnimateDiff, models/unet.py and models/motion_module.py; its modules are named `motion_modules`
and keep everything under `temporal_transformer`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anyi2v.backbone.config import MotionConfig, UNetConfig
from anyi2v.backbone.unet import UNet
from weights_converters import diffusers_layout
from weights_converters.diffusers_layout import POSITIONS, expect
from weights_converters.keymap import Rule, convert

UNET = [
    Rule(r".*\.pos_encoder\.pe", None, why=POSITIONS),
    Rule(r"(.*)\.motion_modules\.(\d+)\.temporal_transformer\.(.*)", r"\1.temporals.\2.\3"),
    Rule(r"(.*)", r"\1"),
]
"""UNet3DConditionModel of AnimateDiff v1, v2 and v3."""


def convert_unet(tensors: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """The state dict of `UNet(config)` from a whole UNet in AnimateDiff's layout.

    Raises CheckpointError unless all tensors find their place and all parameters are filled.
    """
    with torch.device("meta"):
        targets = {key: tensor.shape for key, tensor in UNet(config).state_dict().items()}
    return convert(tensors, UNET, targets)[0]


def unet_config(data: Mapping[str, Any], *, max_frames: int = 32) -> UNetConfig:
    """From the `unet_config` of an inference yaml (or of a JSON of it).

    Args:
        data: fields as in diffusers, and those of the motion modules.
        max_frames: rows of the position table, which no yaml tells: 24 for v1, 32 for v2 and v3.

    The motion modules' GroupNorm always has 32 groups and statistics per frame; the ResBlocks' have them
    over the clip where `use_inflated_groupnorm` is false (v1).

    Raises CheckpointError for a structure that is not AnimateDiff's.
    """
    kwargs = data["motion_module_kwargs"]
    expect(
        data,
        "AnimateDiff UNet",
        {
            "use_motion_module": True,
            "motion_module_type": "Vanilla",
            "motion_module_resolutions": [2**i for i in range(len(data["block_out_channels"]))],
            "motion_module_decoder_only": False,
            "unet_use_cross_frame_attention": False,
            "unet_use_temporal_attention": False,
        },
    )
    expect(
        kwargs,
        "motion_module_kwargs",
        {
            "num_transformer_block": 1,
            "temporal_position_encoding": True,
            "temporal_attention_dim_div": 1,
            "attention_block_types": ["Temporal_Self"] * len(kwargs["attention_block_types"]),
        },
    )
    motion = MotionConfig(
        heads=kwargs["num_attention_heads"],
        groups=32,
        max_frames=max_frames,
        mid=data.get("motion_module_mid_block", False),
        attentions=len(kwargs["attention_block_types"]),
        norm_over="frame",
    )
    types = ("down_block_types", "up_block_types")
    spatial = {**data, **{key: [kind.replace("3D", "2D") for kind in data[key]] for key in types}}
    config = diffusers_layout.unet_config(spatial, motion)
    inflated = data.get("use_inflated_groupnorm", False)
    return config if inflated else dataclasses.replace(config, norm_over="clip")
