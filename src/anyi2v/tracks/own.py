"""Reading and writing of our JSON format, documented in docs/tracks.md and defined by schema.json."""

import json
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.tracks.camera import camera_tracks
from anyi2v.tracks.checks import (
    MAX_FRAMES,
    check_counts,
    check_size,
    frame_number,
    get,
    known_keys,
    number,
    row,
    rows,
    shown,
    typed,
)
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.keyframes import EASES, INTERPOLATIONS, Ease, Interpolation, along, between
from anyi2v.tracks.masks import bounding_box, check_total, decode
from anyi2v.tracks.model import Box, Point, Track, Tracks

TITLE = "anyi2v track file"
SCHEMA = Path(__file__).with_name("schema.json")
"""JSON Schema of the format (draft 2020-12)."""

_TOP = ("width", "height", "frames", "objects", "camera", "comment", "$schema")
_COMMON = ("name", "points", "mask", "weight", "comment")
_MOTIONS = {
    "boxes": ("ease",),
    "keyframes": ("interpolation",),
    "path": ("box", "size", "ease", "speed"),
    "point": ("box", "size"),
}
"""Alternative keys that define an object's motion, with the further keys of each. Without any, it is static."""

FINE = 241
"""Number of boxes of an eased or constant-speed movement if the file does not give the number of frames. Between these
steps, corners of the path are cut."""


def matches(content: Any) -> bool:
    """Match our JSON or a run.json."""
    if not isinstance(content, dict):
        return False
    return isinstance(content.get("tracks"), dict) or "objects" in content or "camera" in content


def read(content: Any, hints: Hints) -> Tracks:
    """Read tracks from plain data; raises InputError naming object and key."""
    data = content["tracks"] if isinstance(content.get("tracks"), dict) else content
    known_keys(data, _TOP, "tracks")
    size = (get(data, "width", int, "tracks"), get(data, "height", int, "tracks"))
    check_size(*size)
    if "objects" not in data and "camera" not in data:
        raise InputError(f"tracks: key 'objects' is missing; it has {', '.join(map(repr, data))}")
    items = typed(data.get("objects", []), list, "tracks: objects")
    count = _frames(data, items)
    check_counts(len(items), count)
    objects: list[Track] = []
    for i, item in enumerate(items, 1):
        objects.append(_object(item, f"object {i}", size, count, hints))
        check_total(track.mask for track in objects)
    if "camera" in data:
        objects += camera_tracks(data["camera"], *size, objects)
    return Tracks(*size, tuple(objects))


def is_record(content: Any) -> bool:
    """Return whether this is a run.json, whose run may have had no objects on purpose."""
    return isinstance(content, dict) and isinstance(content.get("tracks"), dict)


def _frames(data: dict[str, Any], items: list[Any]) -> int:
    """Return the number of frames of key-framed objects: the key `frames`, or the last key frame of all objects."""
    last = 1
    for item in items:
        keys = item.get("keyframes") if isinstance(item, dict) else None
        frames = [key.get("frame") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
        # other values are reported later, with the object's name
        last = max([last, *(n for n in frames if type(n) is int and n <= MAX_FRAMES)])
    return frame_number(data["frames"], "tracks: frames", last) if "frames" in data else last


def _object(item: Any, where: str, size: tuple[int, int], count: int, hints: Hints) -> Track:
    item = typed(item, dict, where)
    name = get(item, "name", str, where)
    where = f"{where} ({name!r:.60})"
    motions = [key for key in _MOTIONS if key in item]
    if len(motions) > 1:
        raise InputError(f"{where} has both {motions[0]!r} and {motions[1]!r}; give one of them")
    known_keys(item, (*_COMMON, *_MOTIONS, *(_MOTIONS[motions[0]] if motions else ("box",))), where)
    points = rows(item.get("points", []), 2, f"{where}: points")
    mask = None if item.get("mask") is None else _mask(item["mask"], f"{where}: mask", hints)
    if motions == ["boxes"]:
        boxes = rows(get(item, "boxes", list, where), 4, f"{where}: boxes")
        if (ease := _ease(item, where)) and boxes:
            boxes = _eased(boxes, FINE if count == 1 else count, ease)
    elif motions == ["keyframes"]:
        boxes = _keyed(item, where, count)
    else:
        path = _timed(_path(item, where), item, where, FINE if count == 1 else count)
        boxes = moved(_first_box(item, where, path, size, mask, hints), path)
    return Track(name, boxes, points, mask, number(item.get("weight", 1), f"{where}: weight"))


def _ease(item: dict[str, Any], where: str) -> Ease | None:
    ease = item.get("ease")
    if ease is not None and ease not in EASES:
        raise InputError(f"{where}: ease is {shown(ease)}; it must be {', '.join(map(repr, EASES))}")
    return ease


def _timed(path: tuple[Point, ...], item: dict[str, Any], where: str, count: int) -> tuple[Point, ...]:
    """Return the path, or `count` points along it if the file sets an easing or a speed."""
    ease, speed = _ease(item, where), item.get("speed")
    if speed not in (None, "constant"):
        raise InputError(f"{where}: speed is {shown(speed)}; it can only be 'constant'")
    if len(path) < 2 or (ease is None and speed is None):
        return path
    return along(path, count, constant=speed is not None, ease=ease)


def _eased(boxes: tuple[Box, ...], count: int, ease: Ease) -> tuple[Box, ...]:
    """Return boxes at `count` eased times; the first and last box are kept."""
    low, high = (along([(box[k], box[k + 1]) for box in boxes], count, ease=ease) for k in (0, 2))
    return tuple((*a, *b) for a, b in zip(low, high, strict=True))


def _mask(value: Any, where: str, hints: Hints) -> Any:
    if not isinstance(value, str):
        return decode(value, where)
    try:
        return hints.mask(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _keyed(item: dict[str, Any], where: str, count: int) -> tuple[Box, ...]:
    kind: Interpolation = item.get("interpolation", "linear")
    if kind not in INTERPOLATIONS:
        names = ", ".join(map(repr, INTERPOLATIONS))
        raise InputError(f"{where}: interpolation is {shown(kind)}; it must be one of {names}")
    frames, boxes = [], []
    for i, key in enumerate(get(item, "keyframes", list, where), 1):
        there = f"{where}, key frame {i}"
        key = typed(key, dict, there)
        known_keys(key, ("frame", "box"), there)
        frames.append(frame_number(get(key, "frame", int, there), f"{there}: frame", 1))
        boxes.append(row(get(key, "box", list, there), 4, f"{there}: box"))
        if i > 1 and frames[-1] <= frames[-2]:
            raise InputError(f"{there}: frame {frames[-1]} comes after frame {frames[-2]}; frames must increase")
    if not frames:
        raise InputError(f"{where}: keyframes is empty; give at least one (one: a static object)")
    return between(frames, boxes, count, kind)


def _path(item: dict[str, Any], where: str) -> tuple[Point, ...]:
    if "point" in item:
        x, y = row(get(item, "point", list, where), 2, f"{where}: point")
        return ((x, y),)
    return rows(typed(item.get("path", []), list, f"{where}: path"), 2, f"{where}: path")


def _first_box(
    item: dict[str, Any], where: str, path: tuple[Point, ...], size: tuple[int, int], mask: Any, hints: Hints
) -> Box:
    """Return the given box, or one around the mask, or one of given or default size around the path's first point."""
    if "box" in item and "size" in item:
        raise InputError(f"{where} has both 'box' and 'size'; give one of them")
    if "box" in item:
        x0, y0, x1, y1 = row(item["box"], 4, f"{where}: box")
        return x0, y0, x1, y1
    if mask is not None and mask.any() and "size" not in item:
        return bounding_box(mask, *size)
    if not path:
        raise InputError(f"{where} has no position; give boxes, keyframes, path, point, box or mask")
    if "size" in item:
        w, h = row(item["size"], 2, f"{where}: size")
        if not (0 < w < float("inf") and 0 < h < float("inf")):
            raise InputError(f"{where}: size is {shown(item['size'])}; it must be a width and a height above 0")
        hints = Hints(box_size=(w, h))
    return hints.box_at(path[0], size)


def save_tracks(path: str | Path, tracks: Tracks) -> None:
    """Write our JSON atomically, with masks as run lengths."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(tracks.to_dict(), indent=1) + "\n", encoding="utf-8")
