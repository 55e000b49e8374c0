"""Our JSON; docs/tracks.md explains it, schema.json defines it. Free of torch."""

import json
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.tracks.camera import camera_tracks
from anyi2v.tracks.checks import MAX_FRAMES, check_size, frame_number, get, known_keys, row, rows, shown, typed
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.keyframes import Interpolation, between
from anyi2v.tracks.masks import bounding_box, decode, read_mask
from anyi2v.tracks.model import Box, Point, Track, Tracks

TITLE = "anyi2v JSON"
SCHEMA = Path(__file__).with_name("schema.json")
"""JSON Schema of the format (draft 2020-12)."""

_TOP = ("width", "height", "frames", "objects", "camera", "comment", "$schema")
_COMMON = ("name", "points", "mask", "comment")
_MOTIONS = {
    "boxes": (),
    "keyframes": ("interpolation",),
    "path": ("box", "size"),
    "point": ("box", "size"),
}
"""Ways to say how an object moves, and the keys that go with each. Without any it stands still."""


def matches(content: Any) -> bool:
    """Whether this is our JSON, or a run.json of ours."""
    if not isinstance(content, dict):
        return False
    return isinstance(content.get("tracks"), dict) or "objects" in content or "camera" in content


def read(content: Any, hints: Hints) -> Tracks:
    """The tracks in plain data; raises InputError naming object and key."""
    data = content["tracks"] if isinstance(content.get("tracks"), dict) else content
    known_keys(data, _TOP, "tracks")
    size = (get(data, "width", int, "tracks"), get(data, "height", int, "tracks"))
    check_size(*size)
    if "objects" not in data and "camera" not in data:
        raise InputError(f"tracks: key 'objects' is missing; it has {', '.join(map(repr, data))}")
    items = typed(data.get("objects", []), list, "tracks: objects")
    count = _frames(data, items)
    objects = tuple(_object(item, f"object {i}", size, count, hints) for i, item in enumerate(items, 1))
    if "camera" in data:
        objects += camera_tracks(data["camera"], *size, objects)
    return Tracks(*size, objects)


def _frames(data: dict[str, Any], items: list[Any]) -> int:
    """Frames of the key-framed objects: as told, or the last key of all objects, so that all keep step."""
    last = 1
    for item in items:
        keys = item.get("keyframes") if isinstance(item, dict) else None
        frames = [key.get("frame") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
        # anything else is reported with its object's name later
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
    elif motions == ["keyframes"]:
        boxes = _keyed(item, where, count)
    else:
        path = _path(item, where)
        boxes = moved(_first_box(item, where, path, size, mask, hints), path)
    return Track(name, boxes, points, mask)


def _mask(value: Any, where: str, hints: Hints) -> Any:
    if not isinstance(value, str):
        return decode(value, where)
    try:
        return read_mask(hints.folder / value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _keyed(item: dict[str, Any], where: str, count: int) -> tuple[Box, ...]:
    kind: Interpolation = item.get("interpolation", "linear")
    if kind not in ("linear", "smooth"):
        raise InputError(f"{where}: interpolation is {shown(kind)}; it must be 'linear' or 'smooth'")
    frames, boxes = [], []
    for i, key in enumerate(get(item, "keyframes", list, where), 1):
        there = f"{where}, key frame {i}"
        key = typed(key, dict, there)
        known_keys(key, ("frame", "box"), there)
        frames.append(frame_number(get(key, "frame", int, there), f"{there}: frame", 1))
        boxes.append(row(get(key, "box", list, there), 4, f"{there}: box"))
        if i > 1 and frames[-1] <= frames[-2]:
            raise InputError(f"{there}: frame {frames[-1]} comes after frame {frames[-2]}; frames must grow")
    if not frames:
        raise InputError(f"{where}: keyframes is empty; give at least one (one: the object stands still)")
    return between(frames, boxes, count, kind)


def _path(item: dict[str, Any], where: str) -> tuple[Point, ...]:
    if "point" in item:
        x, y = row(get(item, "point", list, where), 2, f"{where}: point")
        return ((x, y),)
    return rows(typed(item.get("path", []), list, f"{where}: path"), 2, f"{where}: path")


def _first_box(
    item: dict[str, Any], where: str, path: tuple[Point, ...], size: tuple[int, int], mask: Any, hints: Hints
) -> Box:
    """As told, or around the mask, or of a given or usual size around the path's first point."""
    if "box" in item and "size" in item:
        raise InputError(f"{where} has both 'box' and 'size'; give one of them")
    if "box" in item:
        x0, y0, x1, y1 = row(item["box"], 4, f"{where}: box")
        return x0, y0, x1, y1
    if mask is not None and mask.any() and "size" not in item:
        return bounding_box(mask, *size)
    if not path:
        raise InputError(f"{where} has no place; give boxes, keyframes, path, point, box or mask")
    if "size" in item:
        w, h = row(item["size"], 2, f"{where}: size")
        if not (0 < w < float("inf") and 0 < h < float("inf")):
            raise InputError(f"{where}: size is {shown(item['size'])}; it must be a width and a height above 0")
        hints = Hints(box_size=(w, h))
    return hints.box_at(path[0], size)


def save_tracks(path: str | Path, tracks: Tracks) -> None:
    """Writes our JSON, masks included as run lengths; whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(tracks.to_dict(), indent=1) + "\n", encoding="utf-8")
