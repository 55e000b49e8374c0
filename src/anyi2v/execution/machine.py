"""Description of the machine for records of measurements, its fastest dtype, and release of its memory."""

import ctypes
import logging
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

LOGGER = logging.getLogger(__name__)


def describe() -> dict[str, Any]:
    """Describe the processor, cores, memory, versions and accelerator."""
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
"""Minimum speedup of matrix multiplications for bfloat16: 2 to 10 with native instructions, otherwise 1 or less."""


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """Return the fastest dtype for the networks on a device.

    On a CPU, bfloat16 if a short measurement of a matrix multiplication shows a speedup of more than `HALF_GAIN`, else
    float32. On an NVIDIA GPU, bfloat16, or float16 if bfloat16 is only emulated. On other devices float32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind != "cpu":
        return torch.float32
    slow, fast = (_product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    LOGGER.debug("a matrix multiplication takes %.2f ms in float32, %.2f ms in bfloat16", 1e3 * slow, 1e3 * fast)
    return torch.bfloat16 if slow > HALF_GAIN * fast else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Return the minimum time of several multiplications of two large matrices."""
    a, found = torch.ones(512, 512, dtype=dtype), []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        found.append(time.perf_counter() - start)
    return min(found)


def release_memory() -> None:
    """Return freed memory to the system; glibc may keep gigabytes left by many small tensors."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # only glibc has it
        trim(0)
