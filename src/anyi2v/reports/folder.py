"""The folder of a run on disk: who may write to it, and how all its files appear together.

A run is written inside its folder, which may be a mount point. All files are first written to a hidden folder in it,
which one rename declares whole; only then the files of the former run are removed and the new ones moved into place.
A process that is killed before that rename leaves the former run as it was. One that is killed after it leaves the new
run whole but hidden for the milliseconds that are missing: whoever opens the folder next puts it in place (`recover`).
Nothing is removed but files of a run, by their names: other files and folders stay, runs inside the folder too.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from anyi2v.errors import InputError, ResourceError
from anyi2v.files import OURS, check_place, expanded

RECORD, CONDITION = "run.json", "condition.png"
"""The two files that suffice to repeat a run."""

PAGE = "report.html"

ERROR = "error.json"
"""Why the job of a batch has no run in its folder; goes when there is one."""

GALLERY = "inspection/gallery.json"
"""`{"sections": [{"title", "text", "pictures": [{"title", "text", "file"}]}]}`, files beside it."""

RUN_FILES = (
    *(RECORD, CONDITION, PAGE),
    *("video.gif", "video.mp4", "side_by_side.gif", "side_by_side.mp4"),
    *("sheet.png", "tracks.png", "masks.png", "loss.png"),
)
"""All that a run writes, the record first: it says that the others are there."""

INSPECTION_FILE = re.compile(
    r"(features|similarity)_step_\d+\.png|(trajectories|denoising|reconstruction)\.png|gallery\.json"
)
"""All that an inspection writes, in the gallery's folder."""

NEW, WHOLE, PLACING, LOCK = (OURS + name for name in ("new", "whole", "placing", "lock"))
"""In the folder: being written; written, the former run is still to be removed; being moved into place; the claim."""


class BusyError(ResourceError):
    """Another process is writing to the folder."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises InputError if a run may not be written to folder `out`, ResourceError if it cannot; asked before any work.

    `overwrite` allows to replace the files of a former run; other files in its folder stay.
    """
    out = expanded(out)
    if os.path.exists(out) and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    check_place(out)
    if not out.exists():
        return
    recover(out)
    if not any(not path.name.startswith(OURS) and path.name != ERROR for path in out.iterdir()):
        return
    if not (out / RECORD).is_file():
        raise InputError(f"folder {out} holds other things than a run; give a new or empty one")
    if not overwrite:
        raise InputError(f"folder {out} holds a run; use --overwrite to replace it, or give another")
    for name in RUN_FILES:
        if (out / name).is_dir():
            raise InputError(f"{out / name} is a folder, but a run has a file of this name; move it away")


def check_file(out: Path, *inputs: Path | None) -> None:
    """Raises InputError if writing file `out` would replace one of `inputs`, or a part of a run."""
    out = expanded(out)
    for path in inputs:
        if path is not None and os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
            raise InputError(f"--out {out} is also what is read; give another name")
    if out.name in RUN_FILES and (out.parent / RECORD).is_file():
        raise InputError(f"--out {out} would replace a part of the run in its folder; give another name")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While the body runs, no other process may write to the folder; it is made, and kept if there is something in it.

    May be nested. The claim ends with the process, however that ends.

    Raises BusyError if another process has it, ResourceError if the place cannot be written.
    """
    folder = expanded(folder)
    made: list[Path] = []
    try:
        lock = _lock(folder, made)
        try:
            if lock.lock_counter == 1:
                _settle(folder)
            yield
        finally:
            if lock.lock_counter == 1:
                with contextlib.suppress(OSError, ResourceError):
                    _settle(folder)  # the body may have been interrupted while it did that
                # the lock's file goes while it is ours: whoever has opened it by now sees that it went
                with contextlib.suppress(OSError):
                    os.unlink(lock.lock_file)
            lock.release()
    finally:
        for level in made:
            with contextlib.suppress(OSError):  # not empty: something was written
                level.rmdir()


def _lock(folder: Path, made: list[Path]) -> FileLock:
    """The folder's lock, held; parents that had to be made are put into `made`, the innermost first."""
    try:
        for level in reversed((folder, *folder.parents)):
            if not level.is_dir():
                level.mkdir(exist_ok=True)
                made.insert(0, level)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder / PLACING / "inspection" / "reconstruction.png")  # the longest path of all
        lock = FileLock(os.path.realpath(folder / LOCK), timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"another process is writing to folder {folder}; wait until it has finished, or give another folder"
        ) from None
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error
    return lock


def recover(folder: Path) -> None:
    """Puts a run in place whose process was killed while it did that; nothing while another process is at it."""
    if any((folder / name).is_dir() for name in (WHOLE, PLACING)):
        with contextlib.suppress(ResourceError), claimed(folder):
            pass


def discard(*folders: Path, wait: float = 5.0) -> None:
    """Removes what processes that were killed have left half written, and folders with nothing else in them.

    A process that is just being killed may have its folder for `wait` seconds more; it is left alone after that.
    """
    until = time.monotonic() + wait
    for folder in folders:
        while any((folder / name).exists() for name in (NEW, LOCK)) and not _discarded(folder):
            if time.monotonic() > until:
                break
            time.sleep(0.1)


def _discarded(folder: Path) -> bool:
    """Removes what is half written, where that can be done; False while another process has the folder."""
    try:
        with claimed(folder):
            shutil.rmtree(folder / NEW, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    except BusyError:
        return False
    except ResourceError:  # it cannot be written
        pass
    return True


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write files to; at the end they replace those of a run in the claimed `folder`.

    With a run.json among them, all files of a former run are removed, else those of a former inspection. If the body
    raises, `folder` is as before.

    Raises ResourceError if the folder cannot be written.
    """
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
    try:
        new.mkdir()
        yield new
        os.rename(new, folder / WHOLE)
    except ResourceError as error:
        raise ResourceError(str(error).replace(str(new), str(folder))) from error
    except OSError as error:
        if error.filename is None or Path(error.filename) != new:
            raise
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Removes the former files if new ones are whole, and moves these into place; may be stopped and called again."""
    whole, placing = folder / WHOLE, folder / PLACING
    try:
        _place(folder, placing)
        if whole.is_dir():
            _remove(folder, run=(whole / RECORD).is_file())
            os.rename(whole, placing)
            _place(folder, placing)
    except OSError as error:
        raise ResourceError(
            f"cannot put the new files into {folder}: {error.filename}: {error.strerror}; they are whole in "
            f"{placing if placing.is_dir() else whole}, and are put in place by the next run that is given this folder"
        ) from error


def _remove(folder: Path, *, run: bool) -> None:
    """Removes the files of the run, its record first, or only those of its inspection."""
    if run:
        for name in (*RUN_FILES, ERROR):
            (folder / name).unlink(missing_ok=True)
    inside = (folder / GALLERY).parent
    if inside.is_dir():
        (folder / GALLERY).unlink(missing_ok=True)
        for path in inside.iterdir():
            if INSPECTION_FILE.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        with contextlib.suppress(OSError):  # not empty: there is something else in it
            inside.rmdir()


def _place(folder: Path, placing: Path) -> None:
    """Moves all files of `placing` into `folder`, the lists of what is there last."""
    if not placing.is_dir():
        return
    paths = [path for path in placing.rglob("*") if path.is_file()]
    lists = {placing / RECORD, placing / GALLERY}
    for path in sorted(paths, key=lambda path: (path in lists, path)):
        target = folder / path.relative_to(placing)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(placing)
