"""Worker processes of one thread each: on networks this small a second thread gains less than a second job."""

import signal
import sys
from functools import cache
from typing import NoReturn

import torch

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import load

PROCESSES = 2
START = "fork" if sys.platform == "linux" else "spawn"
"""How they start; forking a process that has run no backward pass is safe."""


@cache
def worker_backbone(name: str, dtype: torch.dtype) -> Backbone:
    """The backbone of this process, which from now on computes with one thread.

    Called before the workers are forked, it is theirs too, and neither imported nor loaded again.
    """
    torch.set_num_threads(1)
    return load(name, dtype=dtype)


def quiet() -> None:
    """For the start of a worker: Ctrl-C is for its parent, which ends it; it then removes what is half written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
