"""What machine this is: for the record of figures, and which data type is fast on it."""

import ctypes
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions, accelerator."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "anyi2v": version("anyi2v"),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


HALF_GAIN = 1.5
"""Speedup that matrix multiplications must reach in bfloat16: 2 to 10 with instructions for it, else 1 or less."""


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """The data type for the networks in which a device is fastest: float32, or one of 16 bits.

    On a CPU it is bfloat16 where a matrix multiplication, measured for a few hundredths of a second, gains `HALF_GAIN`
    from it. On an NVIDIA GPU it is bfloat16, float16 where that is only emulated; on other devices float32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind != "cpu":
        return torch.float32
    slow, fast = (_product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if slow > HALF_GAIN * fast else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Of a multiplication of two large matrices, the least of some."""
    a, found = torch.ones(512, 512, dtype=dtype), []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        found.append(time.perf_counter() - start)
    return min(found)


def release_memory() -> None:
    """Returns memory that was freed to the system: glibc keeps what many small tensors have left, gigabytes of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # other C libraries have none
        trim(0)
