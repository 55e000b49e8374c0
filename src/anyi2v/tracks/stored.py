"""Arrays in NumPy's files, whose shapes are known before any of their data is read. Free of torch."""

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
"""Of one array: a million boxes have a tenth of it."""


@dataclass(frozen=True)
class Stored:
    """An array that is still in its file."""

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
        """Raises InputError for an array of Python objects."""
        if self.dtype.hasobject:
            raise InputError("this NumPy file holds Python objects, which are not loaded, for they may run code")

    def read(self) -> np.ndarray:
        """The array; raises InputError if it is larger than `MAX_BYTES` or cannot be read. Pickles are not loaded."""
        self.check()
        count = 1
        for side in self.shape:  # in whole numbers without a limit: a header may claim anything
            count *= side
        if count * self.dtype.itemsize > MAX_BYTES:
            raise InputError(
                f"an array has {self}, which is more than {MAX_BYTES >> 20} MiB; keep what is needed of it"
            )
        try:
            with self.open() as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # of broken files NumPy and zipfile raise a dozen kinds, up to SyntaxError
            raise _unreadable(error) from error


def stored_arrays(path: Path) -> Stored | dict[str, Stored]:
    """The array of a .npy file, or all of a .npz by name; only their headers are read, in any size of file.

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
    with zipfile.ZipFile(path) as archive:  # what is open keeps the file open
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
