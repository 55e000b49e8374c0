"""On-disk cache of the features of condition images, so that further tracks on an image need no inversion.

An entry's name is a digest of everything the features depend on, including the weights. Entries are written atomically
and verified when read, so processes may share a folder; a damaged entry is recomputed. Entries are stored in a
subfolder of their own, `FOLDER`; no other file is ever read or removed.
"""

import contextlib
import hashlib
import json
import logging
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

LOGGER = logging.getLogger(__name__)

FOLDER, SUFFIX = "anyi2v-inversions", ".features.safetensors"
"""Subfolder of the given folder that holds the entries, and the suffix of their names."""

LIMIT = 4 * 2**30
"""Default size limit of the cache in bytes; the entry of one 512 x 512 image on SD-1.5 takes 40 MB."""


def cached(
    folder: Path,
    key: str,
    names: Iterable[str],
    compute: Callable[[], dict[str, Tensor]],
    *,
    device: torch.device,
    limit: int = LIMIT,
) -> dict[str, Tensor]:
    """Return the tensors of entry `key` on `device`; compute and store them if the entry is missing or damaged.

    Args:
        folder: created if missing; entries are stored in its subfolder `FOLDER`.
        key: from `cache_key`.
        names: names of the tensors that the entry must have.
        compute: computes the tensors.
        device: device of the returned tensors.
        limit: size limit in bytes; beyond it the least recently used entries are removed.

    Warns if the entry cannot be stored; the tensors are still returned.
    """
    folder = expanded(folder) / FOLDER
    path = folder / f"{key}{SUFFIX}"
    found = _read(path, set(names))
    LOGGER.debug("%s the inverted image in %s", "computing" if found is None else "found", path)
    if found is None:
        found = compute()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        try:
            with atomic(path) as temporary:
                save_file(tensors, temporary, metadata={"checksum": checksum(tensors)})
            _shrink(folder, limit)
            _clear(folder)
        except (OSError, SafetensorError, ResourceError) as error:  # the tensors are enough for the job
            text = f"the inverted image is not cached in {folder}: {error}"
            warnings.warn(text, AnyI2VWarning, stacklevel=2)
    else:
        with contextlib.suppress(OSError):
            os.utime(path)  # mark as recently used
    return {name: tensor.to(device) for name, tensor in found.items()}


def cache_key(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module) -> str:
    """Return a digest of plain settings, the bytes of tensors, a network's weights, torch's version and the code."""
    parts = {
        "settings": dict(settings),
        "tensors": checksum(tensors),
        "network": fingerprint(network),
        "torch": torch.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(network: nn.Module) -> str:
    """Return a digest of the weights, computed on their device from two sums over each tensor's bits.

    Two 64-bit sums, one plain and one weighted by position, distinguish all weights except deliberate collisions,
    without moving the bytes off the device. Applied LoRAs change the digest.
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
    """Read the entry; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
            wanted = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError):
        return None
    return tensors if tensors.keys() == names and checksum(tensors) == wanted else None


def _shrink(folder: Path, limit: int) -> None:
    """Remove the least recently used entries; safe against other processes doing the same."""
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
    """Remove temporary files older than a day, left by killed processes."""
    for path in folder.glob(f"{OURS}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                path.unlink()
