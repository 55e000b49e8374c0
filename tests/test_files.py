import re
import stat
from pathlib import Path

import pytest

from anyi2v.errors import InputError, ResourceError
from anyi2v.files import atomic, check_place, read_json


def test_file_appears_as_a_whole_with_ordinary_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == path.suffix
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    reference = tmp_path / "reference"
    reference.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_failure_leaves_the_former_state(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as temporary:
            if folder:
                temporary.mkdir()
                (temporary / "inner").write_text("half")
            else:
                temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(ResourceError, match=re.escape(str(path))), atomic(path) as temporary:
        temporary.write_text("")


@pytest.mark.parametrize("name", ["file/runs", "new/" + 300 * "x", 300 * "x"])
def test_a_folder_that_cannot_be_made_is_found_out_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=f"cannot write to {re.escape(str(tmp_path / name))}: "):
        check_place(tmp_path / name)
    check_place(tmp_path)
    check_place(tmp_path / "new" / "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_os_errors_of_the_body_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a") as _:
        (tmp_path / "elsewhere" / "b").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "is not JSON: Expecting value at line 2, column 7"),
        (b"\xff\xfe\x00", "is not JSON: it is not text"),
        (b"[1]", "holds a JSON list; an object {...} is needed"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path} {message}")):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*absent.json: No such file"):
        read_json(tmp_path / "absent.json")
