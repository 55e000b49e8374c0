"""Formats of image annotation tools: LabelMe's shapes and COCO's boxes."""

from typing import Any

import numpy as np

from anyi2v.errors import InputError
from anyi2v.tracks.checks import check_counts, check_size, frame_number, get, row, rows, shown, typed
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.masks import polygon
from anyi2v.tracks.model import Box, Point, Track, Tracks
from anyi2v.tracks.texts import from_keys

LABELME = "LabelMe JSON"
COCO = "COCO JSON"

_PATHS = ("linestrip", "line")
_SHAPES = {"rectangle": 2, "circle": 2, "polygon": 3, "point": 1, "linestrip": 1, "line": 1}
"""Minimum number of points per shape type."""
_IDS = ("track_id", "instance_id")
"""Keys that identify the same object across the images of a video."""


def matches_labelme(content: Any) -> bool:
    """Match a JSON object with the key `shapes`."""
    return isinstance(content, dict) and "shapes" in content


def read_labelme(content: dict[str, Any], hints: Hints) -> Tracks:
    """Read `shapes`: list of {`label`, `points`, `shape_type`} in pixels of an image of `imageWidth` x `imageHeight`.

    A rectangle or circle is a static object, a polygon one with a mask, a point one with the default box. A line strip
    is the path of the object with the same label and `group_id` if there is one, else of a default box.
    """
    size = _labelme_size(content, hints)
    shapes = [_shape(item, i) for i, item in enumerate(get(content, "shapes", list, LABELME), 1)]
    check_counts(len(shapes), max((len(points) for _, _, points in shapes), default=1))
    paths: dict[Any, list[tuple[Point, ...]]] = {}
    for key, kind, points in shapes:
        if kind in _PATHS:
            paths.setdefault(key, []).append(points)
    objects: list[Track] = []
    for key, kind, points in shapes:
        if kind in _PATHS:
            continue
        path = paths[key].pop(0) if paths.get(key) else ()
        first = hints.box_at(points[0], size) if kind == "point" else _around(kind, points)
        mask = polygon([points], *size) if kind == "polygon" else None
        objects.append(Track(_unused(key[0], objects), moved(first, path), mask=mask))
    for key, rest in paths.items():
        for path in rest:
            objects.append(Track(_unused(key[0], objects), moved(hints.box_at(path[0], size), path)))
    return Tracks(*size, tuple(objects))


def _labelme_size(content: dict[str, Any], hints: Hints) -> tuple[int, int]:
    sides = [content.get(key) for key in ("imageWidth", "imageHeight")]
    if None in sides:
        return hints.needed_size(LABELME)
    width, height = (typed(side, int, f"{LABELME}: imageWidth, imageHeight") for side in sides)
    check_size(width, height)
    return width, height


def _shape(item: Any, number: int) -> tuple[tuple[str, Any], str, tuple[Point, ...]]:
    where = f"{LABELME}, shape {number}"
    item = typed(item, dict, where)
    label, kind = get(item, "label", str, where), item.get("shape_type", "polygon")
    where = f"{where} ({label!r:.60})"
    if not isinstance(kind, str) or kind not in _SHAPES:
        raise InputError(f"{where}: shape_type is {shown(kind)}; it must be one of {', '.join(_SHAPES)}")
    points = rows(get(item, "points", list, where), 2, f"{where}: points")
    if len(points) < _SHAPES[kind]:
        raise InputError(f"{where}: a {kind} has {len(points)} points; it needs {_SHAPES[kind]} or more")
    group = item.get("group_id")
    return (label, group if isinstance(group, int | str) else None), kind, points


def _around(kind: str, points: tuple[Point, ...]) -> Box:
    xs, ys = zip(*points, strict=True)
    if kind == "circle":  # centre, and a point on the circle
        radius = float(np.hypot(xs[1] - xs[0], ys[1] - ys[0]))
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    return min(xs), min(ys), max(xs), max(ys)


def _unused(name: str, objects: list[Track]) -> str:
    """Return the name, with a number appended if it is taken."""
    taken, number = {track.name for track in objects}, 1
    while (found := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return found


def matches_coco(content: Any) -> bool:
    """Match a JSON object with the key `annotations`."""
    return isinstance(content, dict) and "annotations" in content


def read_coco(content: dict[str, Any], hints: Hints) -> Tracks:
    """Read `annotations`: list of {`bbox`: [left, top, width, height], `image_id`}, and `images` with their sizes.

    With annotations of one image, each is a static object. Several images are the frames of a video, ordered by
    `frame_id` or else by position in the list, and annotations with the same `track_id` (or `instance_id`) form an
    object. Segmentations are ignored.
    """
    images = {}
    for i, item in enumerate(typed(content.get("images", []), list, f"{COCO}: images"), 1):
        item = typed(item, dict, f"{COCO}, image {i}")
        images[_key(item, "id", f"{COCO}, image {i}")] = item
    boxes = [
        _annotation(item, f"{COCO}, annotation {i}")
        for i, item in enumerate(get(content, "annotations", list, COCO), 1)
    ]
    check_counts(len({track for _, track, _, _ in boxes}), 1)
    names = _categories(content)
    used = {image for image, _, _, _ in boxes}
    size = _coco_size([images[key] for key in images if key in used], hints)
    if len(used) > 1:
        return _coco_video(images, boxes, names, size)
    objects: list[Track] = []
    for _, track, category, box in boxes:
        objects.append(Track(_unused(names.get(category) or f"object {track or len(objects) + 1}", objects), (box,)))
    return Tracks(*size, tuple(objects))


def _coco_video(
    images: dict[Any, dict[str, Any]],
    boxes: list[tuple[Any, Any, Any, Box]],
    names: dict[Any, str],
    size: tuple[int, int],
) -> Tracks:
    frames = {
        key: frame_number(item["frame_id"], f"{COCO}, image {i}: frame_id", 0) if "frame_id" in item else i
        for i, (key, item) in enumerate(images.items(), 1)
    }
    keys: dict[str, dict[int, Box]] = {}
    for i, (image, track, category, box) in enumerate(boxes, 1):
        where = f"{COCO}, annotation {i}"
        if track is None:
            raise InputError(
                f"{where} has no track_id, but there are annotations of {len(set(b[0] for b in boxes))} images, so "
                "objects cannot be identified; keep those of one image, or add track_id"
            )
        if image not in frames:
            raise InputError(f"{where}: image_id {shown(image)} is not among the file's images")
        found = keys.setdefault(f"{names.get(category, 'object')} {track}", {})
        if frames[image] in found:
            raise InputError(f"{where}: object {track} already has a box in frame {frames[image]}")
        found[frames[image]] = box
    return from_keys(COCO, keys, size)


def _annotation(item: Any, where: str) -> tuple[Any, Any, Any, Box]:
    item = typed(item, dict, where)
    x, y, w, h = row(get(item, "bbox", list, where), 4, f"{where}: bbox")
    track = next((_key(item, key, where) for key in _IDS if item.get(key) is not None), None)
    category = _key(item, "category_id", where) if item.get("category_id") is not None else None
    return _key(item, "image_id", where), track, category, (x, y, x + w, y + h)


def _key(item: dict[str, Any], key: str, where: str) -> int | str:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{where}: {key} is {shown(value)}; it must be a whole number or a text")
    return value


def _categories(content: dict[str, Any]) -> dict[Any, str]:
    items = typed(content.get("categories", []), list, f"{COCO}: categories")
    found = {}
    for i, item in enumerate(items, 1):
        item = typed(item, dict, f"{COCO}, category {i}")
        found[_key(item, "id", f"{COCO}, category {i}")] = get(item, "name", str, f"{COCO}, category {i}")
    return found


def _coco_size(images: list[dict[str, Any]], hints: Hints) -> tuple[int, int]:
    sizes = {(item.get("width"), item.get("height")) for item in images if "width" in item and "height" in item}
    if not sizes:
        return hints.needed_size(COCO)
    if len(sizes) > 1:
        raise InputError(f"{COCO}: its images have {len(sizes)} different sizes; keep those of one video")
    width, height = (typed(side, int, f"{COCO}: width, height") for side in sizes.pop())
    check_size(width, height)
    return width, height
