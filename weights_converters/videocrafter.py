"""VideoCrafter2's layout, with UNet, autoencoder and OpenCLIP text tower in one LDM file.

Reference: AILab-CVC/VideoCrafter, lvdm/modules/networks/openaimodel3d.py; "temopral" is how its keys spell it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from anyi2v.backbone.config import FactorisedConfig, ScheduleConfig, TextConfig, UNetConfig
from weights_converters import ldm_layout
from weights_converters.config_fields import expect
from weights_converters.keymap import Rule, within

TEXT_PREFIX = "cond_stage_model.model."

SCHEDULE = ScheduleConfig(curve="scaled_linear", final_alpha_one=False, spacing="uniform", x0_scale=0.7)
TEXT = TextConfig(width=1024, layers=24, heads=16, quick_gelu=False, penultimate=True, pad_zero=True)
METHOD = {"guidance_scale": 12.0, "steps": 50}
"""The published sampler's settings, except eta = 1: fresh noise in every step would undo the optimised latents."""

_JUNK = [
    *ldm_layout.JUNK,
    Rule(r"(?:scale_arr|ddim_.*)", None, why="tables of the noise schedule, which are recomputed"),
    Rule(
        TEXT_PREFIX.replace(".", r"\.") + r"(?:logit_scale|text_projection|attn_mask|visual\..*)",
        None,
        why="parts of CLIP that VideoCrafter does not use",
    ),
]

_TRANSFORMER = {
    r"transformer_blocks\.(\d+)\.attn1\.(.*)": r"transformer_blocks.{0}.attention_blocks.0.{1}",
    r"transformer_blocks\.(\d+)\.attn2\.(.*)": r"transformer_blocks.{0}.attention_blocks.1.{1}",
    r"transformer_blocks\.(\d+)\.norm1\.(.*)": r"transformer_blocks.{0}.norms.0.{1}",
    r"transformer_blocks\.(\d+)\.norm2\.(.*)": r"transformer_blocks.{0}.norms.1.{1}",
    r"transformer_blocks\.(\d+)\.norm3\.(.*)": r"transformer_blocks.{0}.ff_norm.{1}",
    r"(transformer_blocks\.\d+\.ff)\.(.*)": r"{0}.{1}",
    r"(norm|proj_in|proj_out)\.(.*)": r"{0}.{1}",
}


def _squeeze(weight: Tensor) -> Tensor:
    """Convert a convolution of width 1 over frames to a linear layer."""
    return weight.flatten(1)


def _transformer(source: str, target: str) -> list[Rule]:
    """Return rules for a temporal transformer."""
    start = re.escape(source) + r"\."
    return [Rule(start + old, f"{target}." + new.format(r"\1", r"\2")) for old, new in _TRANSFORMER.items()]


def _convolution(source: str, target: str) -> list[Rule]:
    """Return rules for a temporal convolution: four times norm, SiLU, (dropout,) convolution."""
    start = re.escape(f"{source}.temopral_conv.conv")
    rules = []
    for k in range(4):
        rules += [
            Rule(rf"{start}{k + 1}\.0\.(.*)", rf"{target}.temporal.norms.{k}.\1"),
            Rule(rf"{start}{k + 1}\.[23]\.(.*)", rf"{target}.temporal.convs.{k}.\1"),
        ]
    return rules


def unet_rules(keys: Iterable[str]) -> list[Rule]:
    """Return rules for the keys of the UNet without prefix; raises CheckpointError if they are not those of a UNet."""
    keys = list(keys)
    levels, layers = ldm_layout.unet_depth(keys)
    rules = [
        Rule(r"fps_embedding\.0\.(.*)", r"fps_embedding.linear_1.\1"),
        Rule(r"fps_embedding\.2\.(.*)", r"fps_embedding.linear_2.\1"),
        *(
            Rule(rf"init_attn\.0\.{name}\.weight", f"stem_temporal.{name}.weight", transform=_squeeze)
            for name in ("proj_in", "proj_out")
        ),
        *_transformer("init_attn.0", "stem_temporal"),
        *_convolution("middle_block.0", "mid_block.resnets.0"),
        *_convolution("middle_block.3", "mid_block.resnets.1"),
        *_transformer("middle_block.2", "mid_block.temporals.0"),
        # only the position of the second ResBlock differs from the plain layout
        *(
            Rule(rule.pattern.replace(r"middle_block\.2", r"middle_block\.3"), rule.target)
            for rule in _last_resnet(keys)
        ),
    ]
    for i in range(levels):
        start = i * (layers + 1)
        places = [(f"input_blocks.{start + j + 1}", f"down_blocks.{i}", j) for j in range(layers)]
        places += [(f"output_blocks.{start + j}", f"up_blocks.{i}", j) for j in range(layers + 1)]
        for source, target, j in places:
            rules += _convolution(f"{source}.0", f"{target}.resnets.{j}")
            rules += _transformer(f"{source}.2", f"{target}.temporals.{j}")
        rules.append(
            Rule(rf"output_blocks\.{start + layers}\.[13]\.conv\.(.*)", rf"up_blocks.{i}.upsamplers.0.conv.\1")
        )
    return [*rules, *ldm_layout.unet_rules(keys)]


def _last_resnet(keys: list[str]) -> list[Rule]:
    return [rule for rule in ldm_layout.unet_rules(keys) if (rule.target or "").startswith("mid_block.resnets.1.")]


def rules(keys: Iterable[str], part: str) -> list[Rule]:
    """Return rules for one network (`unet`, `vae` or `text`) of the whole file; the others are dropped
    intentionally."""
    keys = list(keys)
    prefixes = {"unet": ldm_layout.UNET_PREFIX, "vae": ldm_layout.VAE_PREFIX, "text": TEXT_PREFIX}
    prefix = prefixes.pop(part)
    inner = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    own = [Rule(r"(.*)", r"\1")]
    if part == "unet":
        own = unet_rules(inner)
    elif part == "vae":
        own = ldm_layout.vae_rules(inner)
    others = [Rule(re.escape(other) + ".*", None, why=ldm_layout.OTHERS[name]) for name, other in prefixes.items()]
    return [*_JUNK, *within(own, prefix, ""), *others]


def unet_config(data: Mapping[str, Any]) -> UNetConfig:
    """Convert `unet_config.params` of the inference yaml (or JSON).

    Raises CheckpointError for a structure that is not VideoCrafter2's (version 1 has relative positions).
    """
    expect(
        data,
        "VideoCrafter UNet",
        {
            "transformer_depth": 1,
            "use_linear": True,
            "temporal_conv": True,
            "temporal_attention": True,
            "temporal_selfatt_only": True,
            "use_relative_position": False,
            "use_causal_attention": False,
            "addition_attention": True,
            "conv_resample": True,
            "dims": 2,
            "out_channels": data["in_channels"],
        },
    )
    channels = tuple(data["model_channels"] * factor for factor in data["channel_mult"])
    width = data["num_head_channels"]
    return UNetConfig(
        channels=channels,
        attention=tuple(2**i in data["attention_resolutions"] for i in range(len(channels))),
        layers=data["num_res_blocks"],
        latent_channels=data["in_channels"],
        context_dim=data["context_dim"],
        head_dim=width,
        linear_projection=True,
        temporal=FactorisedConfig(head_dim=width, stem_head_dim=width),
        fps_embedding=data.get("fps_cond", False),
        even_grids=True,
    )
