"""LaVie's and VideoCrafter2's files by the command: every tensor accounted for, presets, what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, FactorisedConfig, RotaryConfig
from anyi2v.backbone.networks import build, state
from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import CheckpointError, InputError
from weights_converters import lavie, videocrafter
from weights_converters.command import convert
from weights_converters.detect import detect
from weights_converters.inspection import describe

from . import foreign
from .layouts import Tensors, to_clip_text, to_ldm_unet, to_ldm_vae

LAYERS = foreign.LAYERS
LAVIE = dataclasses.replace(
    foreign.SMALL,
    unet=dataclasses.replace(foreign.SMALL.unet, norm_over="clip", temporal=RotaryConfig()),
    schedule=lavie.SCHEDULE,
    method=lavie.METHOD,
)
VIDEOCRAFTER = dataclasses.replace(
    foreign.SMALL,
    unet=dataclasses.replace(
        foreign.SMALL.unet,
        head_dim=8,
        linear_projection=True,
        fps_embedding=True,
        even_grids=True,
        temporal=FactorisedConfig(head_dim=8, stem_head_dim=8),
    ),
    text=dataclasses.replace(foreign.SMALL.text, quick_gelu=False, penultimate=True, pad_zero=True),
    schedule=videocrafter.SCHEDULE,
    method=videocrafter.METHOD,
)


def random_state(config: BackboneConfig, dtype: torch.dtype) -> Tensors:
    """All tensors of a backbone under our names, none of them what an initialisation gives."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in state(build(config)).items()}
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def network(tensors: Tensors, name: str) -> Tensors:
    return {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}


def to_lavie(ours: Tensors) -> Tensors:
    """Our UNet in LaVie's layout, with the frequencies that it keeps."""
    swaps = {
        ".temporal.relative_bias.": ".attn_temp.time_rel_pos_bias.relative_attention_bias.",
        ".temporal.attn.": ".attn_temp.",
        ".temporal.norm.": ".norm_temp.",
    }
    theirs: Tensors = {}
    for key, tensor in ours.items():
        for old, new in swaps.items():
            key = key.replace(old, new)
        theirs[key] = tensor
    blocks = {key.split(".norm_temp")[0] for key in theirs if ".norm_temp" in key}
    return theirs | {f"{block}.attn_temp.rotary_emb.freqs": torch.zeros(16) for block in blocks}


def to_videocrafter(ours: Tensors) -> Tensors:
    """Our UNet in VideoCrafter2's layout, without prefix."""
    plain = {
        key: x for key, x in ours.items() if not re.search(r"temporal|fps_embedding", key) and "mid_block" not in key
    }
    theirs = to_ldm_unet(plain, LAYERS)
    # behind a temporal transformer the upsampler is the fourth module of its block, not the third
    theirs = {re.sub(r"(output_blocks\.\d+)\.2\.conv", r"\1.3.conv", key): x for key, x in theirs.items()}
    mid = {"resnets.0": "0", "attentions.0": "1", "temporals.0": "2", "resnets.1": "3"}
    for key, tensor in ours.items():
        parts = key.split(".")
        if parts[0] == "fps_embedding":
            theirs[f"fps_embedding.{0 if parts[1] == 'linear_1' else 2}.{parts[2]}"] = tensor
        elif parts[0] == "stem_temporal":
            convolution = parts[1] in ("proj_in", "proj_out") and parts[-1] == "weight"
            theirs["init_attn.0." + inner(".".join(parts[1:]))] = tensor[..., None] if convolution else tensor
        elif parts[0] == "mid_block":
            theirs[f"middle_block.{mid['.'.join(parts[1:3])]}.{module(parts[1], parts[3:])}"] = tensor
        elif "temporal" in key:
            i, j, down = int(parts[1]), int(parts[3]), parts[0] == "down_blocks"
            block = f"{'input' if down else 'output'}_blocks.{i * (LAYERS + 1) + j + down}"
            place = 2 if parts[2] == "temporals" else 0
            theirs[f"{block}.{place}.{module(parts[2], parts[4:])}"] = tensor
    return theirs


def module(kind: str, rest: list[str]) -> str:
    """The end of a key inside a ResBlock, a spatial or a temporal transformer."""
    if kind != "resnets":
        return inner(".".join(rest))
    if rest[0] == "temporal":
        k = int(rest[2])
        return f"temopral_conv.conv{k + 1}.{0 if rest[1] == 'norms' else 2 if k == 0 else 3}.{rest[3]}"
    old = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
    old |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    return f"{old[rest[0]]}.{rest[1]}"


def inner(key: str) -> str:
    """The end of a key inside a temporal transformer (a spatial one has the same names in both)."""
    key = re.sub(r"attention_blocks\.(\d)", lambda m: f"attn{int(m[1]) + 1}", key)
    return re.sub(r"norms\.(\d)", lambda m: f"norm{int(m[1]) + 1}", key).replace("ff_norm", "norm3")


def videocrafter_file(tensors: Tensors) -> Tensors:
    text = {f"cond_stage_model.model.{key}": x for key, x in network(tensors, "text").items()}
    vae = {f"first_stage_model.{key}": x for key, x in to_ldm_vae(network(tensors, "vae"), 2).items()}
    unet = {f"model.diffusion_model.{key}": x for key, x in to_videocrafter(network(tensors, "unet")).items()}
    extras = {
        "scale_arr": torch.cat([torch.linspace(1, 0.7, 400), torch.full((1000,), 0.7)]),
        "betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
        "cond_stage_model.model.logit_scale": torch.zeros(()),
    }
    return {**unet, **vae, **text, **extras, "cond_stage_model.model.text_projection": torch.zeros(8, 8)}


def check(out: Path, wanted: Tensors, config: BackboneConfig) -> None:
    assert load(out).config == config
    written = load_file(out)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], wanted[key].to(torch.float32)) for key in wanted)


@settings(max_examples=8)
@given(
    dtype=st.sampled_from([torch.float16, torch.float32]),
    suffix=st.sampled_from([".safetensors", ".pt"]),
    wrapper=st.sampled_from(["", "ema"]),
)
def test_lavies_unet_and_its_companions_make_a_backbone(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, suffix: str, wrapper: str
) -> None:
    folder = tmp_path_factory.mktemp("lavie")
    tensors = random_state(LAVIE, dtype)
    base = foreign.write(to_lavie(network(tensors, "unet")), folder / f"lavie_base{suffix}", wrapper)
    vae = foreign.write(network(tensors, "vae"), folder / "vae.safetensors")
    text = foreign.write(to_clip_text(network(tensors, "text")), folder / "text.safetensors")
    out = folder / "out.safetensors"
    convert(foreign.options(base, out, vae=vae, text=text, dtype="fp32"))
    check(out, tensors, dataclasses.replace(LAVIE, name="out", height=80))
    assert "complete: no tensors are missing" in describe(base)
    assert "UNet of LaVie" in describe(base)


@settings(max_examples=8)
@given(
    dtype=st.sampled_from([torch.float16, torch.float32]),
    suffix=st.sampled_from([".safetensors", ".ckpt"]),
    wrapper=st.sampled_from(["", "state_dict", "module"]),
)
def test_videocrafters_file_makes_a_backbone(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, suffix: str, wrapper: str
) -> None:
    folder = tmp_path_factory.mktemp("vc")
    tensors = random_state(VIDEOCRAFTER, dtype)
    theirs = videocrafter_file(tensors)
    if wrapper == "module" and suffix == ".ckpt":  # as DeepSpeed writes it
        theirs = {f"_forward_module.{key}": x for key, x in theirs.items()}
    base = foreign.write(theirs, folder / f"model{suffix}", wrapper)
    out = folder / "out.safetensors"
    said = convert(foreign.options(base, out, dtype="fp32"))
    check(out, tensors, dataclasses.replace(VIDEOCRAFTER, name="out", height=80, fps=28))
    assert "VideoCrafter, version 2" in said
    assert describe(base).count("complete: no tensors are missing") == 3


@pytest.mark.parametrize("table", ["betas", "scale_arr"])
def test_tables_of_another_schedule_than_the_familys_are_refused(tmp_path: Path, table: str) -> None:
    theirs = videocrafter_file(random_state(VIDEOCRAFTER, torch.float16))
    other = {"betas": torch.linspace(0.00085, 0.012, 1000), "scale_arr": torch.ones(1000)}[table]
    base = foreign.write(theirs | {table: other}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=rf"b\.safetensors: the table {table}"):
        convert(foreign.options(base, tmp_path / "o.safetensors"))


def test_a_motion_module_beside_temporal_layers_is_refused(tmp_path: Path) -> None:
    base = foreign.write(videocrafter_file(random_state(VIDEOCRAFTER, torch.float16)), tmp_path / "b.safetensors")
    motion = foreign.write(foreign.motion(), tmp_path / "mm.ckpt")
    with pytest.raises(InputError, match="its own temporal layers"):
        convert(foreign.options(base, tmp_path / "o.safetensors", motion_module=motion))


def test_lavie_alone_needs_its_companions(tmp_path: Path) -> None:
    base = foreign.write(to_lavie(network(random_state(LAVIE, torch.float16), "unet")), tmp_path / "lavie.pt")
    with pytest.raises(InputError, match="--vae"):
        convert(foreign.options(base, tmp_path / "o.safetensors"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    theirs = videocrafter_file(random_state(VIDEOCRAFTER, torch.float16))
    lost: dict[str, Tensor] = {key: x for key, x in theirs.items() if "middle_block.2.norm" not in key}
    base = foreign.write(lost, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"mid_block\.temporals\.0\.norm\.weight"):
        convert(foreign.options(base, tmp_path / "o.safetensors"))


def test_version_1_is_told_apart() -> None:
    keys = {"model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.0.weight": (32,)}
    assert "version 2" in str(detect(keys))
    relative = "model.diffusion_model.input_blocks.1.2.transformer_blocks.0.attn1.relative_position_k.embeddings_table"
    assert "not supported" in str(detect({**keys, relative: (33, 64)}))
