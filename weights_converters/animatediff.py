"""AnimateDiff's layout, a UNet with motion modules inside, configured by an inference yaml.

Reference: AnimateDiff, models/unet.py and models/motion_module.py; its modules are named `motion_modules` and nest
everything under `temporal_transformer`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from anyi2v.backbone.config import MotionConfig, UNetConfig
from anyi2v.backbone.unet import UNet
from anyi2v.errors import CheckpointError
from weights_converters import diffusers_configs
from weights_converters.config_fields import expect
from weights_converters.diffusers_layout import POSITIONS
from weights_converters.keymap import Rule, convert

Version = Literal["v1", "v2", "v3"]

ROWS = {"v1": 24, "v2": 32, "v3": 32}
"""Number of rows of the position tables, by version."""

UNET = [
    Rule(r".*\.pos_encoder\.pe", None, why=POSITIONS),
    Rule(r"(.*)\.motion_modules\.(\d+)\.temporal_transformer\.(.*)", r"\1.temporals.\2.\3"),
    Rule(r"(.*)", r"\1"),
]
"""Rules for the UNet3DConditionModel of AnimateDiff v1, v2 and v3."""

MOTION = UNET[:-1]
"""Rules for a file of motion modules alone."""

SPATIAL = Rule(r"(?!.*\.motion_modules\.).*", None, why="the UNet around the motion modules; that of --base is used")
"""Rule to extract the motion modules from a whole UNet, as the published loader does."""


def convert_unet(tensors: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Convert a whole UNet in AnimateDiff's layout to the state dict of `UNet(config)`.

    Raises CheckpointError unless all tensors are used and all parameters are filled.
    """
    with torch.device("meta"):
        targets = {key: tensor.shape for key, tensor in UNet(config).state_dict().items()}
    return convert(tensors, UNET, targets)[0]


def unet_config(data: Mapping[str, Any], *, max_frames: int = 32) -> UNetConfig:
    """Convert the `unet_config` of an inference yaml (or JSON).

    Args:
        data: fields as in diffusers, and those of the motion modules.
        max_frames: rows of the position table, which are not in the yaml: 24 for v1, 32 for v2 and v3.

    The motion modules' GroupNorm always has 32 groups and per-frame statistics; the ResBlocks' GroupNorm has statistics
    over the clip if `use_inflated_groupnorm` is false (v1).

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
    spatial = diffusers_configs.in_2d(data)
    config = diffusers_configs.unet_config(spatial, motion)
    inflated = data.get("use_inflated_groupnorm", False)
    return config if inflated else dataclasses.replace(config, norm_over="clip")


def position_rows(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the number of rows of the position tables in a file of motion modules, in either layout; None without
    tables.

    Raises CheckpointError if the tables differ or have an unusable shape.
    """
    tables = {key: shape for key, shape in shapes.items() if re.fullmatch(r".*\.(pos_encoder|pos_embed)\.pe", key)}
    rows = {shape[1] if len(shape) == 3 else 0 for shape in tables.values()}
    if len(rows) > 1 or rows == {0}:
        raise CheckpointError(f"position tables of unequal or unusable shapes: {sorted(set(tables.values()))[:5]}")
    return rows.pop() if rows else None


def has_mid(keys: Iterable[str]) -> bool:
    """Return whether a file, in AnimateDiff's or diffusers' layout, has a motion module in the mid block."""
    return any(key.startswith("mid_block.motion_modules.") for key in keys)


def version(mid: bool, rows: int | None, asked: Version | None = None) -> Version:
    """Determine the version of motion modules.

    Only v2 has a module in the mid block. v1 and v3 have the same tensors and are distinguished by the length of the
    position tables (24 or 32) if the file has them, else by `asked`.

    Raises CheckpointError if the version cannot be determined, or if `asked` contradicts the file.
    """
    if asked is not None and mid != (asked == "v2"):
        raise CheckpointError(
            f"--motion-version {asked} contradicts the file: a motion module in the mid block, which only v2 has, "
            f"is {'present' if mid else 'missing'}"
        )
    if asked is not None or mid:
        return asked or "v2"
    if rows == ROWS["v1"]:
        return "v1"
    if rows == ROWS["v3"]:
        return "v3"
    has = "there are no position tables" if rows is None else f"the position tables have {rows} rows"
    raise CheckpointError(
        f"v1 and v3 of AnimateDiff have the same tensors, and {has} (24: v1, 32: v3); "
        "specify it with --motion-version v1 or v3"
    )
