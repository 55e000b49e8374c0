"""The header of a checkpoint, read with the standard library only."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from anyi2v.backbone.config import BackboneConfig, TextConfig
from anyi2v.checkpoints import header
from anyi2v.checkpoints.header import guess, read_config, read_header, resolve
from anyi2v.errors import CheckpointError, InputError

CONFIG = BackboneConfig(name="tiny", text=TextConfig(words=("<pad>", "<bos>", "<eos>", "a")), frames=3)
TENSORS = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}


def content(metadata: dict[str, str]) -> bytes:
    return save(TENSORS, metadata)


@pytest.fixture(scope="module")
def whole() -> bytes:
    return content({"anyi2v": CONFIG.to_json(), "format": "1"})


def test_the_header_tells_shapes_dtypes_and_configuration(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole)
    found = read_header(path)
    assert found.shapes == {"a.weight": (2, 3), "b": (4,)}
    assert found.dtypes == {"a.weight": "F32", "b": "F16"}
    assert read_config(path) == CONFIG


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_config(path)


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=64), framed=st.booleans())
def test_other_files_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes, framed: bool) -> None:
    path = tmp_path_factory.mktemp("other") / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw if framed else raw)
    with pytest.raises(CheckpointError):
        read_config(path)


@pytest.mark.parametrize("table", ["[]", '{"a": 1}', '{"a": {"shape": [1]}}', '{"__metadata__": 3}'])
def test_json_that_is_no_tensor_table_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(table)) + table.encode())
    with pytest.raises(CheckpointError):
        read_config(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no entry 'anyi2v'.*weights_converters"),
        ({"anyi2v": CONFIG.to_json()}, "format None"),
        ({"anyi2v": CONFIG.to_json(), "format": "2"}, "format '2'"),
        ({"anyi2v": "{", "format": "1"}, "configuration cannot be read"),
        ({"anyi2v": "{}", "format": "1"}, "configuration cannot be read"),
        ({"anyi2v": '{"name": "x", "unet": 3}', "format": "1"}, "configuration cannot be read"),
        ({"anyi2v": '{"name": "x", "unet": {"temporal": 3}}', "format": "1"}, "configuration cannot be read"),
        ({"anyi2v": '{"name": "x", "colour": 3}', "format": "1"}, "no field colour"),
    ],
)
def test_unreadable_configurations_are_refused(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content(metadata))
    with pytest.raises(CheckpointError, match=message):
        read_config(path)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'no/such/file'.*shipped backbones are .*micro"):
        resolve("no/such/file")
    with pytest.raises(InputError):
        resolve(tmp_path)


def test_shipped_names_lie_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(header.SHIPPED, "marker", "py.typed")
    assert resolve("marker") == Path(header.__file__).parents[1] / "py.typed"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "single file"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "AnimateDiff"),
        ("down_blocks.0.motion_modules.0.norm.weight", "MotionAdapter"),
        ("decoder.up_blocks.0.resnets.0.norm1.weight", "AutoencoderKL"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "CLIPTextModel"),
        ("down_blocks.0.resnets.0.norm1.weight", "diffusers UNet"),
        ("unet.conv_in.weight", "an anyi2v checkpoint"),
        ("classifier.weight", "an unknown format.*classifier.weight"),
    ],
)
def test_foreign_files_are_recognised(key: str, kind: str) -> None:
    assert re.search(kind, guess([key, "zzz"]))


def test_no_torch_is_needed(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(whole)
    code = (
        "import sys; from anyi2v.checkpoints.header import read_config; import json;"
        "print(read_config(sys.argv[1]).to_json()); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == json.loads(CONFIG.to_json())
