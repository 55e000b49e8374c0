"""What figures were made with, so that an interrupted benchmark never goes on with other code or another library."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from anyi2v.versions import code_digest

LABELS = {"sha256": "backbone", "sources": "anyi2v's sources"}
"""What messages call the digests of `bench.json`."""


def provenance() -> dict[str, str]:
    """Versions of this package and of PyTorch, and a digest of the sources that frames are made by."""
    return {"anyi2v": version("anyi2v"), "torch": torch.__version__, "sources": code_digest()}


def differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs of `now`'s entries, in words: "torch 2.14.0 (now 2.15.0)"; an absent entry is not recorded."""
    return [
        f"{LABELS.get(key, key)} {_short(former.get(key, 'not recorded'))} (now {_short(value)})"
        for key, value in now.items()
        if former.get(key) != value
    ]


def _short(value: Any) -> str:
    """Of a digest, its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
