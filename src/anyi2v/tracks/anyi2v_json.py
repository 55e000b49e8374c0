"""Reading and writing of AnyI2V's trajectory JSON (FudanCVL/AnyI2V)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.tracks.checks import get, rows, typed
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.model import Box, Point, Track, Tracks, centre

TITLE = "JSON of the published AnyI2V code"
ANYI2V_SIZE = 512
"""Width and height of AnyI2V's drawing canvas in pixels."""
ANYI2V_FRAMES = 16
"""Number of frames of AnyI2V's videos; a path needs as many points."""


def matches(content: Any) -> bool:
    """Match a JSON object with the key `bounding_box`."""
    return isinstance(content, dict) and "bounding_box" in content


def read(content: Any, hints: Hints) -> Tracks:
    """Read four parallel lists over objects.

    `bounding_box`: first boxes. `target_box`: boxes of which only the size is used, as the final size. `center_traj`:
        paths with one point per frame, of which only differences to the first point are used. `query_point`: salient
        points; as in AnyI2V, a point on the border of its box or outside is replaced by the box's centre. An object
        with an empty path is static.
    """
    lists = {key: get(content, key, list, "tracks") for key in ("bounding_box", "target_box", "center_traj")}
    count = len(lists["bounding_box"])
    lists["query_point"] = typed(content.get("query_point", [[]] * count), list, "query_point")
    for key, values in lists.items():
        if len(values) != count:
            raise InputError(f"{key} has {len(values)} entries, but bounding_box has {count}; one per object")
    objects = []
    for i in range(count):
        where = f"object {i + 1}"
        first, target = (rows([lists[k][i]], 4, f"{where}: {k}")[0] for k in ("bounding_box", "target_box"))
        path = rows(lists["center_traj"][i], 2, f"{where}: center_traj")
        points = rows(lists["query_point"][i], 2, f"{where}: query_point")
        boxes = _moved(first, target, path or (centre(first),))
        objects.append(Track(where, boxes, tuple(_within(point, first, boxes[0]) for point in points)))
    return Tracks(ANYI2V_SIZE, ANYI2V_SIZE, tuple(objects))


def _within(point: Point, first: Box, rounded: Box) -> Point:
    """Return the point, or the first box's centre if it is not inside; clamped to that box in float32."""
    if not all(low < value < high for value, low, high in zip(point, first[:2], first[2:], strict=True)):
        point = centre(first)
    x, y = (min(max(v, low), high) for v, low, high in zip(point, rounded[:2], rounded[2:], strict=True))
    return x, y


def _moved(first: Box, target: Box, path: tuple[Point, ...]) -> tuple[Box, ...]:
    """Move `first` along `path` while its size changes linearly to that of `target` about the moving centre.

    Computed in float32 and in the published code's order of operations, because boxes are later rounded down to whole
    cells, where 79.99999 and 80 differ.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # `Tracks` reports values that are not finite
        box, end, centres = (np.array(value, dtype=np.float32) for value in (first, target, path))
        shift = centres - centres[0]
        step = ((end[2:] - end[:2]) - (box[2:] - box[:2])) / np.float32(max(len(path) - 1, 1))
        grow = step * np.arange(len(path), dtype=np.float32)[:, None] / np.float32(2)
        moved = np.concatenate([box[:2] + shift - grow, box[2:] + shift + grow], axis=1)
    return tuple(map(tuple, moved.astype(np.float64).tolist()))


def to_anyi2v(tracks: Tracks) -> dict[str, Any]:
    """Convert tracks to AnyI2V's plain data, which `read` can read.

    First boxes, centres in every frame and last sizes are kept (in float32); `lost_in_anyi2v` lists what is not. An
    object without points gets its first box's centre, because AnyI2V needs a point.
    """
    objects = tracks.scaled(ANYI2V_SIZE, ANYI2V_SIZE).objects
    return {
        "bounding_box": [list(track.boxes[0]) for track in objects],
        "target_box": [list(track.boxes[-1]) for track in objects],
        "center_traj": [[list(centre(box)) for box in track.boxes] for track in objects],
        "query_point": [[list(point) for point in track.salient_points] for track in objects],
    }


def lost_in_anyi2v(tracks: Tracks) -> list[str]:
    """List what AnyI2V's format, or AnyI2V itself, cannot represent of these tracks, one sentence each."""
    lost = []
    for track in tracks.scaled(ANYI2V_SIZE, ANYI2V_SIZE).objects:
        frames = len(track.boxes)
        sizes = np.array([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in track.boxes])
        even = sizes[0] + np.arange(frames)[:, None] / max(frames - 1, 1) * (sizes[-1] - sizes[0])
        off = np.abs(sizes - even).max()
        if off > 1:
            lost.append(f"object {track.name!r}: sizes change linearly in AnyI2V; these differ by up to {off:.0f} px")
        if track.mask is not None:
            lost.append(f"object {track.name!r}: its mask is lost; AnyI2V finds its own")
        if track.weight != 1:
            lost.append(f"object {track.name!r}: its weight of {track.weight:g} is lost; AnyI2V has no weights")
        if frames < ANYI2V_FRAMES:
            lost.append(f"object {track.name!r}: {frames} frames, but AnyI2V generates {ANYI2V_FRAMES}; see --frames")
    return lost


def save_anyi2v(path: str | Path, tracks: Tracks) -> None:
    """Write AnyI2V's JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(to_anyi2v(tracks), indent=1) + "\n", encoding="utf-8")
