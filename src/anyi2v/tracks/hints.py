"""Information that a track file may lack."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from anyi2v.errors import InputError
from anyi2v.tracks.checks import check_size, shown, text
from anyi2v.tracks.masks import read_mask
from anyi2v.tracks.model import Box, Point

DEFAULT_BOX = 0.25
"""Side of the default square box around a point or path, as a fraction of the frame's shorter side."""


@dataclass(frozen=True)
class Hints:
    """Values that the user gives in addition to a file; raises InputError if one is invalid."""

    size: tuple[int, int] | None = None
    """(width, height) of the image that the tracks were drawn on, in pixels."""
    box_size: tuple[float, float] | None = None
    """(width, height) of boxes of objects that only have a path, in pixels of the file's frame."""
    folder: Path | None = Path()
    """Folder of files referred to by the file; None: such files must not be read."""

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size(*self.size)
        if self.box_size is not None and not all(0 < side < float("inf") for side in self.box_size):
            raise InputError(f"the box size is {text(self.box_size)}; give a width and a height above 0, in pixels")

    def mask(self, file: str) -> Bool[np.ndarray, "h w"]:
        """Read the mask in a file that the track file refers to; raises InputError if it cannot or must not be read."""
        if self.folder is None:
            raise InputError(f"it is in another file, {shown(file)}, which is not read here; give it as run lengths")
        return read_mask(self.folder / file)

    def needed_size(self, what: str) -> tuple[int, int]:
        """Return the image's size; raises InputError, naming the format, if it was not given."""
        if self.size is None:
            raise InputError(
                f"{what} has pixel coordinates, but not the image's size; give it by --size WIDTH HEIGHT, or "
                "size=(width, height)"
            )
        return self.size

    def box_at(self, point: Point, size: tuple[int, int]) -> Box:
        """Return the default box around a point in a frame of `size` (width, height)."""
        side = DEFAULT_BOX * min(size)
        return centred(point, self.box_size or (side, side))


def centred(point: Point, size: Sequence[float]) -> Box:
    """Return the box of `size` (width, height) around `point`."""
    (x, y), (w, h) = point, size
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def moved(first: Box, path: Sequence[Point]) -> tuple[Box, ...]:
    """Move `first` by the displacements of `path` from its first point; an empty path gives a static box."""
    x0, y0, x1, y1 = first
    shifts = [(x - path[0][0], y - path[0][1]) for x, y in path] or [(0.0, 0.0)]
    return tuple((x0 + dx, y0 + dy, x1 + dx, y1 + dy) for dx, dy in shifts)
