"""Which code and which libraries compute here: for the record of a run, and for the names of what is kept."""

import hashlib
import platform
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = ("torch", "numpy", "open_clip_torch", "pillow", "imageio-ffmpeg")
"""Those whose version may decide bytes: of the video, or of the files that it is stored in."""

PACKAGE = Path(__file__).resolve().parent

REPORTING = (
    *("batch/*", "cli/*", "evaluation/*", "reports/*", "micro/training/*"),
    *(f"micro/benchmark/{name}" for name in ("bench_report", "demo", "statistics")),
)
"""Modules that change no frame of a video: commands, batches, evaluation, reports and training."""


def versions() -> dict[str, str]:
    """The versions of this package, its code, Python and `LIBRARIES`; "none" for one that is not installed."""
    found = {"anyi2v": version("anyi2v"), "code": code_digest()[:16], "python": platform.python_version()}
    return found | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return torch.__version__ if name == "torch" else version(name)  # torch's own says what it was built for
    except PackageNotFoundError:
        return "none"


@cache
def code_digest(package: Path = PACKAGE) -> str:
    """SHA-256 of the package's sources but for those in `REPORTING`: it distinguishes two states of one version."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in REPORTING):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def processor(device: str | torch.device) -> str:
    """What computes on a device, as far as it decides how sums are rounded: an instruction set, or a GPU's name."""
    device = torch.device(device)
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
