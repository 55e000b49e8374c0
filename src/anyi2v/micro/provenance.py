"""What figures were made with, so that an interrupted benchmark never goes on with other code or another library."""

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anyi2v.backbone.header import resolve, sources
from anyi2v.run_record import sha256

PACKAGE = Path(__file__).resolve().parents[1]
REPORTING = (
    *("cli", "cli_*", "conversion", "feature_pictures", "inspection", "plots", "report", "report_page"),
    *("micro/bench_report", "micro/demo", "micro/statistics", "micro/train", "micro/training_data"),
)
"""Modules of the package that change no frame of a benchmark: commands, reports and training."""

LABELS = {"sha256": "backbone", "sources": "anyi2v's sources"}
"""What messages call the digests of `bench.json`."""


def provenance() -> dict[str, str]:
    """Versions of this package and of PyTorch, and a digest of the sources that frames are made by."""
    return {"anyi2v": version("anyi2v"), "torch": torch.__version__, "sources": digest(PACKAGE)}


@cache
def digest(package: Path) -> str:
    """SHA-256 of names and contents of the package's modules but for those of `REPORTING`; read once per process."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in REPORTING):
            found.update(f"{name}\n".encode() + path.read_bytes())
    return found.hexdigest()


def weights_digest(backbone: str) -> str:
    """SHA-256 of a backbone's file; of one that holds parts only, of the digests of all files that it stands on."""
    digests = [sha256(path) for path in sources(resolve(backbone))]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


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
