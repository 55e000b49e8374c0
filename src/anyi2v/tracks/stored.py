"""Lazy arrays in NumPy files, whose shapes are known before any data is read."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from anyi2v.errors import InputError

MAX_BYTES = 1 << 28
"""Maximum size of one array; a million boxes need a tenth of it."""


@dataclass(frozen=True)
class Stored:
    """An array that has not been read from its file yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    """Opens the array's part of the file."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype}"

    def check(self) -> None:
        """Raise InputError for an array of Python objects."""
        if self.dtype.hasobject:
            raise InputError("this NumPy file has Python objects, which are not loaded because they may run code")

    def read(self) -> np.ndarray:
        """Read the array; raises InputError if it is larger than `MAX_BYTES` or not readable. Pickles are not
        loaded."""
        self.check()
        count = 1
        for side in self.shape:  # Python integers do not overflow: a header may claim any shape
            count *= side
        if count * self.dtype.itemsize > MAX_BYTES:
            raise InputError(
                f"an array has {self}, which is more than {MAX_BYTES >> 20} MiB; keep only the part you need"
            )
        try:
            with self.open() as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # NumPy and zipfile raise a dozen types for broken files, even SyntaxError
            raise _unreadable(error) from error


def stored_arrays(path: Path) -> Stored | dict[str, Stored]:
    """Open the array of a .npy file, or all arrays of a .npz file by name, reading only their headers.

    Raises InputError for a file that is neither, or broken.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                array = _header(partial(path.open, "rb"))
                array.check()
                return array
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _header(partial(_member, path, name)) for name in names}
    except Exception as error:  # as above
        raise _unreadable(error) from error


def _member(path: Path, name: str) -> AbstractContextManager[IO[bytes]]:
    with zipfile.ZipFile(path) as archive:  # the open member keeps the file open
        return archive.open(name)


def _header(open_: Callable[[], AbstractContextManager[IO[bytes]]]) -> Stored:
    with open_() as file:
        version = np.lib.format.read_magic(file)
        formats: Any = np.lib.format
        read = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format is not known")
        shape, _, dtype = read(file)
    return Stored(shape, dtype, open_)


def _unreadable(error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(f"this NumPy file cannot be read: {(str(error).splitlines() or [repr(error)])[0]:.100}")
