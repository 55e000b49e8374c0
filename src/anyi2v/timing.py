"""Timing of a job's stages, and progress reports."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)

LEAST_PAUSE = 30.0
"""Minimum number of seconds between messages about the progress of a stage that has not ended."""

Progress = Callable[[str, int, int], object]
"""Callback that receives a stage, its number of finished units (first 0, then after each unit) and their total."""


class Bars:
    """A `Progress` that draws one progress bar per stage of more than one unit on stderr."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Update the stage's bar, and close it when the stage is complete."""
        if total <= 1:
            return
        if stage not in self.bars:
            self.bars[stage] = tqdm(total=total, desc=stage, dynamic_ncols=True)
        bar = self.bars[stage]
        bar.update(done - bar.n)
        if done == total:
            self.bars.pop(stage).close()


class Lines:
    """A `Progress` that logs when each stage begins, now and then its finished units, and their seconds at its end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = self.said = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Log the begin or the end of the stage, or its progress if nothing was logged for `LEAST_PAUSE` seconds.

        The time since the previous call belongs to the stage's finished units.
        """
        if total == 0:
            return
        now = time.perf_counter()
        if done == 0:
            self.seconds[stage] = 0.0
            LOGGER.info("%s: started (0 of %d)", stage, total)
        else:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now
        if 0 < done < total and now - self.said >= LEAST_PAUSE:
            LOGGER.info("%s: %d of %d after %.0f s", stage, done, total, self.seconds[stage])
            self.said = now
        if done in (0, total):
            self.said = now
        if done == total:
            LOGGER.info("%s: finished in %.1f s (%d of %d)", stage, self.seconds.pop(stage), done, total)


def counted(items: Iterable[T], total: int, title: str, *, bar: bool, unit: str = "it") -> Iterator[T]:
    """Yield the items, with a progress bar on stderr, or log when the first begins and when all are finished.

    Args:
        items: results of a computation as they are finished, or items to be worked on.
        total: number of items; 0 shows nothing.
        title: what the items are, for the bar and the messages.
        bar: draw a bar instead of logging.
        unit: unit of the bar.
    """
    if bar:
        yield from tqdm(items, desc=title, total=total, unit=unit)
        return
    lines = Lines()
    lines(title, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        lines(title, done, total)


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
