"""Provenance of figures, so that an interrupted benchmark never continues with other code or libraries."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from anyi2v.versions import code_digest

LABELS = {"sha256": "backbone", "sources": "anyi2v's sources"}
"""Names of the digests of `bench.json` in messages."""


def provenance() -> dict[str, str]:
    """Return the versions of this package and of PyTorch, and a digest of the sources that affect frames."""
    return {"anyi2v": version("anyi2v"), "torch": torch.__version__, "sources": code_digest()}


def differences(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the entries of `now` that differ, for example "torch 2.14.0 (now 2.15.0)"."""
    return [
        f"{LABELS.get(key, key)} {_short(former.get(key, 'not recorded'))} (now {_short(value)})"
        for key, value in now.items()
        if former.get(key) != value
    ]


def _short(value: Any) -> str:
    """Shorten digests."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
