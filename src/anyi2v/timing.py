"""Observers of a job: seconds per stage, and progress."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

Progress = Callable[[str, int, int], object]
"""Called with a stage, its units that are done and their total: with 0 done when its work begins, then after each."""


class Bars:
    """A progress bar per stage on stderr; a `Progress`."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Draws the stage's bar, and leaves it there when all is done."""
        if total == 0:
            return
        if stage not in self.bars:
            self.bars[stage] = tqdm(total=total, desc=stage, dynamic_ncols=True)
        bar = self.bars[stage]
        bar.update(done - bar.n)
        if done == total:
            self.bars.pop(stage).close()


class Stages:
    """Adds up the seconds of named stages; stages may be entered many times and may not overlap.

    Args:
        progress: told how far the stages that consist of passes are; True draws bars.
        device: waited for at the ends of a stage, so that asynchronous work is counted where it belongs.
    """

    def __init__(self, *, progress: Progress | bool = False, device: torch.device | str = "cpu"):
        self.seconds: dict[str, float] = {}
        self.progress: Progress | None = Bars() if progress is True else progress or None
        self.device = torch.device(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time inside the `with` block for stage `name`."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def counter(self, name: str, total: int) -> Callable[[int], None]:
        """A function that counts some more of the `total` units of stage `name` as done."""
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
