"""Foreign layouts for tests: our names mapped to theirs, written independently of the converters' rules."""

import re
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def to_motion_adapter(ours: Tensors) -> Tensors:
    """Our temporal layers as a MotionAdapter, with the table that we do not store."""
    swaps = {
        ".temporals.": ".motion_modules.",
        ".attention_blocks.0.": ".attn1.",
        ".attention_blocks.1.": ".attn2.",
        ".norms.0.": ".norm1.",
        ".norms.1.": ".norm2.",
        ".ff_norm.": ".norm3.",
    }
    theirs = {_swap(key, swaps): tensor for key, tensor in ours.items() if ".temporals." in key}
    blocks = {key.split(".norm3.")[0] for key in theirs if ".norm3." in key}
    return theirs | {f"{block}.pos_embed.pe": torch.zeros(1, 4, 8) for block in blocks}


def to_animatediff(ours: Tensors) -> Tensors:
    theirs = {
        re.sub(r"\.temporals\.(\d+)\.", r".motion_modules.\1.temporal_transformer.", key): tensor
        for key, tensor in ours.items()
    }
    blocks = {key.split(".to_q")[0] for key in theirs if "attention_blocks" in key}
    return theirs | {f"{block}.pos_encoder.pe": torch.zeros(1, 4, 8) for block in blocks}


def to_clip_text(ours: Tensors, prefix: str = "text_model.") -> Tensors:
    swaps = {
        "token_embedding.": "embeddings.token_embedding.",
        "transformer.resblocks.": "encoder.layers.",
        "attn.out_proj": "self_attn.out_proj",
        ".ln_1.": ".layer_norm1.",
        ".ln_2.": ".layer_norm2.",
        ".c_fc.": ".fc1.",
        ".c_proj.": ".fc2.",
        "ln_final": "final_layer_norm",
    }
    theirs: Tensors = {}
    for key, tensor in ours.items():
        if key == "positional_embedding":
            theirs["embeddings.position_embedding.weight"] = tensor
        elif "in_proj_" in key:
            stem, kind = _swap(key, swaps).split("attn.in_proj_")
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{stem}self_attn.{name}_proj.{kind}"] = part
        else:
            theirs[_swap(key, swaps)] = tensor
    return {prefix + key: tensor for key, tensor in theirs.items()}


def to_old_vae(ours: Tensors) -> Tensors:
    swaps = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    return {_swap(key, swaps): tensor for key, tensor in ours.items()}


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def to_ldm_unet(ours: Tensors, layers: int) -> Tensors:
    """Our spatial UNet in LDM's layout, without prefix."""
    return {_ldm_unet_key(key, layers, ours): tensor for key, tensor in ours.items()}


def _ldm_unet_key(key: str, layers: int, ours: Tensors) -> str:
    first, *rest = key.split(".")
    if first in ("down_blocks", "up_blocks"):
        i, kind, j, rest = int(rest[0]), rest[1], int(rest[2]), rest[3:]
        side = "input" if first == "down_blocks" else "output"
        number = i * (layers + 1) + j + (side == "input")
        if kind == "downsamplers":
            return f"input_blocks.{(i + 1) * (layers + 1)}.0.op.{rest[-1]}"
        if kind == "upsamplers":
            place = 2 if f"up_blocks.{i}.attentions.0.norm.weight" in ours else 1
            return f"output_blocks.{i * (layers + 1) + layers}.{place}.conv.{rest[-1]}"
        return f"{side}_blocks.{number}.{_ldm_layer(kind, rest)}"
    if first == "mid_block":
        place = 1 if rest[0] == "attentions" else 2 * int(rest[1])
        return f"middle_block.{place}.{_ldm_layer(rest[0], rest[2:]).split('.', 1)[1]}"
    heads = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    if first == "time_embedding":
        return f"time_embed.{0 if rest[0] == 'linear_1' else 2}.{rest[1]}"
    return f"{heads[first]}.{rest[0]}"


def _ldm_layer(kind: str, rest: list[str]) -> str:
    if kind == "attentions":
        return "1." + ".".join(rest)
    return f"0.{RESNET[rest[0]]}.{rest[1]}"


def to_ldm_vae(ours: Tensors, levels: int) -> Tensors:
    """Our autoencoder in LDM's layout, without prefix: other names, and attention by 1 x 1 convolutions."""
    theirs = {}
    for key, tensor in ours.items():
        match = re.match(
            r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.", key
        )
        if match:
            side, i, kind, j = match.groups()
            stem = f"encoder.down.{i}" if side == "encoder" else f"decoder.up.{levels - 1 - int(i)}"
            part = f"block.{j}" if kind == "resnets" else kind.removesuffix("rs")
            key = f"{stem}.{part}.{key[match.end() :]}".replace("conv_shortcut", "nin_shortcut")
        swaps = {
            "mid_block.resnets.0": "mid.block_1",
            "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
            "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
            "mid_block.attentions.0.to_": "mid.attn_1.",
            "conv_norm_out": "norm_out",
        }
        key = _swap(key, swaps)
        linear = "attn_1" in key and key.endswith("weight") and "norm" not in key
        theirs[key] = tensor[:, :, None, None] if linear else tensor
    return theirs


def _swap(key: str, swaps: dict[str, str]) -> str:
    for old, new in swaps.items():
        key = key.replace(old, new)
    return key


def spatial(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if ".temporals." not in key}


def temporal(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if ".temporals." in key}


SD15_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-05,
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
}
SD15_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
}
SD15_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
}
SD15_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
ADAPTER: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 8,
    "motion_norm_num_groups": 32,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": False,
    "motion_transformer_layers_per_block": 1,
}
ANIMATEDIFF: dict[str, Any] = SD15_UNET | {
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
    "use_inflated_groupnorm": True,
    "use_motion_module": True,
    "motion_module_resolutions": [1, 2, 4, 8],
    "motion_module_mid_block": False,
    "motion_module_type": "Vanilla",
    "motion_module_kwargs": {
        "num_attention_heads": 8,
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_attention_dim_div": 1,
        "zero_initialize": True,
    },
}
