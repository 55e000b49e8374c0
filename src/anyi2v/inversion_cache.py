"""Features of condition images kept on disk, so that another track on the same image needs no inversion.

An entry's name is a digest of everything that the features depend on, the weights themselves included. Entries are
written whole or not at all and checked when read, so that processes may share a folder; a damaged one is made anew.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anyi2v.files import atomic

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
        folder: made if missing.
        key: from `cache_key`.
        names: of the tensors that the entry must have.
        compute: makes them.
        device: where they shall be.
        limit: bytes; the entries that were not used for longest are removed beyond it.
    """
    path = folder / f"{key}.safetensors"
    found = _read(path, set(names))
    if found is None:
        found = compute()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"checksum": checksum(tensors)})
        _shrink(folder, limit)
    else:
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
    return {name: tensor.to(device) for name, tensor in found.items()}


def cache_key(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module) -> str:
    """A digest of plain settings, of the bytes of tensors, and of a network's weights."""
    parts = {
        "settings": dict(settings),
        "tensors": checksum(tensors),
        "network": fingerprint(network),
        "torch": torch.__version__,
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
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            entries.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries)[:-1]:
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
