"""Atomic file writing, and JSON reading with readable errors."""

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
"""Prefix of all temporary files and folders, which exist only during a write."""

_LONGEST_SUFFIX = 16
"""Longest suffix kept in a temporary name; a longer one is no file format."""

_NO_ROOM = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ENAMETOOLONG")
"""Error codes that concern the destination even if they name no file, as when writing to an open file."""


def expanded(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder, as a shell does.

    A name that starts with `~` but names no user is unchanged, and so is the string "./~".
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to; rename it to `path` on success.

    If the body raises, the temporary file is removed and `path` is unchanged. The suffix is kept, because writers
    choose their format by it. Parent folders are created. `~` is expanded. A symbolic link is followed: its target is
    replaced and the link stays.

    Raises ResourceError if `path` cannot be written, before the body runs if this can be known: it is a folder or a
    device, its name is too long, or its parent is a file. A full disk is reported as a ResourceError as well.
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
    """Resolve symbolic links of the file to write; raises ResourceError if it is no regular file or not accessible."""
    try:
        path = path.resolve() if path.is_symlink() else path
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError) as error:  # name too long, or a loop of links
        raise ResourceError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if not path.is_file():
        raise ResourceError(f"cannot write {path}: it is a {'folder' if path.is_dir() else 'device'}, not a file")
    return path


def _failure(error: Exception, temporary: Path, path: Path) -> str | None:
    """Return the reason if `error` concerns the destination or a full disk, else None."""
    if isinstance(error, AnyI2VError):
        return None
    if isinstance(error, OSError):
        places = (temporary, path, *path.parents)
        if errno.errorcode.get(error.errno or 0) in _NO_ROOM or (
            error.filename is not None and Path(error.filename) in places
        ):
            return error.strerror
    full = os.strerror(errno.ENOSPC)  # native libraries raise their own exceptions with the system's message
    return full if full in str(error) else None


def replaceable(path: Path, sign: str) -> bool:
    """Return whether `path` is free, or a file with the text `sign` near its beginning, which marks it as ours."""
    if not path.exists():
        return True
    return path.is_file() and sign in path.read_bytes()[:4096].decode(errors="replace")


def check_place(folder: str | Path) -> None:
    """Raise ResourceError unless files can be written into `folder`, which may not exist yet; create nothing.

    Call it before a long computation whose results would otherwise be lost.
    """
    folder = expanded(folder)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(folder)  # the whole path may be too long
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
        with tempfile.TemporaryFile(dir=there):
            pass
        for name in folder.absolute().relative_to(there.absolute()).parts:
            with contextlib.suppress(FileNotFoundError):
                os.stat(there / name)  # a component may be too long
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """Read the JSON object in file `path`, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises InputError naming the file, and for invalid JSON the line and column.
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
    except (ValueError, RecursionError) as error:  # thousands of digits or nested brackets
        raise InputError(f"{path} cannot be read: {error!s:.100}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}; expected an object {{...}}")
    return data


def with_home(value: Any) -> Any:
    """Expand `~` in every path inside `value`: a path, a tuple, or a dataclass instance."""
    if isinstance(value, Path):
        return expanded(value)
    if isinstance(value, tuple):
        return tuple(map(with_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: with_home(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
