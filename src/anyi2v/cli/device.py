"""Device, dtype, threads and workers of a command; imports torch only when needed."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anyi2v.errors import InputError
from anyi2v.execution.cluster import Workers
from anyi2v.execution.threads import MAX_THREADS
from anyi2v.files import check_place
from anyi2v.latency.options import within

if TYPE_CHECKING:
    import torch

    from anyi2v.batch.work import Machine

LOGGER = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WorkerCount = int | Literal["auto"] | None
"""Type of `--workers`; None: no workers, everything runs in this process."""


def network_dtype(dtype: Dtype, device: str) -> "torch.dtype":
    """Return the networks' dtype, with "auto" resolved."""
    import torch

    from anyi2v.execution.machine import fast_dtype

    return fast_dtype(device) if dtype == "auto" else getattr(torch, dtype)


def prepare_torch(device: str, threads: int | None) -> None:
    """Check the device and set the number of threads; raises InputError if either is not usable."""
    import torch

    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise InputError(f"--threads {threads} is not allowed; it must be 1 to {MAX_THREADS}")
        torch.set_num_threads(threads)
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def asked_of(device: str, dtype: Dtype, threads: int | None, low_memory: bool = False) -> dict[str, Any]:
    """Return the values that a run's record must have to match these flags; unset flags match anything."""
    same: dict[str, Any] = {"device": device, "low_memory": low_memory, "threads": threads}
    if dtype != "auto":
        same["dtype"] = dtype
    return {name: value for name, value in same.items() if value not in (None, False)}


def machine_of(
    device: str, dtype: Dtype, threads: int | None, low_memory: bool = False, cache: Path | None = None
) -> "Machine":
    """Set up the device and threads, and return the `Machine` for jobs.

    Raises InputError as `prepare_torch` does, ResourceError for a cache that cannot be written.
    """
    from anyi2v.batch.work import Machine

    if cache:
        check_place(cache)
    prepare_torch(device, threads)
    kind = network_dtype(dtype, device)
    _log(device, kind)
    asked = asked_of(device, dtype, threads, low_memory)
    return Machine(device, kind, low_memory, cache, asked)


def _log(device: str, dtype: "torch.dtype") -> None:
    import torch

    LOGGER.debug("device %s, networks in %s, %d CPU threads", device, dtype, torch.get_num_threads())


def workers_of(
    count: WorkerCount, address: str | None = None, device: str = "cpu", threads: int | None = None
) -> Workers | None:
    """Convert the worker flags; None if they request no workers.

    Raises InputError for invalid numbers, and for a device that workers cannot use.
    """
    if count is None and address is None:
        return None
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is not allowed with workers; use cpu, or cuda for one GPU each")
    if isinstance(count, int):
        within("--workers", count, 1, MAX_THREADS)
    if threads is not None:
        within("--threads", threads, 1, MAX_THREADS)
    return Workers(count if isinstance(count, int) else None, address, gpus=int(device == "cuda"), threads=threads or 1)
