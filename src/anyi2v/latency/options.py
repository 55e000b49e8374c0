"""What is measured, and how: the flags of the measurements. Free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.execution.threads import MAX_THREADS
from anyi2v.files import check_place


def within(flag: str, value: float, low: float, high: float) -> None:
    """Raises InputError unless it is; the limits keep slips of the keyboard from being tried."""
    if not low <= value <= high:
        raise InputError(f"{flag} {value} is not allowed; it must be {low} to {high}")


def check_measurement(out: Path, backbone: str | None, budget: float, *threads: int) -> None:
    """Raises InputError for a place that cannot be written to, impossible numbers, or an unknown backbone."""
    check_place(out)
    for count in threads:
        within("--threads", count, 1, MAX_THREADS)
    within("--budget", budget, 0, 86_400)
    if backbone not in (None, "medium"):
        read_config(backbone)


@dataclass(frozen=True)
class ScalingOptions:
    """Flags of `anyi2v bench scaling`."""

    backbone: str = "micro"
    """Name of a shipped backbone, a file, or "medium": random weights, channels 64 to 256."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the UNet and the text tower."""
    threads: int = 1
    """Of the CPU; on one, CPU time is measured, on several wall time."""
    budget: float = 10.0
    """Seconds for each of the axes, about."""
    out: Path = Path("runs/scaling")
    """Folder for scaling.json, scaling.md and scaling.png."""

    def check(self) -> None:
        """Raises InputError for what cannot be measured."""
        check_measurement(self.out, self.backbone, self.budget, self.threads)


@dataclass(frozen=True)
class StagesOptions:
    """Flags of `anyi2v bench stages`."""

    backbone: str = "micro"
    """Name of a shipped backbone, a file, or "medium": random weights, channels 64 to 256."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the UNet and the text tower."""
    threads: int = 1
    """Of the CPU; on one, CPU time is measured, on several wall time."""
    objects: int = 1
    """That are followed."""
    frames: int | None = None
    """Of the video; None: the backbone's."""
    budget: float = 3.0
    """Seconds for each part, about."""
    out: Path = Path("runs/stages")
    """Folder for stages.json, stages.md and stages.png."""

    def check(self) -> None:
        """Raises InputError for what cannot be measured."""
        from anyi2v.tracks.checks import MAX_FRAMES

        check_measurement(self.out, self.backbone, self.budget, self.threads)
        within("--objects", self.objects, 1, 9)
        within("--frames", 1 if self.frames is None else self.frames, 1, MAX_FRAMES)
