"""Files: whole or not at all on writing, one readable error on reading."""

import contextlib
import dataclasses
import errno
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyi2v.errors import AnyI2VError, InputError, ResourceError

OURS = ".anyi2v-"
"""How the names of everything begin that is only there while something is written."""

_LONGEST_SUFFIX = 16
"""Of a temporary name; what follows the last dot of a very long name chooses no format."""

_NO_ROOM = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENAMETOOLONG")
"""Errors of the place, whatever file they are reported for: writing to an open file names none."""


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by the home folder, as a shell does it.

    A name that only begins with `~`, where there is no such user, stays as it is; so does the string "./~".
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write a file to; renamed to `path` at the end.

    If the body raises, what it wrote is removed and `path` is as before. The suffix is kept, because writers
    choose their format by it. Parent folders are made. `~` is the home folder, and a symbolic link stays: the file that
    it points to is replaced.

    Raises ResourceError if the place cannot be written, before the body where that can be known: `path` is a folder or
    a device, its name is too long, its parent is a file. A disk that is full is named, too.
    """
    path = _target(expanded(path))
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    temporary = path.with_name(f"{OURS}{uuid.uuid4().hex[:8]}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        reason = _failure(error, temporary, path)
        if reason is None:
            raise
        raise ResourceError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file that is written when `path` is: the end of a symbolic link; raises ResourceError if it cannot be."""
    try:
        path = path.resolve() if path.is_symlink() else path
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError) as error:  # too long a name, a circle of links
        raise ResourceError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if not path.is_file():
        raise ResourceError(f"cannot write {path}: it is a {'folder' if path.is_dir() else 'device'}, not a file")
    return path


def _failure(error: Exception, temporary: Path, path: Path) -> str | None:
    """What is wrong about the place that `error` speaks of; None if it is about something else."""
    if isinstance(error, AnyI2VError):
        return None
    if isinstance(error, OSError):
        places = (temporary, path, *path.parents)
        if errno.errorcode.get(error.errno or 0) in _NO_ROOM or (
            error.filename is not None and Path(error.filename) in places
        ):
            return error.strerror
    full = os.strerror(errno.ENOSPC)  # libraries in other languages have errors of their own, with the system's words
    return full if full in str(error) else None


def check_place(folder: str | Path) -> None:
    """Raises ResourceError unless files can be written into `folder`, which need not be there yet; makes nothing.

    Asked before hours of work whose end would be lost.
    """
    folder = expanded(folder)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder)  # the whole may be too long
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
        with tempfile.TemporaryFile(dir=there):
            pass
        for name in folder.absolute().relative_to(there.absolute()).parts:
            with contextlib.suppress(FileNotFoundError):
                os.stat(there / name)  # a name may be too long
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in file `path`, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises InputError naming the file, and the line where it breaks.
    """
    path = expanded(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not JSON: it is not text") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise InputError(f"{path} cannot be read: {error!s:.100}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}; an object {{...}} is needed")
    return data


def with_home(value: Any) -> Any:
    """`value` with `~` expanded in every path of it: a path, a tuple, or a dataclass of settings."""
    if isinstance(value, Path):
        return expanded(value)
    if isinstance(value, tuple):
        return tuple(map(with_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: with_home(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
