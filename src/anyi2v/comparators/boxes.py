"""Boxes of tracks on the grid of a layer, and Gaussians inside them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.tracks import Box, Track, Tracks

Grid = tuple[int, int]
"""Number of rows and columns."""


class Cells(NamedTuple):
    """A half-open box of grid cells; it may extend beyond the grid."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Grid:
        """Number of rows and columns."""
        return self.bottom - self.top, self.right - self.left


def fractions(track: Track, tracks: Tracks) -> list[Box]:
    """Return the boxes (x0, y0, x1, y1) as fractions of the frame, one per frame of the track."""
    size = (tracks.width, tracks.height) * 2
    return [tuple(value / side for value, side in zip(box, size, strict=True)) for box in track.boxes]  # type: ignore[misc]


def inside(boxes: Sequence[Cells], grid: Grid, *, wrap: bool = False) -> Bool[Tensor, "f h w"]:
    """Mark the cells inside each frame's box; parts beyond the grid are clipped, or wrapped around with `wrap`."""
    out = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for frame, box in zip(out, boxes, strict=True):
        rows, columns = (_indices(start, stop, n, wrap) for start, stop, n in _axes(box, grid))
        frame[rows[1][:, None], columns[1]] = True
    return out


def place(
    patches: Sequence[Float[Tensor, "*c y x"]], boxes: Sequence[Cells], onto: Float[Tensor, "*c f h w"], *, wrap: bool
) -> Float[Tensor, "*c f h w"]:
    """Return a copy of `onto` with each frame's patch pasted into its box, clipped or wrapped as in `inside`.

    Each patch has the size of its box.
    """
    out, grid = onto.clone(), (onto.shape[-2], onto.shape[-1])
    for f, (patch, box) in enumerate(zip(patches, boxes, strict=True)):
        rows, columns = (_indices(start, stop, n, wrap) for start, stop, n in _axes(box, grid))
        out[..., f, rows[1][:, None], columns[1]] = patch[..., rows[0][:, None], columns[0]]
    return out


def gaussian(size: Grid) -> Float[Tensor, "y x"]:
    """Gaussian of FreeTraj and TrailBlazer in a box of cells: peak 1 in the middle, sigma a third of the box."""
    rows, columns = (_bell(n) for n in size)
    return (rows[:, None] * columns).float()


def _bell(n: int) -> Float[Tensor, " n"]:
    places = torch.linspace(0, n, n, dtype=torch.float64)
    bell = torch.exp(-((places - n // 2) / (max(n, 1) / 3)).square() / 2)
    return bell / bell.max() if n else bell


def _axes(box: Cells, grid: Grid) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return (box.top, box.bottom, grid[0]), (box.left, box.right, grid[1])


def _indices(start: int, stop: int, size: int, wrap: bool) -> tuple[Tensor, Tensor]:
    """Return matching indices into the box and into the grid along one axis."""
    places = torch.arange(stop - start)
    cells = places + start
    seen = (cells < size) & (cells >= (-size if wrap else 0))
    return places[seen], cells[seen] % size


def check_tracks(method: str, tracks: Tracks) -> None:
    """Raise InputError for tracks without objects."""
    if not tracks.objects:
        raise InputError(f"method {method} moves objects along tracks, but there are none; give tracks")
