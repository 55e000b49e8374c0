"""Where and in which data type a command computes. Free of torch until it does."""

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

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WorkerCount = int | Literal["auto"] | None
"""Of `--workers`; None: none, the work is done in this process."""


def network_dtype(dtype: Dtype, device: str) -> "torch.dtype":
    """That of the networks; "auto" is resolved."""
    import torch

    from anyi2v.execution.machine import fast_dtype

    return fast_dtype(device) if dtype == "auto" else getattr(torch, dtype)


def prepare_torch(device: str, threads: int | None) -> None:
    """Raises InputError if nothing can be computed on the device, or for an impossible number of threads."""
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
    """What the record of a run must say of these flags; what they leave open may be as it was."""
    same: dict[str, Any] = {"device": device, "low_memory": low_memory, "threads": threads}
    if dtype != "auto":
        same["dtype"] = dtype
    return {name: value for name, value in same.items() if value not in (None, False)}


def machine_of(
    device: str, dtype: Dtype, threads: int | None, low_memory: bool = False, cache: Path | None = None
) -> "Machine":
    """Where jobs are computed, made ready.

    Raises InputError as `prepare_torch` does, ResourceError for a cache that cannot be written.
    """
    from anyi2v.batch.work import Machine

    if cache:
        check_place(cache)
    prepare_torch(device, threads)
    asked = asked_of(device, dtype, threads, low_memory)
    return Machine(device, network_dtype(dtype, device), low_memory, cache, asked)


def workers_of(
    count: WorkerCount, address: str | None = None, device: str = "cpu", threads: int | None = None
) -> Workers | None:
    """What the flags of workers ask for; None if they do not.

    Raises InputError for impossible numbers, and a device that workers cannot share.
    """
    if count is None and address is None:
        return None
    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device} is not allowed with workers; give cpu, or cuda for a GPU each")
    if isinstance(count, int):
        within("--workers", count, 1, MAX_THREADS)
    if threads is not None:
        within("--threads", threads, 1, MAX_THREADS)
    return Workers(count if isinstance(count, int) else None, address, gpus=int(device == "cuda"), threads=threads or 1)
