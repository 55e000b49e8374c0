"""A run's folder under everything that can happen to the process that writes it, in processes of their own."""

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anyi2v.errors import InputError, ResourceError
from anyi2v.images.video import mp4_problem
from anyi2v.reports import folder as run_folder
from anyi2v.reports.folder import GALLERY, INSPECTION_FILE, RUN_FILES, check_file, check_out, claimed, recover, staged
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import write_run

from .test_report import CONDITION, backbone, result  # noqa: F401  `backbone` is a fixture

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


def in_a_process(work: Callable[[], object]) -> int:
    """The number of the process that does `work`; it ends with code 0, or 1 and a traceback on stderr."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(number: int) -> int:
    """The process's exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[int]:
    """Another process has claimed the folder and begun a run; its number."""
    reader, writer = os.pipe()

    def work() -> None:
        with claimed(folder), staged(folder) as new:
            (new / "video.gif").write_bytes(b"half")
            os.write(writer, b"x")
            time.sleep(60)

    number = in_a_process(work)
    assert os.read(reader, 1) == b"x"
    try:
        yield number
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(number, 0)
        os.close(reader)
        os.close(writer)


def put(folder: Path, content: str, *, inspected: bool) -> None:
    """Writes a run whose files all hold `content`."""
    with claimed(folder), staged(folder) as new:
        for name in RUN_FILES if content == "new" else RUN_FILES[:-1]:  # the new one has one file more
            (new / name).write_text(content)
        if inspected:
            (new / GALLERY).parent.mkdir()
            (new / GALLERY).write_text(content)


def shown(folder: Path) -> dict[str, str]:
    """What is there beside hidden things, by path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path.read_text() for path in paths}
    return {name: content for name, content in names.items() if not name.startswith(".anyi2v-")}


def test_a_process_that_is_killed_at_any_moment_leaves_the_former_or_the_new_run(tmp_path: Path) -> None:
    others = {"notes.txt": "mine", "again/run.json": "nested", "again/video.gif": "nested", "inspection/my.png": "mine"}
    former = {name: "former" for name in (*RUN_FILES[:-1], GALLERY)} | others
    new = dict.fromkeys(RUN_FILES, "new") | others
    seen = []
    for moment in itertools.count():
        out = tmp_path / str(moment)
        put(out, "former", inspected=True)
        for name, content in others.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text(content)
        assert shown(out) == former
        left = [moment]

        def event(name: str, arguments: tuple[Any, ...], left: list[int] = left, out: Path = out) -> None:
            # every call that changes a folder, and every file that is opened in it
            if name in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open") and str(out) in str(arguments[0]):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

        def work(event: Callable[..., None] = event, out: Path = out) -> None:
            sys.addaudithook(event)
            put(out, "new", inspected=False)

        code = ended(in_a_process(work))
        if "run.json" in (visible := shown(out)):
            assert visible in (former, new)  # never an old record beside new pictures
        recover(out)
        check_out(out, overwrite=True)
        with claimed(out):
            pass
        assert shown(out) in (former, new)
        assert not [path for path in out.iterdir() if path.name not in {*shown(out), "again", "inspection"}] or (
            shown(out) == former  # what was half written goes when the next run is
        )
        seen.append(shown(out) == new)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(seen) > 30
    assert seen == sorted(seen) and not seen[0] and seen[-1]  # from some moment on it is the new one


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path, backbone: str) -> None:  # noqa: F811
    out = tmp_path / "out"
    with writing(out) as number:
        os.kill(number, signal.SIGKILL)
        assert ended(number) == -signal.SIGKILL
    assert {path.name for path in out.iterdir()} == {".anyi2v-lock", ".anyi2v-new"}
    write_run(out, result(), CONDITION, Origin(backbone))
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path, backbone: str) -> None:  # noqa: F811
    out = tmp_path / "out"
    with writing(out) as number:
        with pytest.raises(ResourceError, match=rf"another process is writing to folder {out}; wait until"):
            write_run(out, result(), CONDITION, Origin(backbone))
        write_run(out / "again", result(), CONDITION, Origin(backbone))  # another folder, though inside of it
        os.kill(number, signal.SIGKILL)
        ended(number)
        with pytest.raises(InputError, match="has files that are not a run"):  # the nested run
            write_run(out, result(), CONDITION, Origin(backbone))
    (out / "again").rename(tmp_path / "again")
    write_run(out, result(), CONDITION, Origin(backbone))


def test_a_claim_leaves_nothing_and_ends_with_the_body(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with claimed(folder), claimed(folder):
        assert [path.name for path in folder.iterdir()] == [".anyi2v-lock"]
        check_out(folder, overwrite=False)
        assert ended(in_a_process(lambda: claimed(folder).__enter__())) == 1
    assert not list(tmp_path.iterdir())

    def interrupted() -> None:
        with claimed(folder), staged(folder) as new:
            (new / "video.gif").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with claimed(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_an_interruption_between_two_renames_leaves_the_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "former", inspected=True)
    calls, move = itertools.count(), os.replace

    def interrupted(source: Path, target: Path) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(run_folder.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, "new", inspected=False)
    assert shown(tmp_path) == dict.fromkeys(RUN_FILES, "new")
    assert {path.name for path in tmp_path.iterdir()} == set(RUN_FILES)


def test_nothing_is_touched_outside_of_the_folder(tmp_path: Path, backbone: str) -> None:  # noqa: F811
    """It may be a mount point, with a parent that cannot be written to."""
    write_run(tmp_path / "first", result(), CONDITION, Origin(backbone))  # libraries make folders in the home
    out, report = tmp_path / "out", tmp_path / "report.json"
    out.mkdir()
    touched: list[str] = []

    def event(name: str, arguments: tuple[Any, ...]) -> None:
        # a number is a file that is open already
        if (
            name == "open"
            and not isinstance(arguments[0], int)
            and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            touched.append(str(arguments[0]))
        changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink")
        if name in changes and not (name == "os.remove" and arguments[1] >= 0):  # by a folder that is open already
            touched.extend(str(argument) for argument in arguments[:2] if isinstance(argument, str | Path))

    def work() -> None:
        sys.addaudithook(event)
        write_run(out, result(), CONDITION, Origin(backbone))
        write_run(out, result(), CONDITION, Origin(backbone), overwrite=True)
        seen = [path for path in touched if path != os.devnull]
        report.write_text(json.dumps(seen))

    assert ended(in_a_process(work)) == 0
    seen = json.loads(report.read_text())
    assert len(seen) > 30
    assert [path for path in seen if path != str(out) and not path.startswith(f"{out}/")] == []


def test_a_run_inside_and_files_of_others_survive_overwriting(tmp_path: Path, backbone: str) -> None:  # noqa: F811
    out = tmp_path / "out"
    write_run(out, result(), CONDITION, Origin(backbone))
    write_run(out / "again", result(), CONDITION, Origin(backbone))
    (out / "notes.txt").write_text("mine")
    (out / "inspection").mkdir()
    for name in ("gallery.json", "features_step_00.png", "trajectories.png", "my.png"):
        (out / "inspection" / name).write_text("x")
    inside = {path: path.read_bytes() for path in (out / "again").iterdir()}
    write_run(out, replace(result(objects=False), seed=4), CONDITION, Origin(backbone), overwrite=True)
    assert {path: path.read_bytes() for path in (out / "again").iterdir()} == inside
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.parent.name != "again"}
    stale = {"tracks.png", "masks.png"}  # of the former run, which had objects
    assert names == set(RUN_FILES) - stale | {"notes.txt", "inspection/my.png"}


def test_a_folder_that_has_a_files_name_is_refused_beforehand(tmp_path: Path, backbone: str) -> None:  # noqa: F811
    write_run(tmp_path / "out", result(), CONDITION, Origin(backbone))
    (tmp_path / "out" / "video.gif").unlink()
    (tmp_path / "out" / "video.gif").mkdir()
    with pytest.raises(InputError, match=r"video\.gif is a folder, but a run needs a file of this name"):
        check_out(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 200] * 21)])
def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    for refuse in (lambda path: check_out(path, overwrite=False), lambda path: claimed(path).__enter__()):
        with pytest.raises(ResourceError, match="File name too long"):
            refuse(tmp_path / name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_single_files_replace_neither_what_is_read_nor_a_part_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    check_file(tmp_path / "new.png", tmp_path / "a.png", None)
    with pytest.raises(InputError, match=r"--out .*a\.png is also an input"):
        check_file(tmp_path / "a.png", None, tmp_path / "link.png")
    with pytest.raises(InputError, match="would replace a part of the run"):
        check_file(tmp_path / "condition.png")


def test_a_disk_that_gets_full_costs_only_what_did_not_fit(
    tmp_path: Path,
    backbone: str,  # noqa: F811
) -> None:
    """No file may be larger than a limit; the system's own refusal, also for ffmpeg."""
    sizes = {}
    noisy = replace(result(), video=torch.rand(12, 3, 64, 64), masks=[])  # which cannot be compressed
    write_run(tmp_path / "whole", noisy, torch.rand(3, 64, 64), Origin(backbone))
    for path in (tmp_path / "whole").iterdir():
        sizes[path.name] = path.stat().st_size

    def limited(limit: int, out: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write_run(out, noisy, torch.rand(3, 64, 64), Origin(backbone))
        except ResourceError as error:
            os.write(writer, str(error).encode())
            raise

    reader, writer = os.pipe()
    video = min(sizes["video.gif"], sizes["video.mp4"])
    assert 1000 < sizes["run.json"] < video  # the record says more where files fail, but is written before
    limit = max(sizes["run.json"] + 1000, sizes["video.gif"] + 1)
    out = tmp_path / "some"
    assert ended(in_a_process(lambda: limited(limit, out))) == 0
    data = json.loads((out / "run.json").read_text())
    lost = {name for name, size in sizes.items() if size > limit}
    assert "report.html" in lost and "video.gif" not in lost
    assert data["failed_outputs"].keys() == lost
    assert {path.name for path in out.iterdir()} == sizes.keys() - lost
    assert data["failed_outputs"]["report.html"] == f"cannot write {out / 'report.html'}: File too large"
    # without any video, or without a record, there is no run, and one line says where
    for limit, what in ((video - 1, "no video can be written to"), (1000, "cannot write")):
        out = tmp_path / what[:2]
        assert ended(in_a_process(lambda limit=limit, out=out: limited(limit, out))) == 1
        assert not out.exists()
        said = os.read(reader, 9999).decode()
        assert said.startswith(what) and f"{out}" in said and ".anyi2v-new" not in said


@pytest.mark.parametrize("broken", ["draw_tracks", "loss_curve", "write_page", "contact_sheet"])
def test_what_fails_is_named_and_costs_nothing_else(
    tmp_path: Path,
    backbone: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a font is missing")

    monkeypatch.setattr(f"anyi2v.reports.writing.{broken}", fails)
    out = tmp_path / "out"
    with pytest.warns(match=r"was not written, but the other files were: a font is missing"):
        write_run(out, result(), CONDITION, Origin(backbone))
    lost = {
        "draw_tracks": {"tracks.png"},
        "loss_curve": {"loss.png"},
        "write_page": {"report.html"},
        "contact_sheet": {"sheet.png", "masks.png"},
    }[broken]
    assert {path.name for path in out.iterdir()} == set(RUN_FILES) - lost
    failed = json.loads((out / "run.json").read_text())["failed_outputs"]
    assert failed == dict.fromkeys(lost, "a font is missing")
    if broken != "write_page":
        assert ("a font is missing" in (out / "report.html").read_text()) == bool(lost)


def test_the_names_of_an_inspections_files() -> None:
    for name in ("features_step_00.png", "similarity_step_123.png", "gallery.json", "reconstruction.png"):
        assert INSPECTION_FILE.fullmatch(name)
    for name in ("features.png", "my_features_step_00.png", "features_step_00.png.bak", "run.json"):
        assert not INSPECTION_FILE.fullmatch(name)


def test_the_probe_of_ffmpeg_is_what_writing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mp4_problem() is None
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent/ffmpeg")
    assert "IMAGEIO_FFMPEG_EXE selects another one" in (mp4_problem() or "")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_clean_removes_what_make_has_made(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "Makefile", tmp_path)
    for name in ("edge", "depth", "segmentation"):
        (tmp_path / "demo" / name).mkdir(parents=True)
        for file in RUN_FILES:
            (tmp_path / "demo" / name / file).touch()
    for file in ("comparison.png", "index.html"):
        (tmp_path / "demo" / file).touch()
    (tmp_path / "demo" / "edge" / "notes.txt").touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine").touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", "demo/edge/notes.txt", ".venv/mine"}
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / "demo" / "edge" / "notes.txt").unlink()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]
