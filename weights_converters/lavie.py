"""LaVie's base model, a UNet in diffusers' naming with temporal attentions inside its transformers.

Reference: Vchitect/LaVie, base/models/unet.py, attention.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from anyi2v.backbone.config import RotaryConfig, ScheduleConfig, UNetConfig
from weights_converters import diffusers_configs
from weights_converters.config_fields import expect
from weights_converters.diffusers_layout import POSITIONS
from weights_converters.keymap import Rule

_BLOCK = r"(.*\.transformer_blocks\.\d+)\."

UNET = [
    Rule(_BLOCK + r"attn_temp\.rotary_emb\.freqs", None, why=POSITIONS),
    Rule(
        _BLOCK + r"attn_temp\.time_rel_pos_bias\.relative_attention_bias\.weight",
        r"\1.temporal.relative_bias.weight",
    ),
    Rule(_BLOCK + r"attn_temp\.(.*)", r"\1.temporal.attn.\2"),
    Rule(_BLOCK + r"norm_temp\.(.*)", r"\1.temporal.norm.\2"),
    Rule(r"(.*)", r"\1"),
]
"""Rules for LaVie's UNet3DConditionModel."""

SCHEDULE = ScheduleConfig(beta_start=1e-4, beta_end=0.02, curve="linear", final_alpha_one=False)
"""Schedule of LaVie's DDIM; the published default, DDPM, is `eta=1` with `steps_offset=0`, `final_alpha_one=True`."""

METHOD = {"guidance_scale": 7.5, "steps": 50}
"""The published sampler's settings."""


def unet_config(data: Mapping[str, Any]) -> UNetConfig:
    """Convert the config.json of the UNet; raises CheckpointError for a structure that is not LaVie's."""
    expect(data, "LaVie UNet", {"use_first_frame": False, "use_relative_position": False})
    spatial = diffusers_configs.in_2d(data)
    config = diffusers_configs.unet_config(spatial)
    return dataclasses.replace(config, norm_over="clip", temporal=RotaryConfig(heads=config.heads))
