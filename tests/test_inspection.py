"""What `anyi2v convert --inspect` says of a file."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from anyi2v.errors import CheckpointError, InputError
from weights_converters.inspection import describe
from weights_converters.sources import parameters

from . import foreign

WHOLE = "complete: no tensors are missing or left over"


def test_a_single_file(tmp_path: Path) -> None:
    path = foreign.write(foreign.ldm(torch.float16), tmp_path / "x.safetensors")
    lines = describe(path).splitlines()
    assert lines[0] == f"{path}: Stable Diffusion single file (LDM layout), 1.x, with moving average"
    assert f"{len(foreign.ldm())} tensors" in lines[1] and f"{path.stat().st_size:,} bytes" in lines[1]
    assert lines[2].startswith("  dtypes: float16 (")
    assert sum(WHOLE in line for line in lines) == 3
    assert "  not needed: 2, a moving average from training; the plain weights are used" in lines
    assert "  not needed: 1, position ids, which are 0, 1, 2, ..." in lines
    assert not any(", of the autoencoder" in line for line in lines), "a network of the file itself is not left out"


def test_a_motion_module(tmp_path: Path) -> None:
    path = foreign.write(foreign.motion("v1"), tmp_path / "x.ckpt", "state_dict", module=True)
    said = describe(path)
    count = parameters({k: tuple(x.shape) for k, x in foreign.motion("v1", positions=False).items()})
    assert "AnimateDiff motion module, v1" in said
    assert f"{count:,} parameters" in said
    assert WHOLE in said


def test_what_is_missing_or_extra_is_counted_and_named(tmp_path: Path) -> None:
    theirs = foreign.motion()
    lost = [key for key in theirs if "up_blocks.1" in key and key.endswith("proj_out.bias")]
    kept = {key: tensor for key, tensor in theirs.items() if key not in lost} | {"extra": torch.zeros(1)}
    said = describe(foreign.write(kept, tmp_path / "x.safetensors"))
    assert "1 without a rule: extra" in said
    assert f"{len(lost)} that the network needs but no source has: up_blocks.1.temporals.0.proj_out.bias" in said
    assert WHOLE not in said


def test_a_network_that_cannot_be_measured_is_said_so(tmp_path: Path) -> None:
    theirs = {key: tensor for key, tensor in foreign.ldm().items() if not key.startswith("cond_stage")}
    theirs.pop("first_stage_model.encoder.conv_in.weight")
    said = describe(foreign.write(theirs, tmp_path / "x.safetensors"))
    assert "vae: " in said and "encoder.conv_in.weight is missing" in said
    assert "text: not in this file" in said


def test_sparsectrl_is_recognised(tmp_path: Path) -> None:
    for kind in ("rgb", "scribble"):
        said = describe(hollow(foreign.manifest(f"ad_sparsectrl_{kind}"), tmp_path / f"{kind}.ckpt"))
        assert f"SparseCtrl encoder, {kind}" in said and WHOLE in said
        assert "not needed: 1, of the first convolution" in said
    small = {key: torch.zeros(2) for key in foreign.manifest("ad_sparsectrl_rgb")}
    said = describe(foreign.write(small, tmp_path / "x.ckpt", "controlnet"))
    assert "SparseCtrl encoder, rgb" in said and "the network's size is unknown" in said


@pytest.mark.parametrize("name", ["ad_domain_adapter_v3_pattern", "ad_motion_lora_v2_pattern"])
def test_a_lora_is_held_against_the_published_networks(tmp_path: Path, name: str) -> None:
    shapes = foreign.manifest(name)
    said = describe(hollow(shapes, tmp_path / "x.ckpt"))
    assert f"changes {len(shapes) // 2} weights" in said
    assert f"kinds: LoRA ({len(shapes) // 2})" in said
    ranks = {shape[0] for key, shape in shapes.items() if ".down." in key}
    assert all(f"{rank} (" in said for rank in ranks)
    assert "match no weight" not in said and "shape" not in said and "made for" not in said
    strange = {"x.processor.to_q_lora.down.weight": (2, 2)}
    assert "1 that match no weight: x.proc" in describe(hollow({**shapes, **strange}, tmp_path / "y.ckpt"))


def hollow(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """A pickled file whose tensors have one number each, however large they are."""
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, path)
    return path


def lora(context: int, prefix: str = "lora_unet_") -> dict[str, tuple[int, ...]]:
    """A kohya file over the first spatial transformer of a UNet that reads text of that width."""
    block = f"{prefix}down_blocks_0_attentions_0_transformer_blocks_0"
    inputs = {"attn1_to_q": 320, "attn1_to_k": 320, "attn2_to_q": 320, "attn2_to_k": context, "attn2_to_v": context}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in inputs.items():
        shapes |= {f"{block}_{name}.lora_down.weight": (4, width), f"{block}_{name}.lora_up.weight": (320, 4)}
        shapes[f"{block}_{name}.alpha"] = ()
    return shapes


@pytest.mark.parametrize(("context", "base"), [(1024, "SD-2.x"), (2048, "SDXL")])
def test_a_lora_for_another_base_is_not_called_fine(tmp_path: Path, context: int, base: str) -> None:
    said = describe(hollow(lora(context), tmp_path / "x.ckpt"))
    assert f"made for {base} instead of SD-1.x (not supported)" in said
    assert "changes 3 weights" in said
    assert "2 of another shape than SD-1.5's: " in said and f"attn2_to_k.lora_down.weight (4, {context})" in said
    fine = describe(hollow(lora(768), tmp_path / "y.ckpt"))
    assert "changes 5 weights" in fine and "shape" not in fine and "made for" not in fine


def test_kinds_of_updates_are_counted_and_named(tmp_path: Path) -> None:
    shapes = lora(768)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn"
    shapes[f"{next(iter(shapes)).partition('.')[0]}.dora_scale"] = (320, 1)
    shapes |= {
        f"{stem}1_to_q.hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", (1280, 8)), ("b", (8, 1280)))
    }
    shapes |= {f"{stem}1_to_k.lokr_w1": (2, 2), f"{stem}1_to_k.lokr_w2": (640, 640)}
    shapes |= {f"{stem}1_to_v.weight": (1280,), f"{stem}1_to_v.on_input": ()}
    shapes |= {f"{stem}2_to_q.oft_blocks": (4, 320, 320), "bundle_emb.style.clip_l": (2, 768)}
    said = describe(hollow(shapes, tmp_path / "x.ckpt"))
    assert "changes 8 weights" in said
    assert "kinds: LoRA (4), " in said and all(f"{kind} (1)" in said for kind in ("DoRA", "LoHa", "LoKr", "IA3"))
    assert "ranks: 4 (5), 8 (1)" in said
    assert f"1 that match no weight: {stem}2_to_q.oft_blocks" in said
    assert "not supported: OFT or BOFT (1 keys)" in said
    assert "embeddings in it: style" in said


@pytest.mark.parametrize(
    "sides",
    [("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("lokr_w1", "lokr_w2"), ("oft_blocks",), ("diff", "diff_b")],
)
def test_relatives_of_lora_are_recognised_as_such(tmp_path: Path, sides: tuple[str, ...]) -> None:
    shapes = {f"lora_unet_conv_in.{side}": (2, 2) for side in sides}
    assert describe(hollow(shapes, tmp_path / "x.ckpt")).splitlines()[0].endswith(": LoRA, kohya naming")


def test_unusable_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        describe(tmp_path / "absent")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        describe(tmp_path / "x.safetensors")
