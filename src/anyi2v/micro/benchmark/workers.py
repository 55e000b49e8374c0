"""Single-threaded worker processes; on small networks a second thread gains less than a second job."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

import torch

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import load

PROCESSES = 2
START = "fork" if sys.platform == "linux" else "spawn"
"""Start method of processes; forking is safe before the first backward pass."""


@cache
def worker_backbone(name: str, dtype: torch.dtype) -> Backbone:
    """Load the backbone of this process, and limit the process to one thread.

    If called before the workers are forked, they share it without importing or loading it again.
    """
    torch.set_num_threads(1)
    return load(name, dtype=dtype)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C in the `with` block; processes that it starts never receive it, not even before `quiet` runs."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def quiet() -> None:
    """Initialise a worker: ignore Ctrl-C, which the parent handles, and exit cleanly when terminated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
