"""The folder layout of diffusers and transformers: names of weights, and config.json files.

A spatial UNet, a MotionAdapter, an AutoencoderKL and a CLIPTextModel, each as they save themselves.
"""

from collections.abc import Mapping
from typing import Any

from anyi2v.backbone.config import MotionConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.errors import CheckpointError
from weights_converters.keymap import Rule

Json = Mapping[str, Any]

POSITIONS = "sinusoids, computed anew"

UNET = [Rule(r"(.*)", r"\1")]
"""UNet2DConditionModel: our names are its names."""

_MODULE = r"(.*)\.motion_modules\.(\d+)\."
_BLOCK = _MODULE + r"transformer_blocks\.(\d+)\."
_OUR_BLOCK = r"\1.temporals.\2.transformer_blocks.\3."

MOTION = [
    Rule(_BLOCK + r"pos_embed\.pe", None, why=POSITIONS),
    Rule(_BLOCK + r"attn1\.(.*)", _OUR_BLOCK + r"attention_blocks.0.\4"),
    Rule(_BLOCK + r"attn2\.(.*)", _OUR_BLOCK + r"attention_blocks.1.\4"),
    Rule(_BLOCK + r"norm1\.(.*)", _OUR_BLOCK + r"norms.0.\4"),
    Rule(_BLOCK + r"norm2\.(.*)", _OUR_BLOCK + r"norms.1.\4"),
    Rule(_BLOCK + r"norm3\.(.*)", _OUR_BLOCK + r"ff_norm.\4"),
    Rule(_MODULE + r"(.*)", r"\1.temporals.\2.\3"),
]
"""MotionAdapter."""

VAE = [
    Rule(r"(.*\.attentions\.0\.)query\.(.*)", r"\1to_q.\2"),
    Rule(r"(.*\.attentions\.0\.)key\.(.*)", r"\1to_k.\2"),
    Rule(r"(.*\.attentions\.0\.)value\.(.*)", r"\1to_v.\2"),
    Rule(r"(.*\.attentions\.0\.)proj_attn\.(.*)", r"\1to_out.0.\2"),
    Rule(r"(.*)", r"\1"),
]
"""AutoencoderKL, with today's names of its attention or those before diffusers 0.15."""

_LAYER = r"(?:text_model\.)?encoder\.layers\.(\d+)\."
_OUR_LAYER = r"transformer.resblocks.\1."

TEXT = [
    Rule(r"(?:text_model\.)?embeddings\.position_ids", None, why="0, 1, 2, ..."),
    Rule(r"(?:text_model\.)?embeddings\.token_embedding\.weight", "token_embedding.weight"),
    Rule(r"(?:text_model\.)?embeddings\.position_embedding\.weight", "positional_embedding"),
    Rule(_LAYER + r"self_attn\.q_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=0),
    Rule(_LAYER + r"self_attn\.k_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=1),
    Rule(_LAYER + r"self_attn\.v_proj\.(weight|bias)", _OUR_LAYER + r"attn.in_proj_\2", part=2),
    Rule(_LAYER + r"self_attn\.out_proj\.(weight|bias)", _OUR_LAYER + r"attn.out_proj.\2"),
    Rule(_LAYER + r"layer_norm([12])\.(weight|bias)", _OUR_LAYER + r"ln_\2.\3"),
    Rule(_LAYER + r"mlp\.fc1\.(weight|bias)", _OUR_LAYER + r"mlp.c_fc.\2"),
    Rule(_LAYER + r"mlp\.fc2\.(weight|bias)", _OUR_LAYER + r"mlp.c_proj.\2"),
    Rule(r"(?:text_model\.)?final_layer_norm\.(weight|bias)", r"ln_final.\1"),
]
"""CLIPTextModel of transformers, with the prefix `text_model.` (before 5.0, and on the hub) or without."""


def unet_config(data: Json, motion: MotionConfig | None = None) -> UNetConfig:
    """From the config of a UNet2DConditionModel; raises CheckpointError if it is no SD-1.x UNet.

    Its `attention_head_dim` means the number of heads (diffusers' long-standing misnomer).
    """
    levels = len(data["block_out_channels"])
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    attention = tuple(_one_of(data["down_block_types"], kinds, "down_block_types"))
    mirrored = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    expect(
        data,
        "UNet2DConditionModel",
        {
            "up_block_types": mirrored,
            "out_channels": data["in_channels"],
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_eps": 1e-5,
            "act_fn": "silu",
            "downsample_padding": 1,
            "mid_block_scale_factor": 1,
            "use_linear_projection": False,
            "transformer_layers_per_block": 1,
            "resnet_time_scale_shift": "default",
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "num_attention_heads": None,
            "class_embed_type": None,
            "addition_embed_type": None,
            "time_cond_proj_dim": None,
            "encoder_hid_dim": None,
            "only_cross_attention": False,
        },
    )
    return UNetConfig(
        channels=tuple(data["block_out_channels"]),
        attention=attention,
        layers=_same(data, "layers_per_block", levels),
        latent_channels=data["in_channels"],
        context_dim=data["cross_attention_dim"],
        heads=_same(data, "attention_head_dim", levels),
        groups=data["norm_num_groups"],
        temporal=motion,
    )


def motion_config(data: Json, unet: Json) -> MotionConfig:
    """From the config of a MotionAdapter; `unet` is the config of the UNet that it belongs to.

    The norm is over the clip: diffusers' motion modules take its statistics over all frames together.

    Raises CheckpointError if the adapter has other layers than the UNet, or another structure than
    AnimateDiff's.
    """
    levels = len(unet["block_out_channels"])
    expect(
        data,
        "MotionAdapter",
        {
            "block_out_channels": list(unet["block_out_channels"]),
            "motion_transformer_layers_per_block": 1,
            "motion_mid_block_layers_per_block": 1,
            "motion_transformer_layers_per_mid_block": 1,
            "conv_in_channels": None,
        },
    )
    layers = _same(data, "motion_layers_per_block", levels)
    if layers != _same(unet, "layers_per_block", levels):
        raise CheckpointError(
            f"MotionAdapter: motion_layers_per_block is {layers}, but the UNet has "
            f"layers_per_block={unet['layers_per_block']}; they must be a pair"
        )
    return MotionConfig(
        heads=_same(data, "motion_num_attention_heads", levels),
        groups=data["motion_norm_num_groups"],
        max_frames=data["motion_max_seq_length"],
        mid=data["use_motion_mid_block"],
        norm_over="clip",
    )


def vae_config(data: Json) -> VAEConfig:
    """From the config of an AutoencoderKL; raises CheckpointError if it is not built like SD-1.x's."""
    levels = len(data["block_out_channels"])
    expect(
        data,
        "AutoencoderKL",
        {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "act_fn": "silu",
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "mid_block_add_attention": True,
        },
    )
    return VAEConfig(
        channels=tuple(data["block_out_channels"]),
        layers=data["layers_per_block"],
        latent_channels=data["latent_channels"],
        groups=data["norm_num_groups"],
        # configs of the first releases do not have the factor, which was a constant of the pipeline
        scale=data.get("scaling_factor", VAEConfig.scale),
    )


def text_config(data: Json, vocabulary: Json | None = None) -> TextConfig:
    """From the config of a CLIPTextModel and, for a tower with whole-word tokens, {"words": [...]}.

    Raises CheckpointError for an unknown activation or a vocabulary that does not belong to the tower.
    """
    expect(data, "CLIPTextModel", {"layer_norm_eps": 1e-5})
    (quick_gelu,) = _one_of([data["hidden_act"]], {"quick_gelu": True, "gelu": False}, "hidden_act")
    words = None if vocabulary is None else tuple(vocabulary["words"])
    if words is not None and (len(words) != data["vocab_size"] or words[:3] != ("<pad>", "<bos>", "<eos>")):
        raise CheckpointError(
            f"vocabulary of {len(words)} words beginning with {', '.join(words[:3])}: the text tower has "
            f"{data['vocab_size']} tokens, of which the first three must be <pad>, <bos>, <eos>"
        )
    return TextConfig(
        width=data["hidden_size"],
        layers=data["num_hidden_layers"],
        heads=data["num_attention_heads"],
        mlp_ratio=data["intermediate_size"] / data["hidden_size"],
        length=data["max_position_embeddings"],
        vocab_size=data["vocab_size"],
        quick_gelu=quick_gelu,
        words=words,
    )


def schedule_config(data: Json) -> ScheduleConfig:
    """From the config of a DDIM or PNDM scheduler; raises CheckpointError for another noise schedule."""
    expect(data, "scheduler", {"prediction_type": "epsilon", "clip_sample": False, "trained_betas": None})
    (curve,) = _one_of([data["beta_schedule"]], {"linear": "linear", "scaled_linear": "scaled_linear"}, "beta_schedule")
    return ScheduleConfig(
        train_steps=data["num_train_timesteps"],
        beta_start=data["beta_start"],
        beta_end=data["beta_end"],
        curve=curve,
        steps_offset=data.get("steps_offset", 0),
        final_alpha_one=data.get("set_alpha_to_one", True),
    )


def expect(data: Json, what: str, required: Json) -> None:
    """Raises CheckpointError unless every field of `required` is absent from `data` or has that value.

    An absent field has its library's default, which is the value that we support.
    """
    for name, value in required.items():
        if name in data and data[name] != value:
            raise CheckpointError(f"{what}: {name} is {data[name]!r}, but only {value!r} is supported")


def _one_of(values: list[str], meaning: Mapping[str, Any], field: str) -> list[Any]:
    for value in values:
        if value not in meaning:
            raise CheckpointError(f"{field}: {value!r} is not supported, only {', '.join(meaning)}")
    return [meaning[value] for value in values]


def _same(data: Json, name: str, levels: int) -> int:
    """A number that may also be given once per level, if all are equal."""
    value = data[name]
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(set(values)) != 1 or len(values) != levels:
        raise CheckpointError(f"{name} is {value!r}, but only the same number for all {levels} levels is supported")
    return values[0]
