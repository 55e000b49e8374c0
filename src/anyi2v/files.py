"""Files: whole or not at all on writing, one readable error on reading."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError, ResourceError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` to write a file or a folder to; renamed to `path` at the end.

    If the body raises, what it wrote is removed and `path` is as before. The suffix is kept, because writers
    choose their format by it. Parent folders are made.

    Raises ResourceError if the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or Path(error.filename) not in (temporary, path, *path.parents):
            raise
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


def check_place(folder: str | Path) -> None:
    """Raises ResourceError unless files can be written into `folder`, which need not be there yet; makes nothing.

    Asked before hours of work whose end would be lost.
    """
    folder = Path(folder)
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
        for name in folder.absolute().relative_to(there.absolute()).parts:
            (there / name).exists()  # a name may be too long
    except OSError as error:
        raise ResourceError(f"cannot write to {folder}: {error.strerror}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in file `path`; raises InputError naming the file, and the line where it breaks."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not JSON: it is not text") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}; an object {{...}} is needed")
    return data
