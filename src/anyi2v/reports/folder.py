"""The folder of a run: locking, and atomic replacement of all its files.

A run is written inside its folder, which may be a mount point. All files are first written to a hidden subfolder, which
a single rename marks as complete; only then are the files of the earlier run removed and the new ones moved into place.
A process killed before that rename leaves the earlier run unchanged. If it is killed after it, the new run is complete
but hidden, and the next process that opens the folder moves it into place (`recover`). Only files of a run are removed,
by name: other files and folders are kept, including runs inside the folder.
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
"""The two files needed to repeat a run."""

PAGE = "report.html"

ERROR = "error.json"
"""Why a job of a batch failed; removed once its folder has a run."""

GALLERY = "inspection/gallery.json"
"""List of an inspection's pictures, `{"sections": [{"title", "text", "pictures": [{"title", "text", "file"}]}]}`."""

RUN_FILES = (
    *(RECORD, CONDITION, PAGE),
    *("video.gif", "video.mp4", "side_by_side.gif", "side_by_side.mp4"),
    *("sheet.png", "tracks.png", "masks.png", "loss.png"),
)
"""All files of a run, the record first, which marks the run as present."""

INSPECTION_FILE = re.compile(
    r"(features|similarity)_step_\d+\.png|(trajectories|denoising|reconstruction)\.png|gallery\.json"
)
"""Names of all files of an inspection, in the gallery's folder."""

NEW, WHOLE, PLACING, LOCK = (OURS + name for name in ("new", "whole", "placing", "lock"))
"""Temporary names in the folder: files being written; complete files; files being moved into place; the lock."""


class BusyError(ResourceError):
    """Raised if another process is writing to the folder."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check before any work that a run can be written to folder `out`.

    Raises InputError if it must not be written, ResourceError if it cannot. `overwrite` allows replacing the files of
    an earlier run; other files in its folder are kept.
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
        raise InputError(f"folder {out} has files that are not a run; give a new or empty one")
    if not overwrite:
        raise InputError(f"folder {out} already has a run; use --overwrite to replace it, or give another")
    for name in RUN_FILES:
        if (out / name).is_dir():
            raise InputError(f"{out / name} is a folder, but a run needs a file of this name; move it away")


def check_file(out: Path, *inputs: Path | None) -> None:
    """Raise InputError if writing file `out` would replace one of `inputs`, or a part of a run."""
    out = expanded(out)
    for path in inputs:
        if path is not None and os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
            raise InputError(f"--out {out} is also an input; give another name")
    if out.name in RUN_FILES and (out.parent / RECORD).is_file():
        raise InputError(f"--out {out} would replace a part of the run in its folder; give another name")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock a folder against writes of other processes while the body runs.

    The folder is created, and removed again if it stays empty. May be nested. The lock ends with the process, even if
    it is killed.

    Raises BusyError if another process has the lock, ResourceError if the folder cannot be written.
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
                    _settle(folder)  # the body may have been interrupted in it
                # unlinked while held, so that a process that has already opened it notices
                with contextlib.suppress(OSError):
                    os.unlink(lock.lock_file)
            lock.release()
    finally:
        for level in made:
            with contextlib.suppress(OSError):  # not empty
                level.rmdir()


def _lock(folder: Path, made: list[Path]) -> FileLock:
    """Acquire the folder's lock; created folders are added to `made`, the innermost first."""
    try:
        for level in reversed((folder, *folder.parents)):
            if not level.is_dir():
                level.mkdir(exist_ok=True)
                made.insert(0, level)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder / PLACING / "inspection" / "reconstruction.png")  # the longest path that will be used
        lock = FileLock(os.path.realpath(folder / LOCK), timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"another process is writing to folder {folder}; wait until it has finished, or give another folder"
        ) from None
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error
    return lock


def record_of(path: str | Path) -> Path:
    """Return the path of a run's run.json, given that path or the run's folder."""
    path = expanded(path)
    return path / RECORD if os.path.isdir(path) else path


def recover(folder: Path) -> None:
    """Move a complete run into place if its process was killed; do nothing while another process has the folder."""
    if any((folder / name).is_dir() for name in (WHOLE, PLACING)):
        with contextlib.suppress(ResourceError), claimed(folder):
            pass


def discard(*folders: Path, wait: float = 5.0) -> None:
    """Remove partial files left by killed processes, and folders that become empty.

    Waits up to `wait` seconds for a process that is still being killed; its folder is skipped after that.
    """
    until = time.monotonic() + wait
    for folder in folders:
        while any((folder / name).exists() for name in (NEW, LOCK)) and not _discarded(folder):
            if time.monotonic() > until:
                break
            time.sleep(0.1)


def _discarded(folder: Path) -> bool:
    """Remove partial files if possible; return False while another process has the folder."""
    try:
        with claimed(folder):
            shutil.rmtree(folder / NEW, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    except BusyError:
        return False
    except ResourceError:  # not writable
        pass
    return True


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for new files, which finally replace those of a run in the claimed `folder`.

    If they include run.json, all files of the earlier run are removed, else only those of an earlier inspection. If the
    body raises, `folder` is unchanged.

    Raises ResourceError if the folder cannot be written.
    """
    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)  # left by a killed process
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
    """Replace the earlier files if new ones are complete; can be interrupted and called again."""
    whole, placing = folder / WHOLE, folder / PLACING
    try:
        _place(folder, placing)
        if whole.is_dir():
            _remove(folder, run=(whole / RECORD).is_file())
            os.rename(whole, placing)
            _place(folder, placing)
    except OSError as error:
        raise ResourceError(
            f"cannot move the new files into {folder}: {error.filename}: {error.strerror}; they are complete in "
            f"{placing if placing.is_dir() else whole}, and are moved into place by the next run with this folder"
        ) from error


def _remove(folder: Path, *, run: bool) -> None:
    """Remove the files of the run, its record first, or only those of its inspection."""
    if run:
        for name in (*RUN_FILES, ERROR):
            (folder / name).unlink(missing_ok=True)
    inside = (folder / GALLERY).parent
    if inside.is_dir():
        (folder / GALLERY).unlink(missing_ok=True)
        for path in inside.iterdir():
            if INSPECTION_FILE.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            inside.rmdir()


def _place(folder: Path, placing: Path) -> None:
    """Move all files of `placing` into `folder`, the record and the gallery last."""
    if not placing.is_dir():
        return
    paths = [path for path in placing.rglob("*") if path.is_file()]
    lists = {placing / RECORD, placing / GALLERY}
    for path in sorted(paths, key=lambda path: (path in lists, path)):
        target = folder / path.relative_to(placing)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(placing)
