"""Work for the workers of tests/test_cluster.py, in a module of its own that is quickly imported."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from anyi2v.errors import InputError


class Notes:
    """Leaves a file for each time that an item is begun; some items end their process, some fail."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, item: str) -> tuple[str, int, str | None, int]:
        import torch

        (self.folder / f"{item}-{time.time_ns()}").touch()
        if item == "deadly" or (item == "once" and len(list(self.folder.glob("once-*"))) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "wrong":
            raise InputError("a mistake")
        time.sleep(0.3)
        return item, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads()


def noting(folder: Path) -> Callable[[], Notes]:
    """What makes such work."""
    return lambda: Notes(folder)
