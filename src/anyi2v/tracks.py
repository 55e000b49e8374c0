"""Where each object shall be in each frame: boxes over time, and the points that are followed on them.

Boxes are (x0, y0, x1, y1) and points (x, y) in pixels of a frame of `width` x `height`, x to the right and
y downwards; boxes are half-open. Messages count objects, frames and points from 1. Free of torch.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anyi2v.errors import InputError
from anyi2v.files import atomic, read_json

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Track:
    """One object's boxes, one per frame of the track; that may be another number than the video's.

    Any nested sequences of numbers are accepted and stored as tuples of floats.
    """

    name: str
    boxes: tuple[Box, ...]
    points: tuple[Point, ...] = ()
    """Salient points on the object in frame 1; none stands for the first box's centre."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", _rows(self.boxes, 4, f"object {self.name!r}: boxes"))
        object.__setattr__(self, "points", _rows(self.points, 2, f"object {self.name!r}: points"))

    @property
    def salient_points(self) -> tuple[Point, ...]:
        """The points, or the first box's centre where none are given."""
        return self.points or (centre(self.boxes[0]),)

    def resample(self, frames: int) -> "Track":
        """The same motion in `frames` frames, linear in time; the end points are kept exactly.

        A single box stands still. One frame keeps the first box.
        """
        boxes = np.array(self.boxes, dtype=np.float64)
        times = np.arange(frames) * (len(boxes) - 1) / max(frames - 1, 1)
        before = np.floor(times).astype(int)
        after = np.minimum(before + 1, len(boxes) - 1)
        moved = boxes[before] + (times - before)[:, None] * (boxes[after] - boxes[before])
        return replace(self, boxes=tuple(map(tuple, moved.tolist())))

    def scaled(self, x: float, y: float) -> "Track":
        """All coordinates times `x` and `y`."""
        boxes = tuple((x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in self.boxes)
        return replace(self, boxes=boxes, points=tuple((px * x, py * y) for px, py in self.points))


@dataclass(frozen=True)
class Tracks:
    """All objects of a job, in one frame of reference. No objects: features are injected, nothing is moved.

    Raises InputError, naming object and frame, for a box that is not finite, has no area, or lies wholly
    outside the frame in frame 1; for a point outside its first box; for an object without boxes; for a name
    that is empty or used twice.
    """

    width: int
    height: int
    objects: tuple[Track, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        for name in ("width", "height"):
            if getattr(self, name) < 1:
                raise InputError(f"tracks: {name} is {getattr(self, name)}; it must be at least 1 pixel")
        names: dict[str, int] = {}
        for number, track in enumerate(self.objects, 1):
            where = f"object {number} ({track.name!r})"
            if not track.name:
                raise InputError(f"object {number} has an empty name; give it one")
            if track.name in names:
                raise InputError(f"{where} has the name of object {names[track.name]}; names must differ")
            names[track.name] = number
            self._check(track, where)

    def _check(self, track: Track, where: str) -> None:
        if not track.boxes:
            raise InputError(f"{where} has no boxes; give at least one (one box: the object stands still)")
        for frame, box in enumerate(track.boxes, 1):
            _check_box(box, f"{where}, frame {frame}")
        x0, y0, x1, y1 = track.boxes[0]
        if x1 <= 0 or y1 <= 0 or x0 >= self.width or y0 >= self.height:
            raise InputError(
                f"{where}, frame 1: box {_text(track.boxes[0])} lies outside the frame of {self.width} x "
                f"{self.height} pixels; the object must be seen in frame 1"
            )
        for number, (x, y) in enumerate(track.points, 1):
            if not (x0 <= x <= x1 and y0 <= y <= y1):
                raise InputError(
                    f"{where}, point {number}: {_text((x, y))} is outside of the first box {_text(track.boxes[0])}"
                )

    def resample(self, frames: int) -> "Tracks":
        """The same motion in `frames` frames; see `Track.resample`. Raises InputError below one frame."""
        if frames < 1:
            raise InputError(f"frames is {frames}; it must be at least 1")
        return replace(self, objects=tuple(track.resample(frames) for track in self.objects))

    def scaled(self, width: int, height: int) -> "Tracks":
        """The same tracks in a frame of `width` x `height` pixels."""
        x, y = width / self.width, height / self.height
        return Tracks(width, height, tuple(track.scaled(x, y) for track in self.objects))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `tracks_from_dict` is the inverse, exact to the last bit."""
        objects = [
            {
                "name": track.name,
                "boxes": list(map(list, track.boxes)),
                "points": list(map(list, track.points)),
            }
            for track in self.objects
        ]
        return {"width": self.width, "height": self.height, "objects": objects}


def load_tracks(path: str | Path) -> Tracks:
    """Reads tracks from JSON: our own (`save_tracks`), a run.json of ours, or AnyI2V's trajectory format.

    Raises InputError naming file, object and key.
    """
    data = read_json(path)
    try:
        return tracks_from_dict(data.get("tracks", data))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_tracks(path: str | Path, tracks: Tracks) -> None:
    """Writes our JSON: {"width", "height", "objects": [{"name", "boxes", "points"}]}; whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(tracks.to_dict(), indent=1) + "\n", encoding="utf-8")


def tracks_from_dict(data: Any) -> Tracks:
    """Tracks from the plain data of our JSON or of AnyI2V's, told apart by its keys; raises InputError."""
    data = _typed(data, dict, "tracks")
    if "bounding_box" in data:
        return _from_anyi2v(data)
    objects = []
    for number, item in enumerate(_get(data, "objects", list, "tracks"), 1):
        where = f"object {number}"
        item = _typed(item, dict, where)
        name = _get(item, "name", str, where)
        where = f"{where} ({name!r})"
        boxes = _rows(_get(item, "boxes", list, where), 4, f"{where}: boxes")
        points = _rows(item.get("points", []), 2, f"{where}: points")
        objects.append(Track(name, boxes, points))
    return Tracks(_get(data, "width", int, "tracks"), _get(data, "height", int, "tracks"), tuple(objects))


ANYI2V_SIZE = 512
"""AnyI2V's drawing frame is always 512 x 512 pixels."""


def _from_anyi2v(data: dict[str, Any]) -> Tracks:
    """AnyI2V's trajectory JSON (FudanCVL/AnyI2V): four parallel lists over objects.

    `bounding_box`: first boxes; `target_box`: boxes of which only the final size counts; `center_traj`: paths
    of which only differences to their first point count, one per frame of the track; `query_point`: salient
    points; as there, one on the border of its box or outside is replaced by the box's centre.
    """
    lists = {key: _get(data, key, list, "tracks") for key in ("bounding_box", "target_box", "center_traj")}
    count = len(lists["bounding_box"])
    lists["query_point"] = _typed(data.get("query_point", [[]] * count), list, "query_point")
    for key, values in lists.items():
        if len(values) != count:
            raise InputError(f"{key} has {len(values)} entries, but bounding_box has {count}; one per object")
    objects = []
    for i in range(count):
        where = f"object {i + 1}"
        first, target = (_rows([lists[k][i]], 4, f"{where}: {k}")[0] for k in ("bounding_box", "target_box"))
        path = _rows(lists["center_traj"][i], 2, f"{where}: center_traj")
        if not path:
            raise InputError(f"{where}: center_traj is empty; give at least one point")
        points = _rows(lists["query_point"][i], 2, f"{where}: query_point")
        x0, y0, x1, y1 = first
        inside = tuple((x, y) if x0 < x < x1 and y0 < y < y1 else centre(first) for x, y in points)
        objects.append(Track(where, _moved(first, target, path), inside))
    return Tracks(ANYI2V_SIZE, ANYI2V_SIZE, tuple(objects))


def _moved(first: Box, target: Box, path: tuple[Point, ...]) -> tuple[Box, ...]:
    """`first` moved along `path`, growing evenly to `target`'s size about its moving centre.

    In float32 and in the published code's order of operations: boxes are cut to whole cells later, and there
    79.99999 and 80 are different cells.
    """
    box, end, centres = (np.array(value, dtype=np.float32) for value in (first, target, path))
    shift = centres - centres[0]
    step = ((end[2:] - end[:2]) - (box[2:] - box[:2])) / np.float32(max(len(path) - 1, 1))
    grow = step * np.arange(len(path), dtype=np.float32)[:, None] / np.float32(2)
    moved = np.concatenate([box[:2] + shift - grow, box[2:] + shift + grow], axis=1)
    return tuple(map(tuple, moved.astype(np.float64).tolist()))


def centre(box: Box) -> Point:
    """The middle of a box."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _check_box(box: Box, where: str) -> None:
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        raise InputError(f"{where}: box {_text(box)} is not finite; give four numbers x0, y0, x1, y1")
    for size, low, high, what in ((x1 - x0, "x0", "x1", "width"), (y1 - y0, "y0", "y1", "height")):
        if size <= 0:
            amount = "zero" if size == 0 else "negative"
            raise InputError(f"{where}: box {_text(box)} has {amount} {what}; {high} must exceed {low}")


def _text(numbers: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in numbers) + ")"


def _get(data: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in data:
        raise InputError(f"{where}: key {key!r} is missing; it has {', '.join(map(repr, data)) or 'no keys'}")
    return _typed(data[key], kind, f"{where}: {key}")


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where} must be {_KINDS[kind]}, not {value!r:.60}")
    return value


_KINDS = {dict: "an object {...}", list: "a list", str: "a text", int: "a whole number"}


def _rows(values: Any, size: int, where: str) -> tuple[Any, ...]:
    """`values` as a tuple of tuples of `size` floats."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{where} must be a list of lists of {size} numbers, not {values!r:.60}")
    rows = []
    for number, row in enumerate(values, 1):
        try:
            numbers = tuple(float(value) for value in row if not isinstance(value, str | bool))
            ok = len(numbers) == size == len(row)
        except (TypeError, ValueError, OverflowError):
            ok, numbers = False, ()
        if not ok:
            raise InputError(f"{where}: entry {number} is {row!r:.60}; it must be {size} numbers")
        rows.append(numbers)
    return tuple(rows)
