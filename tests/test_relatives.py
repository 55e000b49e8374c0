"""Files of related projects: refused, and called by their names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.errors import AnyI2VError, CheckpointError
from weights_converters import relatives
from weights_converters.command import convert
from weights_converters.detect import detect

from . import foreign
from .layouts import SD15_UNET, SD15_VAE, spatial, to_clip_text

Shapes = dict[str, tuple[int, ...]]

UNET = "model.diffusion_model."
LDM: Shapes = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), "first_stage_model.encoder.conv_in.bias": (128,)}
MODULES = foreign.manifest("ad_motion_module_v3")
HOTSHOT = {
    key.replace(".motion_modules.", ".temporal_attentions.")
    .replace(".temporal_transformer.", ".")
    .replace(".pe", ".positional_encoding"): shape
    for key, shape in MODULES.items()
}
FILES: dict[str, tuple[Shapes, str]] = {
    "sdxl": ({**LDM, "conditioner.embedders.0.transformer.text_model.x": (1,)}, "SDXL, single file"),
    "sdxl refiner": ({**LDM, f"{UNET}label_emb.0.0.weight": (1,)}, "SDXL, single file"),
    "sdxl unet": ({**foreign.manifest("sd15_unet_diffusers"), "add_embedding.linear_1.bias": (1280,)}, "UNet of SDXL"),
    "ema": (
        {"model_ema.diffusion_modelinput_blocks00weight": (320,), "first_stage_model.encoder.conv_in.bias": (128,)},
        "only moving averages, model_ema",
    ),
    "pia": ({**MODULES, "conv_in.weight": (320, 9, 3, 3), "conv_in.bias": (320,)}, "PIA or FancyVideo"),
    "pia, whole unet": (
        {**MODULES, **foreign.manifest("sd15_unet_diffusers"), "conv_in.weight": (320, 9, 3, 3)},
        "PIA or FancyVideo",
    ),
    "pia, adapter": ({**foreign.manifest("motion_adapter_v3"), "conv_in.weight": (320, 9, 3, 3)}, "PIA or FancyVideo"),
    "input layer without a unet": ({**MODULES, "conv_in.weight": (320, 4, 3, 3)}, "PIA or FancyVideo"),
    "animatelcm i2v": ({**MODULES, "img_encoder.conv_in.bias": (320,)}, "AnimateLCM-I2V"),
    "hotshotxl": (HOTSHOT, "HotshotXL"),
    "animatediff sdxl": ({k: s for k, s in MODULES.items() if "_blocks.3." not in k}, "AnimateDiff for SDXL"),
    "adapter sdxl": (
        {k: s for k, s in foreign.manifest("motion_adapter_v1").items() if "_blocks.3." not in k},
        "AnimateDiff for SDXL",
    ),
    "unet motion model": (
        {**foreign.manifest("motion_adapter_v2"), **foreign.manifest("sd15_unet_diffusers")},
        "UNetMotionModel",
    ),
    "controlnet": (
        {"controlnet_cond_embedding.conv_in.bias": (16,), "controlnet_mid_block.bias": (1280,)},
        "ControlNet",
    ),
    "controlnet, ldm": ({"control_model.input_hint_block.0.bias": (16,)}, "ControlNet"),
    "controlnet, bare": ({"input_hint_block.0.bias": (16,), "input_blocks.0.0.bias": (320,)}, "ControlNet"),
    "controlnet with its base": (
        {**LDM, "control_model.zero_convs.0.0.bias": (320,)},
        "ControlNet with the Stable Diffusion",
    ),
    "t2i-adapter": ({"body.0.block1.bias": (320,), "conv_in.bias": (320,)}, "T2I-Adapter"),
    "ip-adapter": ({"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.bias": (3072,)}, "IP-Adapter"),
    "cameractrl": ({"pose_encoder_state_dict.encoder_conv_in.bias": (320,)}, "CameraCtrl"),
    "modelscope": ({"conv_in.bias": (320,), "down_blocks.0.temp_convs.0.conv1.0.bias": (320,)}, "ModelScope"),
    "svd": ({**LDM, f"{UNET}input_blocks.1.0.time_stack.in_layers.0.bias": (320,)}, "Stable Video Diffusion"),
    "flux": ({"double_blocks.0.img_attn.proj.bias": (3072,)}, "Flux"),
    "sd3": ({f"{UNET}joint_blocks.0.context_block.attn.proj.bias": (1536,)}, "Flux, Stable Diffusion 3"),
    "bare ldm unet": (
        {"input_blocks.0.0.bias": (320,), "time_embed.0.bias": (1280,)},
        "UNet alone in the layout of LDM",
    ),
    "taesd": ({"encoder.layers.0.bias": (64,), "decoder.layers.0.bias": (64,)}, "TAESD"),
    "open_clip": ({"transformer.resblocks.0.ln_1.bias": (1024,), "ln_final.bias": (1024,)}, "open_clip"),
    "image tower": ({"vision_model.encoder.layers.0.layer_norm1.bias": (1024,)}, "image tower"),
    "quantised": ({**LDM, "scaled_fp8": (1,)}, "quantised"),
    "embedding of diffusers": ({"<cat-toy>": (768,)}, "textual inversion embedding"),
    "embedding of A1111": ({"string_to_param.*": (4, 768)}, "textual inversion embedding"),
    "embedding, safetensors": ({"emb_params": (4, 768)}, "textual inversion embedding"),
    "embedding of SDXL": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "textual inversion embedding"),
}


@pytest.mark.parametrize("name", FILES)
def test_relatives_are_called_by_their_names(name: str) -> None:
    shapes, words = FILES[name]
    finding = detect(shapes)
    assert finding.kind in ("relative", "embedding")
    assert words in str(finding)


@pytest.mark.parametrize(
    "name", ["pia", "hotshotxl", "animatediff sdxl", "ema", "controlnet", "embedding of diffusers"]
)
@pytest.mark.parametrize("option", ["base", "motion_module"])
def test_each_is_refused_whatever_option_it_is_given_with(tmp_path: Path, name: str, option: str) -> None:
    """Above all PIA, whose input layer must not be lost."""
    shapes, words = FILES[name]
    small = {
        key: torch.zeros(1).expand(shape).clone() if len(shape) == 4 else torch.zeros(1)
        for key, shape in shapes.items()
    }
    small |= {key: torch.zeros(shape) for key, shape in shapes.items() if key.endswith(("norm.weight", ">"))}
    relative = foreign.write(small, tmp_path / "relative.ckpt")
    files = {"base": foreign.write(foreign.ldm(), tmp_path / "base.safetensors")} | {option: relative}
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        CheckpointError, match=rf"relative\.ckpt looks like: .*{words}.*; --{option.replace('_', '-')} takes"
    ):
        convert(foreign.options(files.pop("base"), out, **files))
    assert not out.exists()


@pytest.mark.parametrize("name", sorted(foreign.manifests()))
def test_no_supported_file_is_taken_for_a_relative(name: str) -> None:
    shapes = foreign.manifest(name)
    assert detect(shapes).kind not in ("relative", "embedding", "unknown")
    assert not relatives.is_embedding(shapes)


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "manifests" / "video").glob("*.json")))
def test_nor_is_a_video_model(path: Path) -> None:
    assert relatives.name_of({key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"},
            "textual inversion",
        ),
        (
            {"ip_adapter": {"1.to_k_ip.weight": torch.zeros(4, 4)}, "image_proj": {"proj.bias": torch.zeros(4)}},
            "IP-Adapter",
        ),
        ({"pose_encoder_state_dict": {"x": torch.zeros(1)}, "epoch": 3}, "CameraCtrl"),
        ({320: (torch.zeros(1), torch.zeros(1)), "layer_structure": [1, 2]}, "a hypernetwork"),
    ],
)
def test_pickles_of_nested_tables_are_named(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt .*{message}"):
        convert(foreign.options(tmp_path / "x.pt", tmp_path / "out.safetensors"))


def single_file(inputs: int, width: int) -> dict[str, torch.Tensor]:
    """As much of a single file of the published width as tells its family."""
    keys = ("input_blocks.1.0.in_layers.0.bias", "input_blocks.2.0.in_layers.0.bias", "input_blocks.3.0.op.weight")
    return {
        **{UNET + key: torch.zeros(1) for key in keys},
        f"{UNET}input_blocks.0.0.weight": torch.zeros(320, inputs, 3, 3),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, width),
        "cond_stage_model.model.ln_final.bias": torch.zeros(1024),
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (single_file(4, 1024), "1024 wide instead of 768: SD-2"),
        (single_file(9, 768), "9 channels instead of 4: an inpainting model"),
        (single_file(8, 768), "8 channels instead of 4: an image-editing model"),
        (single_file(5, 1024), "5 channels instead of 4: a model with depth"),
        (
            {**single_file(4, 768), f"{UNET}time_embed.cond_proj.weight": torch.zeros(320, 256)},
            "a latent consistency model",
        ),
    ],
)
def test_the_family_of_a_single_file_is_named_before_what_it_lacks(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = foreign.write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: not a UNet of SD-1\.x: .*{message}"):
        convert(foreign.options(path, tmp_path / "out.safetensors"))


def test_a_file_without_the_network_that_it_was_given_for_is_named(tmp_path: Path) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    other = foreign.write(single_file(4, 1024), tmp_path / "sd2.safetensors")
    with pytest.raises(CheckpointError, match=r"sd2\.safetensors .*2\.x.* has no readable text"):
        convert(foreign.options(base, tmp_path / "out.safetensors", text=other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addition_embed_type": "text_time", "cross_attention_dim": 2048}, "UNet of SDXL"),
        ({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}, r"UNet of Stable Diffusion 2\.x"),
        ({"in_channels": 9}, "UNet of an inpainting model"),
        ({"in_channels": 8}, "UNet of an image-editing model"),
        ({"time_cond_proj_dim": 256}, "latent consistency"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"num_class_embeds": 10}, "num_class_embeds is 10"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"only_cross_attention": [True, False, False, False]}, "only_cross_attention"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"resnet_out_scale_factor": 1.4}, "resnet_out_scale_factor"),
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"act_fn": "gelu"}, "act_fn"),
    ],
)
def test_a_config_of_a_relative_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = tmp_path / "unet"
    foreign.write(spatial(foreign.networks()[0]), folder / "x.safetensors")
    (folder / "config.json").write_text(json.dumps(SD15_UNET | change))
    with pytest.raises(CheckpointError, match=rf"unet: .*{message}"):
        convert(foreign.options(folder, tmp_path / "out.safetensors"))


def test_the_autoencoder_of_sdxl_is_refused_by_the_scale_of_its_latents(tmp_path: Path) -> None:
    """Its tensors have the names and shapes of SD-1.x's."""
    folder = tmp_path / "vae"
    foreign.write(foreign.networks()[1], folder / "x.safetensors")
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    (folder / "config.json").write_text(json.dumps(SD15_VAE | {"scaling_factor": 0.13025}))
    with pytest.raises(CheckpointError, match="vae: autoencoder of SDXL"):
        convert(foreign.options(base, tmp_path / "out.safetensors", vae=folder))


@pytest.mark.parametrize(("network", "message"), [("text", "text tower gives 128"), ("vae", "autoencoder gives 8")])
def test_networks_of_different_families_are_not_put_together(tmp_path: Path, network: str, message: str) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    other = tmp_path / "other.safetensors"
    if network == "text":
        small = {"token_embedding.weight": torch.zeros(20, 128), "positional_embedding": torch.zeros(6, 128)}
        text = {**foreign.networks()[2], **small}
        save_file({key: x.contiguous() for key, x in to_clip_text(text).items()}, other)
    else:
        vae = {**foreign.networks()[1], "post_quant_conv.weight": torch.zeros(8, 8, 1, 1)}
        save_file({key: x.contiguous() for key, x in vae.items()}, other)
    with pytest.raises(AnyI2VError, match=rf"other\.safetensors: the {message} channels"):
        convert(foreign.options(base, tmp_path / "out.safetensors", **{network: other}))
