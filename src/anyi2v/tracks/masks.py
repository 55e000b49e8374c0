"""Object masks of frame 1, bool arrays `[h w]` over the whole frame in any resolution.

A mask has no frame of reference of its own: its first row is at the upper edge of the frame and its last at the lower
one, regardless of the number of rows.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, UnidentifiedImageError

from anyi2v.errors import InputError
from anyi2v.tracks.checks import get, known_keys, shown, typed

MAX_PIXELS = 2**26
"""Maximum number of pixels of a mask in a JSON file or an image, 8192 x 8192."""
MAX_TOTAL = 4 * MAX_PIXELS
"""Maximum number of pixels of all masks of a file, 256 MB; a few bytes of run lengths may encode any number."""

Area = tuple[float, float, float, float]
"""(x0, y0, x1, y1), half-open."""


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """Read a mask from an image file.

    With transparency, pixels that are at least half opaque are set. In a palette image, all indices except 0.
    Otherwise, pixels at least half as bright as the brightest one, in any channel, so that masks survive JPEG, and 0/1
    equals 0/255.

    Raises InputError naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"mask {path} has {size} pixels; at most {MAX_PIXELS} in all are allowed; reduce it")
            mask = _pixels(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"mask {path} is not a readable image; use PNG") from error
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read mask {path}: {getattr(error, 'strerror', None) or error}") from error
    if not mask.any():
        raise InputError(f"mask {path} is empty; paint the object white on black")
    return mask


def _pixels(image: Image.Image) -> Bool[np.ndarray, "h w"]:
    if image.mode == "P" and not image.has_transparency_data:
        return np.asarray(image) > 0
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 128:
            return alpha >= 128
    grey = image.mode in ("L", "1", "F") or image.mode.startswith("I")
    values = np.asarray(image if grey else image.convert("RGB")).astype(np.float32)
    bright = values.reshape(*values.shape[:2], -1).max(-1)
    return (bright > 0) & (2 * bright >= bright.max())


def check_total(masks: Iterable[Bool[np.ndarray, "_ _"] | None]) -> None:
    """Raise InputError if the masks of a file have too many pixels."""
    total = sum(mask.size for mask in masks if mask is not None)
    if total > MAX_TOTAL:
        raise InputError(
            f"the masks of the objects have {total} pixels; at most {MAX_TOTAL} in all are allowed; reduce them"
        )


def polygon(outlines: Sequence[Sequence[tuple[float, float]]], width: int, height: int) -> Bool[np.ndarray, "h w"]:
    """Rasterise closed outlines with corners (x, y) to a mask of `height` x `width` pixels.

    Raises InputError if the mask is too large, or coordinates are not finite.
    """
    if width * height > MAX_PIXELS:
        raise InputError(f"a mask of {width} x {height} pixels is too large; at most {MAX_PIXELS} in all")
    if not np.isfinite([value for outline in outlines for corner in outline for value in corner]).all():
        raise InputError("the outline of a mask has a corner that is not finite")
    picture = Image.new("1", (width, height))
    limits = [(-4 * side, 5 * side) for side in (width, height)]  # Pillow's integers overflow
    for outline in outlines:
        corners = [tuple(min(max(v, low), high) for v, (low, high) in zip(c, limits, strict=True)) for c in outline]
        ImageDraw.Draw(picture).polygon(corners, fill=1)
    return np.array(picture)


def bounding_box(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> Area:
    """Return the bounding box of a non-empty mask, in pixels of a frame of `width` x `height`."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = width / mask.shape[1], height / mask.shape[0]
    return float(cols[0] * x), float(rows[0] * y), float((cols[-1] + 1) * x), float((rows[-1] + 1) * y)


def inside(mask: Bool[np.ndarray, "h w"], box: Area, width: int, height: int) -> Bool[np.ndarray, "h w"]:
    """Clear the mask's pixels fully outside of `box`, which is in a frame of `width` x `height`."""
    out = np.zeros_like(mask)
    x, y = mask.shape[1] / width, mask.shape[0] / height
    # clipped as floats, because a far box may overflow an index
    left, right = np.clip([np.floor(box[0] * x), np.ceil(box[2] * x)], 0, mask.shape[1]).astype(int)
    top, bottom = np.clip([np.floor(box[1] * y), np.ceil(box[3] * y)], 0, mask.shape[0]).astype(int)
    out[top:bottom, left:right] = mask[top:bottom, left:right]
    return out


def middle(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> tuple[float, float]:
    """Return the centre of the mask's pixel nearest to its centroid, which may itself be in a hole."""
    rows, cols = np.nonzero(mask)
    nearest = int(((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2).argmin())
    x, y = width / mask.shape[1], height / mask.shape[0]
    return float((cols[nearest] + 0.5) * x), float((rows[nearest] + 0.5) * y)


def cropped(mask: Bool[np.ndarray, "h w"], part: Area, width: int, height: int) -> Bool[np.ndarray, "h2 w2"]:
    """Resample the region `part` (in fractions of the frame) to `width` x `height` pixels by nearest neighbour.

    Pixels outside of the frame are False.
    """
    x0, y0, x1, y1 = part
    axes = ((y0, y1, height, mask.shape[0]), (x0, x1, width, mask.shape[1]))
    index = [np.floor((a + (np.arange(n) + 0.5) * ((b - a) / n)) * size).astype(int) for a, b, n, size in axes]
    rows, cols = ((i >= 0) & (i < n) for i, n in zip(index, mask.shape, strict=True))
    taken = mask[np.ix_(*(i.clip(0, n - 1) for i, n in zip(index, mask.shape, strict=True)))]
    return taken & rows[:, None] & cols[None]


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, list[int]]:
    """Encode as COCO's uncompressed run lengths: columns from the left, starting with unset pixels."""
    flat = mask.flatten(order="F")
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode(data: Any, where: str) -> Bool[np.ndarray, "h w"]:
    """Decode run lengths from `encode`; raises InputError naming what is wrong."""
    data = typed(data, dict, where)
    known_keys(data, ("size", "counts"), where)
    size, counts = get(data, "size", list, where), get(data, "counts", list, where)
    if len(size) != 2 or any(type(n) is not int or not 1 <= n <= MAX_PIXELS for n in size):
        raise InputError(f"{where}: size is {shown(size)}; it must be [height, width] of the mask in pixels")
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise InputError(f"{where}: size is {shown(size)}; a mask may have {MAX_PIXELS} pixels")
    if any(type(n) is not int or n < 0 for n in counts) or sum(counts) != pixels:
        raise InputError(f"{where}: counts must be whole numbers from 0 that add up to height x width = {pixels}")
    set_or_not = np.arange(len(counts)) % 2 == 1
    return np.repeat(set_or_not, counts).reshape(size, order="F")
