"""Camera movements expressed as boxes, large tiles of the picture that move and grow."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from anyi2v.errors import InputError
from anyi2v.tracks.checks import known_keys, number, row, shown, typed
from anyi2v.tracks.masks import bounding_box
from anyi2v.tracks.model import Box, Point, Track

GRID = 64
"""Number of mask cells along each side of the frame."""
TILES = (("top-left", 0, 0), ("top-right", 0, 1), ("bottom-left", 1, 0), ("bottom-right", 1, 1))
"""Name, row and column of the quarters; if one leaves the frame, the others still control the motion."""
MAX_ZOOM = 10


def camera_tracks(data: Any, width: int, height: int, objects: Sequence[Track]) -> tuple[Track, ...]:
    """Return objects camera/top-left etc., each a quarter of the frame that moves with the picture.

    Areas in the first boxes of other objects are excluded by the masks, because these move on their own. A quarter
    without any remaining area is dropped. Salient points are spread over the remaining area.

    Args:
        data: {"pan": [x, y], "zoom": z, "strength": s}, all optional. The camera moves by `pan` pixels from the first
            to the last frame, so the picture moves in the opposite direction; at the end it is enlarged by `zoom` about
            its centre. `strength` scales the movement (0: static camera, 1: full movement, or beyond).
        width: width of the frame in pixels.
        height: height of the frame in pixels.
        objects: the other objects.

    Raises InputError naming the key.
    """
    data = typed(data, dict, "camera")
    known_keys(data, ("pan", "zoom", "strength", "comment"), "camera")
    strength = _finite(number(data.get("strength", 1), "camera: strength"), "strength")
    pan = tuple(_finite(v, "pan") * strength for v in row(data.get("pan", (0, 0)), 2, "camera: pan"))
    zoom = number(data.get("zoom", 1), "camera: zoom")
    if not (1 / MAX_ZOOM <= zoom <= MAX_ZOOM and abs(strength) <= MAX_ZOOM):
        raise InputError(
            f"camera: zoom {zoom:g} at strength {strength:g} is not possible; zoom must be {1 / MAX_ZOOM:g} to "
            f"{MAX_ZOOM}, and strength -{MAX_ZOOM} to {MAX_ZOOM}"
        )
    zoom **= strength
    if not 1 / MAX_ZOOM <= zoom <= MAX_ZOOM:
        raise InputError(f"camera: the zoom with its strength is {zoom:g}; it must be {1 / MAX_ZOOM:g} to {MAX_ZOOM}")
    free = _free(objects, width, height)
    found = [_tile(name, free, r, c, (width, height), (pan[0], pan[1]), zoom) for name, r, c in TILES]
    tiles = tuple(track for track in found if track)
    if not tiles:
        raise InputError("camera: the objects' first boxes cover the whole frame, so no background is left to move")
    return tiles


def _finite(value: float, key: str) -> float:
    if not math.isfinite(value):
        raise InputError(f"camera: {key} is {shown(value)}; it must be finite")
    return value


def _free(objects: Sequence[Track], width: int, height: int) -> np.ndarray:
    """Return the cells of the frame not touched by any object's first box."""
    free = np.ones((GRID, GRID), dtype=bool)
    for track in objects:
        if track.boxes and all(map(math.isfinite, track.boxes[0])):  # `Tracks` reports the others
            x0, y0, x1, y1 = track.boxes[0]
            left, right = np.clip([math.floor(x0 / width * GRID), math.ceil(x1 / width * GRID)], 0, GRID)
            top, bottom = np.clip([math.floor(y0 / height * GRID), math.ceil(y1 / height * GRID)], 0, GRID)
            free[top:bottom, left:right] = False
    return free


def _tile(
    name: str, free: np.ndarray, row: int, col: int, size: tuple[int, int], pan: Point, zoom: float
) -> Track | None:
    half = GRID // 2
    place = (slice(row * half, (row + 1) * half), slice(col * half, (col + 1) * half))
    mask = np.zeros_like(free)
    mask[place] = free[place]
    if not mask.any():
        return None
    whole = np.zeros_like(free)
    whole[place] = True
    first = bounding_box(whole, *size)
    return Track(f"camera/{name}", (first, _seen(first, size, pan, zoom)), _points(mask, first), mask)


def _seen(box: Box, size: tuple[int, int], pan: Point, zoom: float) -> Box:
    """Return where a box of the first frame is in the last one."""
    x, y = ([size[k] / 2 + (v - size[k] / 2) * zoom - pan[k] for v in box[k::2]] for k in (0, 1))
    return x[0], y[0], x[1], y[1]


def _points(mask: np.ndarray, box: Box) -> tuple[Point, ...]:
    """Return up to nine points, evenly spread over the free part of the tile."""
    x0, y0, x1, y1 = box
    rows, cols = np.nonzero(mask)
    top, left = GRID // 2 * (int(rows[0]) // (GRID // 2)), GRID // 2 * (int(cols[0]) // (GRID // 2))
    points = []
    for i, j in product(range(3), repeat=2):
        u, v = (j + 0.5) / 3, (i + 0.5) / 3
        if mask[top + int(v * GRID / 2), left + int(u * GRID / 2)]:
            points.append((x0 + u * (x1 - x0), y0 + v * (y1 - y0)))
    return tuple(points)
