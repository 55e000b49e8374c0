"""Where the time of a run goes: named stages with a progress bar each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm


class Stages:
    """Adds up the seconds of named stages; stages may be entered many times and may not overlap.

    Args:
        progress: show a bar per stage on stderr.
        device: waited for at the ends of a stage, so that asynchronous work is counted where it belongs.
    """

    def __init__(self, *, progress: bool = False, device: torch.device | str = "cpu"):
        self.seconds: dict[str, float] = {}
        self.progress = progress
        self.device = torch.device(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the `with` block for stage `name`."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def bar(self, name: str, total: int) -> tqdm:
        """A progress bar for `total` units of stage `name`; close it or use it in a `with` block."""
        return tqdm(total=total, desc=name, disable=not self.progress, leave=True, dynamic_ncols=True)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
