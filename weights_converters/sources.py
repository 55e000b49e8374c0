"""Sources of weights: .safetensors or PyTorch files or folders as one mapping, read tensor by tensor.

Keys are stripped of wrappers added by training tools (`state_dict`, `ema`, `module.`, `_forward_module.`).
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from anyi2v.checkpoints.foreign import WeightsFile, open_file
from anyi2v.errors import CheckpointError, InputError
from anyi2v.files import read_json


class Source(Mapping[str, Tensor]):
    """The tensors of one or more files by keys without wrappers, read lazily.

    Raises CheckpointError, naming the file, if a file is not readable, or if two keys are equal without wrappers.
    """

    def __init__(self, path: Path, files: list[WeightsFile]):
        self.path = path
        self.files = files
        self._homes: dict[str, tuple[WeightsFile, str]] = {}
        for file in files:
            for key in file.shapes:
                clean = key.removeprefix("_forward_").removeprefix("module.")
                if clean in self._homes:
                    raise CheckpointError(f"{file.path} has the tensor {clean} a second time, as {key}")
                self._homes[clean] = (file, key)
        if not self._homes:
            raise CheckpointError(f"{path} has no tensors")
        self.shapes = {key: file.shapes[name] for key, (file, name) in self._homes.items()}
        self.dtypes = {key: file.dtypes[name] for key, (file, name) in self._homes.items()}
        """Names of torch dtypes by key: float16, bfloat16, float32, int64, ..."""

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the first file; empty for pickles."""
        return self.files[0].metadata

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.path.stat().st_size for file in self.files)

    def original(self, key: str) -> str:
        """Return the key as spelled in its file."""
        return self._homes[key][1]

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by folder and file name."""
        return {f"{file.path.parent.name}/{file.path.name}": _sha256(file.path) for file in self.files}

    def __getitem__(self, key: str) -> Tensor:
        file, name = self._homes[key]
        return file.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_source(path: Path) -> Source:
    """Open a weights file, or a folder as written by diffusers.

    Raises:
        InputError: the file does not exist, or the folder has no weights or several.
        CheckpointError: the file is damaged, has an unknown format, or is a pickle that contains code.
    """
    chosen = weights_file(path) if path.is_dir() else path
    if not chosen.is_file():
        raise InputError(f"{path} does not exist")
    if chosen.suffix != ".json":
        return Source(path, [open_file(chosen)])
    table = _index(chosen)
    absent = sorted({name for name in table.values() if not (chosen.parent / name).is_file()})
    if absent:
        raise CheckpointError(f"{chosen} refers to {', '.join(absent)}, which is missing; download it as well")
    files = [open_file(chosen.parent / name) for name in sorted(set(table.values()))]
    lost = sorted(set(table) - {key for file in files for key in file.shapes})
    if lost:
        raise CheckpointError(f"{chosen}: the index lists {len(lost)} tensors that are missing: {lost[:5]}")
    return Source(path, files)


_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32)\b")


def weights_file(folder: Path) -> Path:
    """Choose the weights in `folder`, as a file or as the index of several files.

    .safetensors are preferred to pickles, full precision to variants (`*.fp16.*`), and copies without the moving
    average (`*.non_ema.*`) are skipped. Raises InputError if there are none, or more than one remains.
    """
    found: list[Path] = []
    for ending in (".safetensors", ".bin"):
        single = [path for path in folder.glob(f"*{ending}") if not _SHARD.search(path.name)]
        indices = list(folder.glob(f"*{ending}.index*.json"))
        found = sorted(path for path in single + indices if ".non_ema" not in path.name)
        full = [path for path in found if not _VARIANT.search(path.name)]
        if chosen := full or found:
            if len(chosen) == 1:
                return chosen[0]
            break
    names = ", ".join(path.name for path in found) or "none"
    raise InputError(f"{folder} must have exactly one .safetensors file or index, but it has: {names}")


def _index(path: Path) -> dict[str, str]:
    """Read which file has which tensor; raises CheckpointError if `path` is not an index."""
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path} is not an index of weights: it has no table 'weight_map'")
    # an untrusted index must not point outside of its folder
    strange = [name for name in table.values() if not isinstance(name, str) or Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path} refers to {strange[0]!r}; only files in its folder are allowed")
    return table


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the total number of elements of tensors with these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
