"""Formats of paths without boxes: DragAnything's, ImageConductor's. Free of torch."""

from typing import Any

from anyi2v.errors import InputError
from anyi2v.tracks.checks import get, rows, shown, typed
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.masks import bounding_box, read_mask
from anyi2v.tracks.model import Track, Tracks

DRAG_ANYTHING = "DragAnything demo.json"
VIPSEG = "DragAnything trajectory JSON"
IMAGE_CONDUCTOR = "ImageConductor JSON"
IMAGE_CONDUCTOR_SIZE = (384, 256)
"""ImageConductor's drawing frame (width, height)."""


def matches_drag_anything(content: Any) -> bool:
    """Objects by number, each with a mask's name or a trajectory."""
    values = list(content.values()) if isinstance(content, dict) else []
    return any(isinstance(value, dict) and ("mask_name" in value or "trajectory" in value) for value in values)


def read_drag_anything(content: dict[str, Any], hints: Hints) -> Tracks:
    """{id: {`mask_name`: image beside the file, `trajectory`: [[x, y] per frame]}}, in pixels of the masks.

    (showlab/DragAnything.) Boxes are the masks' bounding boxes, moved as the trajectory moves.
    """
    size, objects = hints.size, []
    for name, item in content.items():
        where = f"object {name!r:.60}"
        item = typed(item, dict, where)
        path = rows(get(item, "trajectory", list, where), 2, f"{where}: trajectory")
        file = get(item, "mask_name", str, where)
        try:
            mask = read_mask(hints.folder / file)
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
    return Tracks(*(size or hints.needed_size(DRAG_ANYTHING)), tuple(objects))


def matches_vipseg(content: Any) -> bool:
    """Objects by number, each a list."""
    return isinstance(content, dict) and bool(content) and all(isinstance(v, list) for v in content.values())


def read_vipseg(content: dict[str, Any], hints: Hints) -> Tracks:
    """{id: [[x, y] per frame]} in pixels of the original images (DragAnything's data of VIPSeg)."""
    return _paths(list(content.items()), hints.needed_size(VIPSEG), hints)


def matches_image_conductor(content: Any) -> bool:
    """A list of lists."""
    return isinstance(content, list) and all(isinstance(path, list) for path in content)


def read_image_conductor(content: list[Any], hints: Hints) -> Tracks:
    """[[[x, y], ...], ...] in pixels of a frame of 384 x 256; one point: hold still (liyaowei-stu/ImageConductor)."""
    return _paths([(f"object {i}", path) for i, path in enumerate(content, 1)], IMAGE_CONDUCTOR_SIZE, hints)


def _paths(items: list[tuple[str, Any]], size: tuple[int, int], hints: Hints) -> Tracks:
    """Objects of the usual or the given box size; an empty path is no object."""
    objects = []
    for name, values in items:
        path = rows(values, 2, f"path of {shown(name)}")
        if path:
            objects.append(Track(name, moved(hints.box_at(path[0], size), path)))
    return Tracks(*size, tuple(objects))
