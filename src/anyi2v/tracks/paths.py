"""Formats of paths without boxes: DragAnything, ImageConductor and spline editors."""

import warnings
from typing import Any

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks.checks import check_counts, get, number, rows, shown, typed
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.masks import bounding_box, check_total
from anyi2v.tracks.model import Track, Tracks

DRAG_ANYTHING = "DragAnything demo.json"
VIPSEG = "DragAnything trajectory JSON"
IMAGE_CONDUCTOR = "ImageConductor JSON"
SPLINE = "spline editor JSON"
IMAGE_CONDUCTOR_SIZE = (384, 256)
"""ImageConductor's drawing canvas (width, height)."""


def matches_drag_anything(content: Any) -> bool:
    """Match objects by number, each with a mask's name or a trajectory."""
    values = list(content.values()) if isinstance(content, dict) else []
    return any(isinstance(value, dict) and ("mask_name" in value or "trajectory" in value) for value in values)


def read_drag_anything(content: dict[str, Any], hints: Hints) -> Tracks:
    """Read {id: {`mask_name`: image next to the file, `trajectory`: [[x, y] per frame]}}, in pixels of the masks.

    The format of showlab/DragAnything. Boxes are the masks' bounding boxes, moved along the trajectory.
    """
    size, objects = hints.size, list[Track]()
    for name, item in content.items():
        where = f"object {name!r:.60}"
        item = typed(item, dict, where)
        path = rows(get(item, "trajectory", list, where), 2, f"{where}: trajectory")
        file = get(item, "mask_name", str, where)
        try:
            mask = hints.mask(file)
        except InputError as error:
            raise InputError(f"{where}: mask_name: {error}") from error
        here = (mask.shape[1], mask.shape[0])
        size = size or here
        if here != size:
            raise InputError(
                f"{where}: mask {file} has {here[0]} x {here[1]} pixels, but the image {size[0]} x {size[1]}; masks "
                "must have the image's size"
            )
        objects.append(Track(name, moved(bounding_box(mask, *size), path), mask=mask))
        check_total(track.mask for track in objects)
    return Tracks(*(size or hints.needed_size(DRAG_ANYTHING)), tuple(objects))


def matches_vipseg(content: Any) -> bool:
    """Match objects by number, each a list."""
    return isinstance(content, dict) and bool(content) and all(isinstance(v, list) for v in content.values())


def read_vipseg(content: dict[str, Any], hints: Hints) -> Tracks:
    """Read {id: [[x, y] per frame]} in pixels of the original images (DragAnything's data for VIPSeg)."""
    return _paths(list(content.items()), hints.needed_size(VIPSEG), hints)


def matches_image_conductor(content: Any) -> bool:
    """Match a list of lists."""
    return isinstance(content, list) and all(isinstance(path, list) for path in content)


def read_image_conductor(content: list[Any], hints: Hints) -> Tracks:
    """Read [[[x, y], ...], ...] in pixels of a 384 x 256 canvas; one point: static (liyaowei-stu/ImageConductor)."""
    return _paths([(f"object {i}", path) for i, path in enumerate(content, 1)], IMAGE_CONDUCTOR_SIZE, hints)


def matches_spline(content: Any) -> bool:
    """Match a list of points {"x": ..., "y": ...}, or a list of such lists."""
    if not isinstance(content, list) or not content:
        return False
    first = next((path[0] for path in content if isinstance(path, list) and path), content[0])
    return isinstance(first, dict) and {"x", "y"} <= first.keys()


def read_spline(content: list[Any], hints: Hints) -> Tracks:
    """Read [{"x": x, "y": y}, ...], one point per frame, or a list of such paths, in pixels of the editor's canvas.

    The format of ComfyUI's spline editors, for example kijai/ComfyUI-KJNodes. Other keys of a point are ignored.
    """
    paths = content if any(isinstance(path, list) for path in content) else [content]
    items = []
    for i, path in enumerate(paths, 1):
        where = f"{SPLINE}, path {i}"
        points = enumerate(typed(path, list, where), 1)
        items.append((f"object {i}", [_corner(point, f"{where}, point {n}") for n, point in points]))
    return _paths(items, hints.needed_size(SPLINE), hints)


def _corner(point: Any, where: str) -> tuple[float, float]:
    point = typed(point, dict, where)
    for key in ("x", "y"):
        if key not in point:
            raise InputError(f"{where} has no {key!r}; it must have 'x' and 'y'")
    return number(point["x"], f"{where}: x"), number(point["y"], f"{where}: y")


def _paths(items: list[tuple[str, Any]], size: tuple[int, int], hints: Hints) -> Tracks:
    """Return objects with boxes of the given or default size; empty paths are left out with a warning."""
    check_counts(len(items), max((len(values) for _, values in items if isinstance(values, list)), default=0))
    objects = []
    for name, values in items:
        path = rows(values, 2, f"path of {shown(name)}")
        if path:
            objects.append(Track(name, moved(hints.box_at(path[0], size), path)))
        else:
            warnings.warn(f"{shown(name)} has an empty path and was left out", AnyI2VWarning, stacklevel=2)
    return Tracks(*size, tuple(objects))
