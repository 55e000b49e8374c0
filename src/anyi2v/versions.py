"""Versions of the code, the libraries and the processor, for run records and cache keys."""

import hashlib
import platform
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = ("torch", "numpy", "open_clip_torch", "pillow", "imageio-ffmpeg")
"""Libraries whose version may change the bytes of a video or of its file."""

PACKAGE = Path(__file__).resolve().parent

REPORTING = (
    *("batch/*", "cli/*", "evaluation/*", "reports/*", "studio/*", "micro/training/*"),
    *(f"micro/benchmark/{name}" for name in ("bench_report", "demo", "statistics")),
)
"""Modules that do not affect a video's frames: commands, batches, evaluation, reports and training."""


def versions() -> dict[str, str]:
    """Return the versions of this package, its code, Python and `LIBRARIES`; "none" if not installed."""
    found = {"anyi2v": version("anyi2v"), "code": code_digest()[:16], "python": platform.python_version()}
    return found | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return torch.__version__ if name == "torch" else version(name)  # with the build, such as +cpu
    except PackageNotFoundError:
        return "none"


@cache
def code_digest(package: Path = PACKAGE) -> str:
    """Return the SHA-256 of the package's sources except `REPORTING`, to distinguish states within one version."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in REPORTING):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def processor(device: str | torch.device) -> str:
    """Return what determines rounding on a device: the CPU's instruction set, or the GPU's name."""
    device = torch.device(device)
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
