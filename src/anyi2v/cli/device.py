"""Where and in which data type a command computes. Free of torch until it does."""

from typing import TYPE_CHECKING, Literal

from anyi2v.errors import InputError
from anyi2v.latency.options import MAX_THREADS

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


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
