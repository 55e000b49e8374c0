"""Foreign weights files: tensors come out, code never runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.checkpoints.foreign import PICKLES, read_tensors
from anyi2v.errors import CheckpointError, InputError


class Code:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_all_kinds_give_the_same_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    for suffix in (".safetensors", *PICKLES):
        path = tmp_path / f"x{suffix}"
        if suffix == ".safetensors":
            save_file(tensors, path, {"made": "by us"})
        else:
            torch.save(tensors, path)
        found, metadata = read_tensors(path)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) and found[key].dtype == tensors[key].dtype for key in found)
        assert metadata == ({"made": "by us"} if suffix == ".safetensors" else {})


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_no_tensor_is_left_out_of_a_pickle(tmp_path: Path, wrapped: bool) -> None:
    data: dict[str, Any] = {"a": torch.ones(1), "a.alpha": 4, "animatediff_config": {"name": "x"}, "epoch": 3}
    torch.save({"state_dict": data, "global_step": 7, "c": torch.ones(1)} if wrapped else data, tmp_path / "x.ckpt")
    found, _ = read_tensors(tmp_path / "x.ckpt")
    assert found.keys() == {"a", "a.alpha"}
    assert found["a.alpha"].item() == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    torch.save({"a": torch.ones(1), "b": Code(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"x\.pt .*code.*\.safetensors"):
        read_tensors(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"<html>"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="x" + suffix):
        read_tensors(path)


def test_truncated_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(path)


@pytest.mark.parametrize("data", [torch.ones(1), [torch.ones(1)], {1: torch.ones(1)}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, data: Any) -> None:
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        read_tensors(tmp_path / "x.pt")


def test_other_suffixes_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match=r"x\.gguf has the suffix '\.gguf'; supported are \.safetensors, \.ckpt"):
        read_tensors(tmp_path / "x.gguf")
    with pytest.raises(InputError, match=r"y\.pt: there is no such file"):
        read_tensors(tmp_path / "y.pt")
