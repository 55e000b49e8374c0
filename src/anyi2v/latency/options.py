"""Flags of the measurements; does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.execution.threads import MAX_THREADS
from anyi2v.files import check_place


def within(flag: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless `value` is within the limits, which catch typing errors."""
    if not low <= value <= high:
        raise InputError(f"{flag} {value} is not allowed; it must be {low} to {high}")


def check_measurement(out: Path, backbone: str | None, budget: float, *threads: int) -> None:
    """Check the common flags.

    Raises:
        ResourceError: `out` cannot be written to.
        InputError: a number is out of range, or the backbone is unknown.
    """
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
    """Name of a shipped backbone, a file, or "medium" (random weights, 64 to 256 channels)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the UNet and the text tower."""
    threads: int = 1
    """Number of CPU threads; with one, CPU time is measured, with several, wall time."""
    budget: float = 10.0
    """Approximate seconds per axis."""
    out: Path = Path("runs/scaling")
    """Output folder for scaling.json, scaling.md and scaling.png."""

    def check(self) -> None:
        """Check the flags, see `check_measurement`."""
        check_measurement(self.out, self.backbone, self.budget, self.threads)


@dataclass(frozen=True)
class StagesOptions:
    """Flags of `anyi2v bench stages`."""

    backbone: str = "micro"
    """Name of a shipped backbone, a file, or "medium" (random weights, 64 to 256 channels)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the UNet and the text tower."""
    threads: int = 1
    """Number of CPU threads; with one, CPU time is measured, with several, wall time."""
    objects: int = 1
    """Number of tracked objects."""
    frames: int | None = None
    """Number of frames of the video; None: the backbone's."""
    budget: float = 3.0
    """Approximate seconds per part."""
    out: Path = Path("runs/stages")
    """Output folder for stages.json, stages.md and stages.png."""

    def check(self) -> None:
        """Check the flags, see `check_measurement`."""
        from anyi2v.tracks.checks import MAX_FRAMES

        check_measurement(self.out, self.backbone, self.budget, self.threads)
        within("--objects", self.objects, 1, 9)
        within("--frames", 1 if self.frames is None else self.frames, 1, MAX_FRAMES)
