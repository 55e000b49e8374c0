"""Conversion of diffusers' and transformers' config.json files to our configurations."""

import warnings
from typing import Any

from anyi2v.backbone.config import MotionConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.errors import AnyI2VWarning, CheckpointError
from weights_converters.config_fields import Json, expect, one_of, same

_UNET: Json = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "use_linear_projection": False,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "center_input_sample": False,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "attention_type": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "class_embeddings_concat": False,
    "projection_class_embeddings_input_dim": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
}
"""Fields of a UNet2DConditionModel with their only supported values."""

_UNET_READ = (
    *("in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block"),
    *("sample_size", "cross_attention_dim", "attention_head_dim", "norm_num_groups"),
)
_VAE_READ = (
    *("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels"),
    *("norm_num_groups", "scaling_factor"),
)
_HARMLESS = (
    # training, precision and memory, and moving averages
    *("dropout", "dtype", "torch_dtype", "upcast_attention", "force_upcast", "sample_size"),
    *("addition_embed_type_num_heads", "decay", "inv_gamma", "min_decay", "optimization_step", "power"),
    *("update_after_step", "use_ema_warmup"),
)


def warn_of_unknown(data: Json, network: str, place: str) -> None:
    """Warn about fields of a config.json that are neither used nor checked.

    Args:
        data: the fields.
        network: "unet" or "vae", with a configuration of diffusers.
        place: name of the file.
    """
    known = {"unet": {*_UNET_READ, *_UNET}, "vae": {*_VAE_READ, *_VAE}}[network] | set(_HARMLESS)
    for name, value in data.items():
        if not name.startswith("_") and name not in known and value not in (None, False):
            warnings.warn(
                f"{place}: config.json has {name} = {value!r}, which is unknown; it is ignored",
                AnyI2VWarning,
                stacklevel=2,
            )


def _refuse_relatives(data: Json) -> None:
    """Raise CheckpointError, naming the family, if a UNet2DConditionModel belongs to a relative of SD-1.x."""
    inputs, width = data["in_channels"], data.get("cross_attention_dim")
    relatives = {
        "SDXL": data.get("addition_embed_type") == "text_time" or width in (1280, 2048),
        "Stable Diffusion 2.x": data["block_out_channels"][0] == 320 and width == 1024,
        "an inpainting model": inputs == 9,
        "an image-editing model such as InstructPix2Pix": inputs == 8,
        "a model with depth as an input": inputs == 5,
        "a latent consistency model whose guidance is an input (time_cond_proj_dim)": bool(
            data.get("time_cond_proj_dim")
        ),
    }
    for family, holds in relatives.items():
        if holds and data["block_out_channels"][0] >= 320:
            raise CheckpointError(f"UNet of {family}, which is not supported; only Stable Diffusion 1.x is")


def unet_config(data: Json, motion: MotionConfig | None = None) -> UNetConfig:
    """Convert the config of a UNet2DConditionModel; raises CheckpointError if it is not an SD-1.x UNet.

    Its `attention_head_dim` means the number of heads (diffusers' long-standing misnomer).
    """
    levels = len(data["block_out_channels"])
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    attention = tuple(one_of(data["down_block_types"], kinds, "down_block_types"))
    mirrored = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    _refuse_relatives(data)
    expect(data, "UNet2DConditionModel", {"up_block_types": mirrored, "out_channels": data["in_channels"], **_UNET})
    return UNetConfig(
        channels=tuple(data["block_out_channels"]),
        attention=attention,
        layers=same(data, "layers_per_block", levels),
        latent_channels=data["in_channels"],
        context_dim=data["cross_attention_dim"],
        heads=same(data, "attention_head_dim", levels),
        groups=data["norm_num_groups"],
        temporal=motion,
    )


def motion_config(data: Json, unet: Json) -> MotionConfig:
    """Convert the config of a MotionAdapter; `unet` is the config of the UNet that it belongs to.

    The norm is over the clip: diffusers' motion modules compute its statistics over all frames together.

    Raises CheckpointError if the adapter's layers do not match the UNet, or its structure is not AnimateDiff's.
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
    layers = same(data, "motion_layers_per_block", levels)
    if layers != same(unet, "layers_per_block", levels):
        raise CheckpointError(
            f"MotionAdapter: motion_layers_per_block is {layers}, but the UNet has "
            f"layers_per_block={unet['layers_per_block']}; they must be a pair"
        )
    return MotionConfig(
        heads=same(data, "motion_num_attention_heads", levels),
        groups=data["motion_norm_num_groups"],
        max_frames=data["motion_max_seq_length"],
        mid=data["use_motion_mid_block"],
        norm_over="clip",
    )


_VAE: Json = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""Fields of an AutoencoderKL with their only supported values."""

SDXL_SCALE = 0.13025


def vae_config(data: Json) -> VAEConfig:
    """Convert the config of an AutoencoderKL; raises CheckpointError if its structure is not SD-1.x's."""
    levels = len(data["block_out_channels"])
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    expect(data, "AutoencoderKL", {**blocks, **_VAE})
    if data.get("scaling_factor") == SDXL_SCALE and data["latent_channels"] == VAEConfig.latent_channels:
        raise CheckpointError(
            f"autoencoder of SDXL (scaling_factor {SDXL_SCALE}), whose latents do not match a UNet of SD-1.x; use "
            "one for SD-1.x, such as sd-vae-ft-mse"
        )
    return VAEConfig(
        channels=tuple(data["block_out_channels"]),
        layers=data["layers_per_block"],
        latent_channels=data["latent_channels"],
        groups=data["norm_num_groups"],
        # configs of early releases lack the factor, which was a constant of the pipeline
        scale=data.get("scaling_factor", VAEConfig.scale),
    )


def text_config(data: Json, vocabulary: Json | None = None) -> TextConfig:
    """Convert the config of a CLIPTextModel and, for a tower with whole-word tokens, {"words": [...]}.

    Raises CheckpointError for an unknown activation or a vocabulary that does not match the tower.
    """
    expect(data, "CLIPTextModel", {"layer_norm_eps": 1e-5})
    (quick_gelu,) = one_of([data["hidden_act"]], {"quick_gelu": True, "gelu": False}, "hidden_act")
    words = None if vocabulary is None else tuple(vocabulary["words"])
    if words is not None and (len(words) != data["vocab_size"] or words[:3] != ("<pad>", "<bos>", "<eos>")):
        raise CheckpointError(
            f"vocabulary of {len(words)} words starting with {', '.join(words[:3])}: the text tower has "
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


def warn_of_added_words(text: TextConfig, place: str) -> None:
    """Warn if a text tower has embeddings of words unknown to CLIP's tokenizer."""
    if text.words is None and text.vocab_size > TextConfig.vocab_size:
        warnings.warn(
            f"{place}: the text tower has {text.vocab_size - TextConfig.vocab_size} more tokens than CLIP; words that "
            "textual inversion added to its tokenizer cannot be used in a prompt",
            AnyI2VWarning,
            stacklevel=2,
        )


def schedule_config(data: Json) -> ScheduleConfig:
    """Convert the config of a diffusers scheduler with betas; raises CheckpointError for other noise schedules."""
    expect(
        data,
        "scheduler",
        {
            "prediction_type": "epsilon",
            "clip_sample": False,
            "thresholding": False,
            "trained_betas": None,
            "rescale_betas_zero_snr": False,
            "snr_shift_scale": 1,
            "use_flow_sigmas": False,
        },
    )
    (curve,) = one_of([data["beta_schedule"]], {"linear": "linear", "scaled_linear": "scaled_linear"}, "beta_schedule")
    return ScheduleConfig(
        train_steps=data["num_train_timesteps"],
        beta_start=data["beta_start"],
        beta_end=data["beta_end"],
        curve=curve,
        steps_offset=data.get("steps_offset", 0),
        # the only scheduler whose default is not True
        final_alpha_one=data.get("set_alpha_to_one", data.get("_class_name") != "PNDMScheduler"),
    )


def unused_settings(data: Json) -> list[str]:
    """Return the sampler settings of a scheduler's config that are ignored, as "name value"."""
    ours = {
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    }
    return [f"{name} {data[name]!r}" for name, value in ours.items() if data.get(name, value) not in (value, None)]


def in_2d(data: Json) -> dict[str, Any]:
    """Convert the config of a UNet with 3D block names to that of its spatial UNet."""
    lists = {key: [kind.replace("3D", "2D") for kind in data[key]] for key in ("down_block_types", "up_block_types")}
    middle = data.get("mid_block_type", "UNetMidBlock2DCrossAttn").replace("3D", "2D")
    return {**data, **lists, "mid_block_type": middle}
