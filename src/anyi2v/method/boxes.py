"""Conversion of a job's tracks to boxes on the working lattice, which `crops` cuts out of feature maps."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import Crops, Span, visible
from anyi2v.tracks import Track, Tracks

LARGEST_BOX = 64
"""Largest side of a box, in frame sides: resizing matrices grow with the box, although only the frame is visible."""


def make_crops(
    tracks: Tracks,
    lattice: tuple[int, int],
    frames: int,
    *,
    first_box: Literal["clip", "stretch"] = "clip",
) -> Crops:
    """Convert the boxes of `tracks` to a lattice of (rows, columns) cells.

    Coordinates are divided by the cell size and rounded down; a box has at least one cell per axis. A box that extends
    beyond the image is clipped. If this happens in frame 1, `first_box="clip"` leaves the missing part without
    features, while "stretch" (published code) resizes the visible part to the size of the whole box.

    Raises:
        InputError: there are no objects, the number of boxes is not `frames` (resample first), a box is more than
            `LARGEST_BOX` times as large as the frame, less than a cell of an object's first box is visible, or a user's
            mask is empty inside it.
    """
    if not tracks.objects:
        raise InputError("the tracks have no objects, so there is nothing to align")
    scale = (lattice[0] / tracks.height, lattice[1] / tracks.width)
    boxes = tuple(_boxes(track, scale, lattice, frames) for track in tracks.objects)
    first = tuple(box[0] for box in boxes)
    seen = tuple((visible(rows, lattice[0]), visible(cols, lattice[1])) for rows, cols in first)
    for track, spans in zip(tracks.objects, seen, strict=True):
        _check_seen(track, spans, scale)
    if first_box == "stretch":
        first = seen
    rows, cols = (_first_cells(boxes, first, axis, lattice[axis]) for axis in (0, 1))
    salient = [list(track.salient_points) for track in tracks.objects]
    corners = [track.boxes[0][:2] for track in tracks.objects]
    valid = rows[1][..., None] & cols[1][..., None, :]
    return Crops(
        names=tuple(track.name for track in tracks.objects),
        lattice=lattice,
        boxes=boxes,
        first=first,
        valid=valid,
        first_cell=(rows[0], cols[0]),
        points=_cells(salient, scale, lattice),
        offsets=_cells(
            [[(x - left, y - top) for x, y in points] for points, (left, top) in zip(salient, corners, strict=True)],
            scale,
            lattice,
        ),
        given=torch.stack(
            [_given(track, spans, lattice, valid.shape[2:]) for track, spans in zip(tracks.objects, seen, strict=True)]
        ),
        has_given=torch.tensor([track.mask is not None for track in tracks.objects]),
        loss_weights=_loss_weights(tracks),
    )


def job_crops(tracks: Tracks, config: MethodConfig, factor: int) -> Crops:
    """Convert the tracks of a job to the working lattice.

    Args:
        tracks: in pixels of the video, with one box per frame, as in `Result.tracks`.
        config: settings of the method; only `first_box` is used.
        factor: pixels per latent cell of the autoencoder.
    """
    lattice = (2 * (tracks.height // factor), 2 * (tracks.width // factor))
    return make_crops(tracks, lattice, len(tracks.objects[0].boxes), first_box=config.first_box)


def _loss_weights(tracks: Tracks) -> Float[Tensor, " o"] | None:
    weights = [track.weight for track in tracks.objects]
    return torch.tensor(weights, dtype=torch.float32) if any(weight != 1 for weight in weights) else None


def _boxes(
    track: Track, scale: tuple[float, float], lattice: tuple[int, int], frames: int
) -> tuple[tuple[Span, Span], ...]:
    if len(track.boxes) != frames:
        raise InputError(
            f"object {track.name!r} has {len(track.boxes)} boxes for {frames} frames; resample the tracks first"
        )
    for frame, (x0, y0, x1, y1) in enumerate(track.boxes, 1):
        if max((x1 - x0) * scale[1] / lattice[1], (y1 - y0) * scale[0] / lattice[0]) > LARGEST_BOX:
            raise InputError(
                f"object {track.name!r}, frame {frame}: box {track.boxes[frame - 1]} is more than {LARGEST_BOX} times "
                "as large as the frame; make it smaller"
            )
    return tuple((_span(y0, y1, scale[0]), _span(x0, x1, scale[1])) for x0, y0, x1, y1 in track.boxes)


def _check_seen(track: Track, spans: tuple[Span, Span], scale: tuple[float, float]) -> None:
    if any(low == high for low, high in spans):
        raise InputError(
            f"object {track.name!r} is barely visible in frame 1: of its box {track.boxes[0]} less than one cell of "
            f"{1 / scale[1]:g} x {1 / scale[0]:g} pixels is inside; move the box further in"
        )


def _given(track: Track, spans: tuple[Span, Span], lattice: tuple[int, int], shape: torch.Size) -> Bool[Tensor, "y x"]:
    """Return the user's mask of frame 1's crop, padded to `shape`; all False without a mask.

    A cell is set if the mask covers at least half of it; if there is no such cell, those with the largest coverage are.
    """
    out = torch.zeros(shape, dtype=torch.bool)
    if track.mask is None:
        return out
    covered = F.interpolate(torch.tensor(track.mask)[None, None].float(), size=lattice, mode="area")[0, 0]
    (top, bottom), (left, right) = spans
    covered = covered[top:bottom, left:right]
    most = covered.max().item()
    if most == 0:
        raise InputError(f"object {track.name!r}: its mask is empty inside frame 1's box {track.boxes[0]}")
    out[: bottom - top, : right - left] = covered >= min(most, 0.5)
    return out


def _span(start: float, stop: float, scale: float) -> Span:
    first = math.floor(start * scale)
    return first, max(first + 1, math.floor(stop * scale))


def _first_cells(
    boxes: tuple[tuple[tuple[Span, Span], ...], ...],
    first: tuple[tuple[Span, Span], ...],
    axis: int,
    size: int,
) -> tuple[Int[Tensor, "o f n"], Bool[Tensor, "o f n"]]:
    """Return, along one axis, each crop cell's nearest cell of frame 1's crop, and which cells are not padding."""
    spans = [[box[axis] for box in object_boxes] for object_boxes in boxes]
    length = max(max(high - low for low, high in (visible(s, size) for s in track)) for track in spans)
    cells = torch.full((len(boxes), len(boxes[0]), max(length, 1)), -1)
    valid = torch.zeros(cells.shape, dtype=torch.bool)
    for o, track in enumerate(spans):
        origin = first[o][axis]
        seen_from, seen_to = visible(origin, size)
        for f, span in enumerate(track):
            low, high = visible(span, size)
            # the centre of cell i of this box is (i + 1/2) * old / new of frame 1's, in whole numbers
            old, new = origin[1] - origin[0], span[1] - span[0]
            cell = (2 * (torch.arange(low, high) - span[0]) + 1) * old // (2 * new) + origin[0]
            inside = (cell >= seen_from) & (cell < seen_to)
            cells[o, f, : high - low] = torch.where(inside, cell - seen_from, -1)
            valid[o, f, : high - low] = True
    return cells, valid


def _cells(
    points: list[list[tuple[float, float]]], scale: tuple[float, float], lattice: tuple[int, int]
) -> tuple[Int[Tensor, "o k"], Int[Tensor, "o k"]]:
    """Convert points in pixels to rows and columns clamped to the lattice; padded by repeating the first point."""
    count = max(len(p) for p in points)
    points = [p + p[:1] * (count - len(p)) for p in points]
    rows = [[min(max(math.floor(y * scale[0]), 0), lattice[0] - 1) for _, y in p] for p in points]
    cols = [[min(max(math.floor(x * scale[1]), 0), lattice[1] - 1) for x, _ in p] for p in points]
    return torch.tensor(rows), torch.tensor(cols)
