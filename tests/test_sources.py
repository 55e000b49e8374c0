"""Files and folders of weights: what is in them is read tensor by tensor, and what is dangerous is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from anyi2v.errors import CheckpointError, InputError
from weights_converters.sources import open_source, weights_file

from . import foreign
from .layouts import Tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@settings(max_examples=40)
@given(
    suffix=st.sampled_from([".safetensors", ".ckpt", ".pt", ".pth", ".bin"]),
    wrapper=st.sampled_from(["", "state_dict", "controlnet"]),
    module=st.booleans(),
)
def test_all_formats_and_wrappers_give_the_same_tensors(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, wrapper: str, module: bool
) -> None:
    path = foreign.write(TENSORS, tmp_path_factory.mktemp("x") / f"x{suffix}", wrapper, module)
    source = open_source(path)
    assert dict(source.shapes) == {"a.weight": (2, 3), "b": (4,)}
    assert dict(source.dtypes) == {"a.weight": "float32", "b": "bfloat16"}
    assert all(torch.equal(source[key], TENSORS[key]) for key in TENSORS)
    assert list(source) == list(source.shapes) and len(source) == 2
    assert source.original("b") == ("module.b" if module else "b")
    assert source.size == path.stat().st_size


def test_wrappers_may_lie_in_each_other_and_gradients_do_not_follow(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"controlnet": {"state_dict": {"module.x": parameter}}}, tmp_path / "x.ckpt")
    tensor = open_source(tmp_path / "x.ckpt")["x"]
    assert torch.equal(tensor, torch.ones(2)) and not tensor.requires_grad


def test_files_older_than_pytorch_1_6_are_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(open_source(tmp_path / "x.ckpt")["b"], TENSORS["b"])


class Code:
    """Leaves a trace if it is ever run."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("place", ["beside", "inside", "bare"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, new: bool, place: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    content = {"beside": {"x": Code(trace), **TENSORS}, "inside": {"state_dict": Code(trace)}, "bare": Code(trace)}
    if place == "bare":
        path.write_bytes(pickle.dumps(content[place], protocol=2))
    else:
        torch.save(content[place], path, _use_new_zipfile_serialization=new)
    with pytest.raises(
        CheckpointError, match=r"x\.ckpt is a pickle that contains code \(posix\.mkdir\).*never executed"
    ):
        open_source(path)
    assert not trace.exists()


def test_a_pickle_of_a_kind_that_pytorch_does_not_read_is_not_run_either(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Code(tmp_path / "trace"), protocol=4))
    with pytest.raises(CheckpointError, match=r"x\.ckpt is damaged or contains more than tensors \(Unsupported"):
        open_source(tmp_path / "x.ckpt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights|damaged"),
        (b"PK\x03\x04 and no more", "cannot be read as weights|damaged"),
        (pickle.dumps([1, 2]), "cannot be read as weights|damaged"),
    ],
)
def test_what_is_no_file_of_pytorch_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.ckpt.*({message})"):
        open_source(tmp_path / "x.ckpt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """PyTorch maps the bytes of an archive as they lie there: compressed ones would be read as numbers."""
    path = foreign.write({"a": torch.zeros(10_000)}, tmp_path / "x.ckpt")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"a": 1}, "has no tensors"),
        ({"a": torch.eye(3).to_sparse()}, "1 tensors are not dense arrays: a"),
        ({"a": torch.empty(3, device="meta")}, "1 tensors are not dense arrays: a"),
        ({"a": torch.zeros(1), "module.a": torch.ones(1)}, "has the tensor a a second time, as module.a"),
    ],
)
def test_unusable_contents_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt.*{message}"):
        open_source(tmp_path / "x.pt")


def test_absent_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        open_source(tmp_path / "absent.safetensors")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match=r"ending '\.gguf'"):
        open_source(tmp_path / "x.gguf")


FULL = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([FULL], FULL),
        (["w.fp16.safetensors", FULL, "diffusion_pytorch_model.bin"], FULL),
        (["model.fp16.safetensors", "pytorch_model.bin"], "model.fp16.safetensors"),
        (["pytorch_model.fp16.bin"], "pytorch_model.fp16.bin"),
        ([FULL, "diffusion_pytorch_model.non_ema.safetensors"], FULL),
        (["m-00001-of-00002.safetensors", "m.safetensors.index.json"], "m.safetensors.index.json"),
        (["m.fp16-00001-of-00002.safetensors", "m.safetensors.index.fp16.json"], "m.safetensors.index.fp16.json"),
        (["m-00001-of-00002.safetensors"], None),
        (["a.safetensors", "b.safetensors"], None),
        (["a.fp16.safetensors", "b.fp16.safetensors"], None),
        ([], None),
    ],
)
def test_the_weights_of_a_folder(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    for name in names:
        (tmp_path / name).touch()
    if chosen is not None:
        assert weights_file(tmp_path).name == chosen
        return
    with pytest.raises(InputError, match=r"exactly one \.safetensors file or index"):
        weights_file(tmp_path)


def sharded(folder: Path, table: dict[str, str], shards: dict[str, Tensors]) -> Path:
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


SHARDS = {f"m-0000{i}-of-00002.safetensors": {f"x{i}": torch.full((2,), float(i))} for i in (1, 2)}
TABLE = {"x1": "m-00001-of-00002.safetensors", "x2": "m-00002-of-00002.safetensors"}


def test_shards_are_one_source(tmp_path: Path) -> None:
    source = open_source(sharded(tmp_path, TABLE, SHARDS))
    assert {key: source[key].tolist() for key in source} == {"x1": [1, 1], "x2": [2, 2]}
    assert len(source.hashes()) == 2
    assert source.size == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"x1": "../m.safetensors"}, "only files in its folder"),
        ({"x1": "/etc/m.safetensors"}, "only files in its folder"),
        ({"x1": "m-00003-of-00003.safetensors"}, "refers to m-00003-of-00003.safetensors, which is missing"),
        ({}, "no table 'weight_map'"),
        (TABLE | {"x3": "m-00001-of-00002.safetensors"}, "index announces 1 .* not there: .*x3"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, table: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_source(sharded(tmp_path, table, SHARDS))
