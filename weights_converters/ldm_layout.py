"""The layout of Stable Diffusion's own code (LDM), with all networks in one file and no configuration.

Reference: CompVis, ldm/modules/diffusionmodules/openaimodel.py and model.py. The names are mapped to those of
diffusers, which are ours.
"""

import re
from collections.abc import Iterable

from torch import Tensor

from anyi2v.errors import CheckpointError
from weights_converters import diffusers_layout
from weights_converters.keymap import Rule, within

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

LIMIT = 16
"""Maximum number of levels, and of layers per level, of a UNet or autoencoder."""

SCHEDULE = r"betas|alphas_cumprod(?:_prev)?|(?:sqrt|log|posterior)_\w+|logvar|lvlb_weights"

JUNK = [
    Rule(r"model_ema\..*", None, why="a moving average from training; the plain weights are used"),
    Rule(SCHEDULE, None, why="tables of the noise schedule, which are recomputed"),
    Rule(r"scale_factor", None, why="the scale of the latents, which is stored as a setting"),
    Rule(r"denoiser\.(?:log_)?sigmas", None, why="noise levels of another sampler"),
    Rule(r"embedding_manager\..*", None, why="state of a textual inversion training"),
    Rule(r"(?:global_step|epoch|iteration)", None, why="a step count from training"),
    Rule(r"first_stage_model\.(?:loss|model_ema)\..*", None, why="parts of the autoencoder that only training uses"),
    Rule(
        r"cond_stage_model\.(?:transformer\.)?(?:text_model\.)?"
        r"(?:logit_scale|text_projection.*|vision_model\..*|visual_projection\..*)",
        None,
        why="parts of CLIP that SD-1.x does not use",
    ),
    *diffusers_layout.MARKERS,
]
"""Rules for tensors of single files other than the networks."""

OTHERS = {"unet": "of the UNet", "vae": "of the autoencoder", "text": "of the text tower"}
"""Reasons for leaving out the tensors of other networks."""

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_rules(keys: Iterable[str]) -> list[Rule]:
    """Return rules for the keys of a UNet without prefix; its depth is derived from the keys.

    Raises CheckpointError if they are not those of a UNet.
    """
    levels, layers = unet_depth(keys)
    rules = [
        Rule(r"time_embed\.0\.(.*)", r"time_embedding.linear_1.\1"),
        Rule(r"time_embed\.2\.(.*)", r"time_embedding.linear_2.\1"),
        Rule(r"time_embed(?:ding)?\.cond_proj\.(.*)", r"time_embedding.cond_proj.\1"),
        Rule(r"input_blocks\.0\.0\.(.*)", r"conv_in.\1"),
        Rule(r"out\.0\.(.*)", r"conv_norm_out.\1"),
        Rule(r"out\.2\.(.*)", r"conv_out.\1"),
        *_resnet("middle_block.0", "mid_block.resnets.0"),
        *_resnet("middle_block.2", "mid_block.resnets.1"),
        Rule(r"middle_block\.1\.(.*)", r"mid_block.attentions.0.\1"),
    ]
    for i in range(levels):
        down, up = i * (layers + 1), i * (layers + 1)
        for j in range(layers):
            rules += _layer(f"input_blocks.{down + j + 1}", f"down_blocks.{i}", j)
        # the downsampler is a separate block, the upsampler the last module of the level's last block
        rules += [
            Rule(rf"input_blocks\.{down + layers + 1}\.0\.op\.(.*)", rf"down_blocks.{i}.downsamplers.0.conv.\1"),
            Rule(rf"output_blocks\.{up + layers}\.[12]\.conv\.(.*)", rf"up_blocks.{i}.upsamplers.0.conv.\1"),
        ]
        for j in range(layers + 1):
            rules += _layer(f"output_blocks.{up + j}", f"up_blocks.{i}", j)
    return rules


def unet_depth(keys: Iterable[str]) -> tuple[int, int]:
    """Return levels and layers per level of a UNet; raises CheckpointError if unknown or beyond `LIMIT`."""
    keys = list(keys)
    downs = _numbers(keys, r"input_blocks\.(\d+)\.0\.op\.weight")
    blocks = _numbers(keys, r"input_blocks\.(\d+)\.0\..*")
    layers = (min(downs) if downs else max(blocks, default=0) + 1) - 1
    levels = len(downs) + 1
    if not (0 < layers <= LIMIT and levels <= LIMIT):
        raise CheckpointError(f"not a UNet of LDM: its input_blocks would give {levels} levels of {layers} layers")
    return levels, layers


def _numbers(keys: Iterable[str], pattern: str) -> set[int]:
    return {int(match[1]) for key in keys if (match := re.fullmatch(pattern, key))}


def _layer(source: str, target: str, j: int) -> list[Rule]:
    attention = Rule(rf"{re.escape(source)}\.1\.(.*)", rf"{target}.attentions.{j}.\1")
    return [*_resnet(f"{source}.0", f"{target}.resnets.{j}"), attention]


def _resnet(source: str, target: str) -> list[Rule]:
    return [Rule(rf"{re.escape(f'{source}.{old}')}\.(.*)", rf"{target}.{new}.\1") for old, new in _RESNET.items()]


def _squeeze(weight: Tensor) -> Tensor:
    """Convert the weight of a 1 x 1 convolution to that of a linear layer; a linear weight is unchanged."""
    return weight.flatten(1)


def vae_rules(keys: Iterable[str]) -> list[Rule]:
    """Return rules for the keys of an autoencoder without prefix.

    The decoder's levels are numbered from the finest in LDM, and from the coarsest in diffusers. LDM's attention
    consists of 1 x 1 convolutions, or, in files exported by early diffusers scripts, of linear layers with diffusers'
    names. Raises CheckpointError beyond `LIMIT` levels.
    """
    ups = _numbers(keys, r"decoder\.up\.(\d+)\..*")
    levels = max(ups, default=-1) + 1
    if levels > LIMIT:
        raise CheckpointError(f"not an autoencoder of LDM: its decoder has {levels} levels")
    rules = [*_side("encoder.down", r"(\d+)", r"encoder.down_blocks.\1", "downsample")]
    for i in range(levels):
        rules += _side("decoder.up", f"({levels - 1 - i})", f"decoder.up_blocks.{i}", "upsample")
    attention = r"(encoder|decoder)\.mid\.attn_1\."
    ours = r"\1.mid_block.attentions.0."
    names = {"(?:to_)?q": "to_q", "(?:to_)?k": "to_k", "(?:to_)?v": "to_v", r"(?:proj_out|to_out\.0)": "to_out.0"}
    for old, new in names.items():
        rules += [
            Rule(rf"{attention}{old}\.weight", rf"{ours}{new}.weight", transform=_squeeze),
            Rule(rf"{attention}{old}\.bias", rf"{ours}{new}.bias"),
        ]
    return [
        *rules,
        Rule(rf"{attention}norm\.(.*)", rf"{ours}group_norm.\2"),
        Rule(r"(encoder|decoder)\.mid\.block_1\.(.*)", r"\1.mid_block.resnets.0.\2"),
        Rule(r"(encoder|decoder)\.mid\.block_2\.(.*)", r"\1.mid_block.resnets.1.\2"),
        Rule(r"(encoder|decoder)\.norm_out\.(.*)", r"\1.conv_norm_out.\2"),
        Rule(r"((?:encoder|decoder)\.conv_(?:in|out)\..*|(?:post_)?quant_conv\..*)", r"\1"),
        Rule(r"(?:loss|model_ema)\..*", None, why="parts of the autoencoder that only training uses"),
    ]


def _side(source: str, level: str, target: str, sampler: str) -> list[Rule]:
    start = rf"{re.escape(source)}\.{level}\."
    return [
        Rule(start + r"block\.(\d+)\.nin_shortcut\.(.*)", rf"{target}.resnets.\2.conv_shortcut.\3"),
        Rule(start + r"block\.(\d+)\.(.*)", rf"{target}.resnets.\2.\3"),
        Rule(start + rf"{sampler}\.(.*)", rf"{target}.{sampler}rs.0.\2"),
    ]


def rules(keys: Iterable[str], part: str) -> list[Rule]:
    """Return rules for one network (`unet`, `vae` or `text`) of a single file; the others are dropped intentionally."""
    keys = list(keys)
    prefixes = {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "text": TEXT_PREFIX}
    prefix = prefixes.pop(part)
    inner = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    own = diffusers_layout.TEXT
    if part == "unet":
        own = unet_rules(inner)
    elif part == "vae":
        own = vae_rules(inner)
    others = [Rule(re.escape(other) + ".*", None, why=OTHERS[name]) for name, other in prefixes.items()]
    return [*JUNK, *within(own, prefix, ""), *others]
