"""Which pixels of frame 1 are the object: bool arrays `[h w]` over the whole frame, of any resolution.

A mask has no frame of reference of its own: its first row lies at the upper edge of the frame and its last
at the lower one, however many rows there are. Free of torch.
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
"""Of a mask in a JSON file or an image: 8192 x 8192."""
MAX_TOTAL = 4 * MAX_PIXELS
"""Of all masks of a file, 256 MB: a few bytes of run lengths may stand for any number of pixels."""

Area = tuple[float, float, float, float]
"""(x0, y0, x1, y1), half-open."""


def read_mask(path: str | Path) -> Bool[np.ndarray, "h w"]:
    """A mask from an image file.

    With a transparent part: what is at least half opaque. In a palette: every index but 0. Else: what is at
    least half as bright as the brightest pixel, in any colour; so a mask survives JPEG, and 0/1 is 0/255.

    Raises InputError naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"mask {path} has {size} pixels; at most {MAX_PIXELS} in all are read; reduce it")
            mask = _pixels(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"mask {path} is not an image that can be read; use PNG") from error
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read mask {path}: {getattr(error, 'strerror', None) or error}") from error
    if not mask.any():
        raise InputError(f"mask {path} is empty: no pixel of it is set; paint the object white on black")
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
    """Raises InputError for more pixels of masks than a file may have."""
    total = sum(mask.size for mask in masks if mask is not None)
    if total > MAX_TOTAL:
        raise InputError(
            f"the masks of the objects have {total} pixels; at most {MAX_TOTAL} in all are read; reduce them"
        )


def polygon(outlines: Sequence[Sequence[tuple[float, float]]], width: int, height: int) -> Bool[np.ndarray, "h w"]:
    """What lies inside of closed outlines, whose corners are (x, y), as a mask of `height` x `width` pixels.

    Raises InputError for a frame that is too large for a mask, or coordinates that are not finite.
    """
    if width * height > MAX_PIXELS:
        raise InputError(f"a mask of {width} x {height} pixels is too large; at most {MAX_PIXELS} in all")
    if not np.isfinite([value for outline in outlines for corner in outline for value in corner]).all():
        raise InputError("the outline of a mask has a corner that is not finite")
    picture = Image.new("1", (width, height))
    limits = [(-4 * side, 5 * side) for side in (width, height)]  # Pillow's whole numbers end somewhere
    for outline in outlines:
        corners = [tuple(min(max(v, low), high) for v, (low, high) in zip(c, limits, strict=True)) for c in outline]
        ImageDraw.Draw(picture).polygon(corners, fill=1)
    return np.array(picture)


def bounding_box(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> Area:
    """The smallest box around a mask that is not empty, in pixels of a frame of `width` x `height`."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = width / mask.shape[1], height / mask.shape[0]
    return float(cols[0] * x), float(rows[0] * y), float((cols[-1] + 1) * x), float((rows[-1] + 1) * y)


def inside(mask: Bool[np.ndarray, "h w"], box: Area, width: int, height: int) -> Bool[np.ndarray, "h w"]:
    """The mask without the pixels that lie wholly outside `box`, which is in a frame of `width` x `height`."""
    out = np.zeros_like(mask)
    x, y = mask.shape[1] / width, mask.shape[0] / height
    # in floats first: a box may be too far away for an index
    left, right = np.clip([np.floor(box[0] * x), np.ceil(box[2] * x)], 0, mask.shape[1]).astype(int)
    top, bottom = np.clip([np.floor(box[1] * y), np.ceil(box[3] * y)], 0, mask.shape[0]).astype(int)
    out[top:bottom, left:right] = mask[top:bottom, left:right]
    return out


def middle(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> tuple[float, float]:
    """The centre of the mask's pixel nearest to its centroid, which itself may lie in a hole."""
    rows, cols = np.nonzero(mask)
    nearest = int(((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2).argmin())
    x, y = width / mask.shape[1], height / mask.shape[0]
    return float((cols[nearest] + 0.5) * x), float((rows[nearest] + 0.5) * y)


def cropped(mask: Bool[np.ndarray, "h w"], part: Area, width: int, height: int) -> Bool[np.ndarray, "h2 w2"]:
    """The part of the frame in `part` (fractions of the frame), at `width` x `height` pixels, nearest neighbour.

    What lies outside of the frame is not set.
    """
    x0, y0, x1, y1 = part
    axes = ((y0, y1, height, mask.shape[0]), (x0, x1, width, mask.shape[1]))
    index = [np.floor((a + (np.arange(n) + 0.5) * ((b - a) / n)) * size).astype(int) for a, b, n, size in axes]
    rows, cols = ((i >= 0) & (i < n) for i, n in zip(index, mask.shape, strict=True))
    taken = mask[np.ix_(*(i.clip(0, n - 1) for i, n in zip(index, mask.shape, strict=True)))]
    return taken & rows[:, None] & cols[None]


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, list[int]]:
    """Run lengths as in COCO's annotations, not compressed: columns from the left, unset pixels first."""
    flat = mask.flatten(order="F")
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def decode(data: Any, where: str) -> Bool[np.ndarray, "h w"]:
    """The inverse of `encode`; raises InputError naming what is wrong."""
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
