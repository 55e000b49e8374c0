"""Reading of third-party weights files in two formats, with names, shapes and dtypes known without reading tensors.

Tensors are views of the memory-mapped file. Pages that were read stay in memory as long as the mapping, so a file is
mapped again after every `WINDOW` bytes; conversions therefore need little memory regardless of the size of their
sources.
"""

import math
import pickle
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyi2v.checkpoints.header import read_header
from anyi2v.errors import CheckpointError, InputError
from anyi2v.files import expanded

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files written by `torch.save`."""

WINDOW = 128 * 2**20
"""Number of bytes that are read before a file is mapped again."""


class WeightsFile(ABC):
    """A file of tensors.

    Attributes:
        path: the file.
        shapes: shapes by key.
        dtypes: names of torch dtypes by key.
        metadata: text entries of the file's metadata.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]

    def __init__(self) -> None:
        self._handle: Any = None
        self._taken = 0

    def read(self, key: str) -> Tensor:
        """Read one tensor; treat it as read-only. Raises CheckpointError if the file is no longer readable."""
        if self._handle is None or self._taken > WINDOW:
            self._handle = None  # unmaps, unless a tensor is still in use
            self._handle = self._open()
            self._taken = 0
        tensor = self._get(self._handle, key)
        self._taken += tensor.nbytes
        return tensor

    @abstractmethod
    def _open(self) -> Any:
        """Map the file."""

    @abstractmethod
    def _get(self, handle: Any, key: str) -> Tensor:
        """Return a tensor of the mapped file."""


def open_file(path: Path) -> "WeightsFile":
    """Open a weights file of either format.

    Raises:
        InputError: the file does not exist.
        CheckpointError: the suffix is unknown, the file is damaged, or it is a pickle with code, which is never
            executed.
    """
    if not path.is_file():
        raise InputError(f"no weights file {path}: there is no such file")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickledFile(path)
    raise CheckpointError(f"{path} has the suffix {path.suffix!r}; supported are .safetensors, {', '.join(PICKLES)}")


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a weights file, on the CPU in their own dtypes, and its metadata; raises as `open_file`."""
    file = open_file(expanded(path))
    return {key: file.read(key) for key in file.shapes}, file.metadata


_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsFile(WeightsFile):
    """A .safetensors file. Raises CheckpointError if it is damaged or has another format."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        # the library checks more than our reader, which has better messages
        header = read_header(path)
        self._handle = self._open()
        self.shapes = header.shapes
        self.dtypes = {key: _NAMES.get(dtype, dtype.lower()) for key, dtype in header.dtypes.items()}
        self.metadata = header.metadata

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}); download it again") from error

    def _get(self, handle: Any, key: str) -> Tensor:
        try:
            return handle.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: {key} cannot be read ({error}); download it again") from error


class PickledFile(WeightsFile):
    """A file of `torch.save`: .ckpt, .pt, .pth, .bin. Objects other than tensors are skipped.

    Read with `weights_only`, so that code in it is never executed. Files older than PyTorch 1.6 cannot be memory-mapped
    and are read completely.

    Raises CheckpointError if it is damaged, has another format, or contains code.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        with path.open("rb") as file:
            self._mapped = file.read(4) == b"PK\x03\x04"  # a zip archive, the same check as PyTorch's
        self._handle = self._open()
        self.metadata = {}
        strange = [key for key, tensor in self._handle.items() if not _is_plain(tensor)]
        if strange:
            raise CheckpointError(f"{path}: {len(strange)} tensors are not dense arrays: {', '.join(strange[:5])}")
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._handle.items()}
        self.dtypes = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in self._handle.items()}

    def _open(self) -> dict[str, Tensor]:
        return _unwrap(self.path, read_pickle(self.path, mapped=self._mapped))

    def _get(self, handle: Any, key: str) -> Tensor:
        if not self._mapped:
            self._taken = -math.inf  # not mapped, so reading it again would not free memory
        return handle[key].detach()


def read_pickle(path: Path, *, mapped: bool = False) -> Any:
    """Read a file of `torch.save` with tensors and plain data, without ever executing code in it.

    Args:
        path: the file.
        mapped: return tensors as views of the file; requires a file of PyTorch 1.6 or newer.

    Raises CheckpointError if the file is damaged, has another format, or contains code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_why(str(error))}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        line = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as weights of PyTorch ({type(error).__name__}: {line[:200]}); "
            "it is damaged or has another format: download it again"
        ) from error


def _why(message: str) -> str:
    """Explain to the user why the unpickler stopped."""
    if found := re.search(r"GLOBAL (\S+)", message):
        return (
            f"is a pickle that contains code ({found[1]}), which is never executed here; use the .safetensors "
            "version of these weights, or let someone you trust save the tensors alone"
        )
    line = re.search(r"Unsupported[^\n]*", message)
    return f"is damaged or contains more than tensors ({line[0] if line else message.strip()[:100]}); download it again"


_WRAPPERS = ("state_dict", "controlnet", "ema", "module")


def _unwrap(path: Path, data: Any) -> dict[str, Tensor]:
    """Extract the tensors of a loaded file from the dictionaries that training tools wrap around them."""
    for _ in _WRAPPERS:
        for name in _WRAPPERS:
            if isinstance(data, Mapping) and isinstance(data.get(name), Mapping):
                data = data[name]
    if isinstance(data, Mapping) and any(isinstance(key, int) for key in data):
        raise CheckpointError(
            f"{path} has tensors by number, like a hypernetwork (not supported); expected a dictionary of tensors by "
            "name"
        )
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise CheckpointError(f"{path} has a {type(data).__name__}; expected a dictionary of tensors by name")
    if not any(isinstance(value, Tensor) for value in data.values()):
        data = _nested(data)
    # a LoRA's scale may be a plain number; other non-tensors (a configuration, a step count) are left out
    return {
        key: torch.as_tensor(value)
        for key, value in data.items()
        if isinstance(value, Tensor) or (isinstance(value, int | float) and key.endswith(".alpha"))
    }


def _nested(data: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dictionaries of tensors to joined names, so that a file can at least be recognised."""
    return {
        f"{outer}.{inner}": value
        for outer, table in data.items()
        if isinstance(table, Mapping)
        for inner, value in table.items()
        if isinstance(value, Tensor)
    }


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
