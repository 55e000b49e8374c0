"""Timing of a job's stages, and progress reports."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

Progress = Callable[[str, int, int], object]
"""Callback that receives a stage, its number of finished units (first 0, then after each unit) and their total."""


class Bars:
    """A `Progress` that draws one progress bar per stage on stderr."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Update the stage's bar, and close it when the stage is complete."""
        if total == 0:
            return
        if stage not in self.bars:
            self.bars[stage] = tqdm(total=total, desc=stage, dynamic_ncols=True)
        bar = self.bars[stage]
        bar.update(done - bar.n)
        if done == total:
            self.bars.pop(stage).close()


class Stages:
    """Accumulates the seconds of named stages; a stage may be entered repeatedly, but stages must not overlap.

    Args:
        progress: receives the progress of stages that consist of passes; True draws bars.
        device: synchronised at the start and end of a stage, so that asynchronous work counts towards its own stage.
    """

    def __init__(self, *, progress: Progress | bool = False, device: torch.device | str = "cpu"):
        self.seconds: dict[str, float] = {}
        self.progress: Progress | None = Bars() if progress is True else progress or None
        self.device = torch.device(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the `with` block to stage `name`."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def counter(self, name: str, total: int) -> Callable[[int], None]:
        """Return a function that counts further units of stage `name`, out of `total`, as finished."""
        done = 0

        def count(units: int) -> None:
            nonlocal done
            done += units
            if self.progress is not None:
                self.progress(name, done, total)

        count(0)
        return count

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
