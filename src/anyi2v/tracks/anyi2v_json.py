"""AnyI2V's trajectory JSON (FudanCVL/AnyI2V), in and out. Free of torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.tracks.checks import get, rows, typed
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.model import Box, Point, Track, Tracks, centre

TITLE = "AnyI2V JSON"
ANYI2V_SIZE = 512
"""AnyI2V's drawing frame is always 512 x 512 pixels."""
ANYI2V_FRAMES = 16
"""AnyI2V needs as many points of a path as its video has frames."""


def matches(content: Any) -> bool:
    """Told by its key `bounding_box`."""
    return isinstance(content, dict) and "bounding_box" in content


def read(content: Any, hints: Hints) -> Tracks:
    """Four parallel lists over objects.

    `bounding_box`: first boxes; `target_box`: boxes of which only the final size counts; `center_traj`: paths
    of which only differences to their first point count, one per frame of the track; `query_point`: salient
    points; as there, one on the border of its box or outside is replaced by the box's centre. An object with an
    empty path stands still.
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
    """The point, if it lies inside of the first box, else its centre; also inside of that box in float32."""
    if not all(low < value < high for value, low, high in zip(point, first[:2], first[2:], strict=True)):
        point = centre(first)
    x, y = (min(max(v, low), high) for v, low, high in zip(point, rounded[:2], rounded[2:], strict=True))
    return x, y


def _moved(first: Box, target: Box, path: tuple[Point, ...]) -> tuple[Box, ...]:
    """`first` moved along `path`, growing evenly to `target`'s size about its moving centre.

    In float32 and in the published code's order of operations: boxes are cut to whole cells later, and there
    79.99999 and 80 are different cells.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by `Tracks`
        box, end, centres = (np.array(value, dtype=np.float32) for value in (first, target, path))
        shift = centres - centres[0]
        step = ((end[2:] - end[:2]) - (box[2:] - box[:2])) / np.float32(max(len(path) - 1, 1))
        grow = step * np.arange(len(path), dtype=np.float32)[:, None] / np.float32(2)
        moved = np.concatenate([box[:2] + shift - grow, box[2:] + shift + grow], axis=1)
    return tuple(map(tuple, moved.astype(np.float64).tolist()))


def to_anyi2v(tracks: Tracks) -> dict[str, Any]:
    """Plain data for AnyI2V, which `read` takes back.

    First boxes, centres in every frame and last sizes are kept (to AnyI2V's float32); `lost_in_anyi2v` tells what
    is not. An object without points gets its first box's centre, for AnyI2V needs one.
    """
    objects = tracks.scaled(ANYI2V_SIZE, ANYI2V_SIZE).objects
    return {
        "bounding_box": [list(track.boxes[0]) for track in objects],
        "target_box": [list(track.boxes[-1]) for track in objects],
        "center_traj": [[list(centre(box)) for box in track.boxes] for track in objects],
        "query_point": [[list(point) for point in track.salient_points] for track in objects],
    }


def lost_in_anyi2v(tracks: Tracks) -> list[str]:
    """What AnyI2V's format, or AnyI2V itself, cannot take of these tracks; one sentence each."""
    lost = []
    for track in tracks.scaled(ANYI2V_SIZE, ANYI2V_SIZE).objects:
        frames = len(track.boxes)
        sizes = np.array([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in track.boxes])
        even = sizes[0] + np.arange(frames)[:, None] / max(frames - 1, 1) * (sizes[-1] - sizes[0])
        off = np.abs(sizes - even).max()
        if off > 1:
            lost.append(f"object {track.name!r}: sizes change evenly there; here they differ by up to {off:.0f} pixels")
        if track.mask is not None:
            lost.append(f"object {track.name!r}: its mask is lost; AnyI2V finds its own")
        if track.weight != 1:
            lost.append(f"object {track.name!r}: its weight of {track.weight:g} is lost; all weigh the same there")
        if frames < ANYI2V_FRAMES:
            lost.append(f"object {track.name!r}: {frames} frames, but AnyI2V makes {ANYI2V_FRAMES}; see --frames")
    return lost


def save_anyi2v(path: str | Path, tracks: Tracks) -> None:
    """Writes AnyI2V's JSON; whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(to_anyi2v(tracks), indent=1) + "\n", encoding="utf-8")
