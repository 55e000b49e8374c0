"""Features of condition images kept on disk, so that another track on the same image needs no inversion.

An entry's name is a digest of everything that the features depend on, the weights themselves included. Entries are
written whole or not at all and checked when read, so that processes may share a folder; a damaged one is recomputed.
They lie in a folder of their own, `FOLDER`, below the one that is given: no other file is ever looked at or removed.
"""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anyi2v.errors import AnyI2VWarning, ResourceError
from anyi2v.files import OURS, atomic, expanded
from anyi2v.versions import code_digest

FOLDER, SUFFIX = "anyi2v-inversions", ".features.safetensors"
"""Where entries lie, below the folder that is given, and how their names end."""

LIMIT = 4 * 2**30
"""Bytes that a folder may hold; the entries of one 512 x 512 image on SD-1.5 take 40 MB."""


def cached(
    folder: Path,
    key: str,
    names: Iterable[str],
    compute: Callable[[], dict[str, Tensor]],
    *,
    device: torch.device,
    limit: int = LIMIT,
) -> dict[str, Tensor]:
    """The tensors of entry `key`, on `device`; computed and stored if there is none, or a damaged one.

    Args:
        folder: made if missing; the entries are in its folder `FOLDER`.
        key: from `cache_key`.
        names: of the tensors that the entry must have.
        compute: makes them.
        device: where they shall be.
        limit: bytes; the entries that were not used for longest are removed beyond it.

    Warns if the entry cannot be stored: the tensors are returned all the same.
    """
    folder = expanded(folder) / FOLDER
    path = folder / f"{key}{SUFFIX}"
    found = _read(path, set(names))
    if found is None:
        found = compute()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        try:
            with atomic(path) as temporary:
                save_file(tensors, temporary, metadata={"checksum": checksum(tensors)})
            _shrink(folder, limit)
            _clear(folder)
        except (OSError, SafetensorError, ResourceError) as error:  # the job needs the tensors, not the entry
            text = f"the inverted image is not kept in {folder}: {error}"
            warnings.warn(text, AnyI2VWarning, stacklevel=2)
    else:
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
    return {name: tensor.to(device) for name, tensor in found.items()}


def cache_key(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module) -> str:
    """A digest of plain settings, of the bytes of tensors, of a network's weights, and of the code that computes."""
    parts = {
        "settings": dict(settings),
        "tensors": checksum(tensors),
        "network": fingerprint(network),
        "torch": torch.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(network: nn.Module) -> str:
    """A digest of the weights that is computed where they are: per tensor, two sums over its bits.

    Two sums of 64 bits, plain and weighted by the place, tell all weights apart that are not made to collide; the
    bytes themselves need not leave the device. LoRAs that were added are seen too.
    """
    lines = []
    for name, tensor in sorted(network.state_dict().items()):
        bits = tensor.detach().contiguous().flatten().view(_BITS[tensor.element_size()]).long()
        places = torch.arange(len(bits), device=bits.device) % 65521 + 1
        sums = torch.stack([bits.sum(), (bits * places).sum()]).tolist()
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {sums}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _read(path: Path, names: set[str]) -> dict[str, Tensor] | None:
    """The entry, if it is there and whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  the file is no dictionary
            wanted = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return tensors if tensors.keys() == names and checksum(tensors) == wanted else None


def _shrink(folder: Path, limit: int) -> None:
    """Removes the entries that were not used for longest; another process may do the same at the same time."""
    entries = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            entries.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries)[:-1]:
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size


def _clear(folder: Path) -> None:
    """Removes what processes that were killed a day ago or earlier have left half written."""
    for path in folder.glob(f"{OURS}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                path.unlink()
