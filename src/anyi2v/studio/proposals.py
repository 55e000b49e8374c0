"""Object proposals for a click: the connected part of the segment at that point."""

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.tracks.masks import bounding_box, cropped, encode, middle

MASK_SIDE = 512
"""Maximum length of a mask's longer side in a document, in pixels."""


def connected(labels: Int[np.ndarray, "h w"], x: int, y: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels with the label of pixel (x, y) that are 4-connected to it."""
    same = labels == labels[y, x]
    found = np.zeros_like(same)
    found[y, x] = True
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= same
        if (grown == found).all():
            return found
        found = grown


def proposal(labels: Int[Tensor, "h w"], x: float, y: float) -> dict[str, object]:
    """Return the object at a point as a static entry of a track document: box, mask and salient point.

    Args:
        labels: segment number of each pixel.
        x: horizontal position, in pixels of the image.
        y: vertical position, in pixels of the image.

    Raises:
        InputError: the point is outside the image.
    """
    height, width = labels.shape
    if not (0 <= x < width and 0 <= y < height):
        raise InputError("the point lies outside of the image; click an object on it")
    mask = connected(labels.numpy(), int(x), int(y))
    box = bounding_box(mask, width, height)
    return {
        "name": "object",
        "keyframes": [{"frame": 1, "box": list(box)}],
        "points": [list(middle(mask, width, height))],
        "mask": encode(mask),
    }


def mask_entry(mask: Bool[np.ndarray, "h w"], width: int, height: int) -> dict[str, object]:
    """Encode a mask from a file as run lengths of at most `MASK_SIDE` pixels a side, with its box in the frame."""
    longest = max(mask.shape)
    if longest > MASK_SIDE:
        rows, cols = (max(1, round(side * MASK_SIDE / longest)) for side in mask.shape)
        mask = cropped(mask, (0, 0, 1, 1), cols, rows)
        if not mask.any():
            raise InputError("nothing is left of the mask when it is reduced; paint the object larger")
    return {"mask": encode(mask), "box": list(bounding_box(mask, width, height))}
