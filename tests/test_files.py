import dataclasses
import errno
import os
import re
import stat
from pathlib import Path

import pytest

from anyi2v.errors import InputError, ResourceError
from anyi2v.files import atomic, check_place, expanded, read_json, with_home


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


def test_failure_leaves_the_former_state(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one that is the working directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_the_home_folder_in_writing_and_reading(home: Path) -> None:
    with atomic("~/new/a.json") as temporary:
        temporary.write_text('{"a": 1}')
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == ["new", "new/a.json"]
    assert not list(Path().iterdir())
    assert read_json("~/new/a.json") == read_json(Path("~/new/a.json")) == {"a": 1}
    with pytest.raises(ResourceError, match=re.escape(f"cannot write to {home}/new/a.json/x")):
        check_place("~/new/a.json/x")
    # what only looks like it: a file of an office program, a folder that is really called so
    assert expanded("~$letter.doc") == Path("~$letter.doc")
    assert expanded("./~/a") == Path("~/a")


def test_every_path_of_a_commands_flags(home: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Inner:
        path: Path = Path("~/a")

    @dataclasses.dataclass(frozen=True)
    class Flags:
        inner: Inner = dataclasses.field(default_factory=Inner)
        several: tuple[Path, ...] = (Path("~/b"), Path("c"))
        name: str = "~/no path"
        none: Path | None = None

    assert with_home(Flags()) == Flags(Inner(home / "a"), (home / "b", Path("c")))


@pytest.mark.parametrize("length", [240, 250, 255])
def test_names_may_be_as_long_as_the_system_allows_and_no_longer(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * (length - 4) + ".txt")
    with atomic(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    too_long, begun = tmp_path / ("x" * 256 + ".txt"), False
    with pytest.raises(ResourceError, match=r"cannot write .*xxx\.txt: File name too long"), atomic(too_long):
        begun = True
    assert not begun
    with atomic(tmp_path / f"a.{'y' * 250}") as temporary:  # one long suffix
        temporary.write_text("whole")


def test_a_link_stays_and_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("before")
    link, circle = tmp_path / "link", tmp_path / "circle"
    link.symlink_to("folder/file")
    circle.symlink_to("circle")
    with atomic(link) as temporary:
        temporary.write_text("after")
    assert link.is_symlink() and (tmp_path / "folder" / "file").read_text() == "after"
    device = tmp_path / "device"
    os.mkfifo(device)
    for path, reason in ((tmp_path / "folder", "it is a folder"), (device, "it is a device"), (circle, "")):
        with pytest.raises(ResourceError, match=f"cannot write {path}: {reason}"), atomic(path):
            raise AssertionError("begun")
    assert stat.S_ISFIFO(device.stat().st_mode)


def test_a_full_disk_is_one_line_whoever_finds_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def fill(error: Exception) -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("io: No space left on device (28)")):
        with pytest.raises(ResourceError, match=f"^cannot write {path}: No space left on device$"):
            fill(error)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_every_encoding_that_editors_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_bytes('{"prompt": "ein Käfer ☂"}'.encode(encoding))
    assert read_json(tmp_path / "x.json") == {"prompt": "ein Käfer ☂"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "cannot be read: maximum recursion depth"),
        (b'{"a": 1,\n "b": }', "is not JSON: Expecting value at line 2, column 7"),
        (b"\xff\xfe\x00", "is not JSON: it is not text"),
        (b"[1]", "holds a JSON list; expected an object {...}"),
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
