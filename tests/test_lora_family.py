"""The base model that a LoRA was made for."""

import pytest

from anyi2v.checkpoints.lora_family import family

CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LDM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({f"{CROSS}.lora_down.weight": (4, 768)}, "SD-1.x"),
        ({f"{CROSS}.lora_down.weight": (4, 1024)}, "SD-2.x"),
        ({f"{LDM}.lora_down.weight": (4, 2048)}, "SDXL"),
        (
            {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 1024)},
            "SD-2.x",
        ),
        ({"base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)}, "SDXL"),
        ({f"{CROSS}.hada_w1_a": (320, 4), f"{CROSS}.hada_w1_b": (4, 1024)}, "SD-2.x"),
        ({f"{CROSS}.lokr_w1": (4, 32), f"{CROSS}.lokr_w2": (80, 64)}, "SDXL"),
        ({f"{CROSS}.lokr_w1_a": (4, 2), f"{CROSS}.lokr_w1_b": (2, 32), f"{CROSS}.lokr_w2_b": (2, 32)}, "SD-2.x"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 1024)}, "SD-2.x"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "SDXL"),
        ({"text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (4, 1280)}, "SDXL"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 3072)}, "a diffusion transformer"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "a diffusion transformer"),
        ({"lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3)}, ""),
        ({"motion_modules.0.attn2.to_k.lora_A.weight": (4, 1024)}, ""),
        ({f"{CROSS}.lora_down.weight": ()}, ""),
        ({}, ""),
    ],
)
def test_widths_and_names_tell_the_base(shapes: dict[str, tuple[int, ...]], expected: str) -> None:
    assert family(shapes, {}).partition(" (")[0] == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "SD-2.x"),
        ({"ss_base_model_version": "sd_v1"}, "SD-1.x"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD-2.x"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD-1.x"),
        ({"modelspec.architecture": "something else"}, ""),
        ({"ss_network_dim": "sdxl"}, ""),
    ],
)
def test_the_metadata_tell_it_where_the_shapes_do_not(metadata: dict[str, str], expected: str) -> None:
    assert family({"lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3)}, metadata) == expected
    assert family({f"{CROSS}.lora_down.weight": (4, 768)}, metadata) == "SD-1.x"
