"""Whether the first boxes show anything that could be an object, judged by the image alone. Free of torch."""

import math

import numpy as np
from jaxtyping import Bool, Float

from anyi2v.tracks.checks import text
from anyi2v.tracks.model import Box, Track, Tracks

CELLS = 64
"""Cells along the longer side of the image at which it is judged."""
LARGEST = 0.5
"""Share of the frame: a larger box is meant for the background, or leaves too little of it to compare with."""
CONTRAST = 0.42
"""Share of the image's range of colours: a box that spans less has nothing of its own in it. Of the synthetic world's
condition images, all boxes with their object span 0.48 and more, and all boxes without any 0.36 and less
(tests/test_tracks_contents.py)."""
RARITY = 0.6
"""Share of the cells outside of the box whose colours a cell must differ from to be no background: what is inside of a
large, flat object has no contrast either, but its colour is not the background's."""
INSIDE, OUTSIDE = 256, 1024
"""Cells that are compared with each other, at most."""


def doubtful(image: Float[np.ndarray, "3 h w"], tracks: Tracks) -> list[str]:
    """One sentence for each thing about tracks and their condition image that is allowed, but hardly meant.

    `image` and `tracks` are as for `empty_boxes`.
    """
    lines = empty_boxes(image, tracks)
    if tracks.objects and not any(track.weight for track in tracks.objects):
        lines.append("all objects have weight 0, so none is followed")
    return lines


def empty_boxes(image: Float[np.ndarray, "3 h w"], tracks: Tracks) -> list[str]:
    """One sentence for each object whose first box shows nothing that stands out from the rest of the image.

    Only objects that move are judged: a box that stays may hold the background still. An object with a mask is left
    out, because the user said which pixels it is, and so is a box of half of the frame or more.

    Args:
        image: the condition image, in [0, 1].
        tracks: in any frame of reference over the image.
    """
    judged = [track for track in tracks.objects if track.mask is None and len(set(track.boxes)) > 1]
    cells, size = _cells(image) if judged else (np.empty((0, 0, 0)), 1)
    found = []
    for track in judged:
        x, y = image.shape[2] / tracks.width / size, image.shape[1] / tracks.height / size
        inside = _inside(track.boxes[0], (x, y), cells.shape[:2])
        if inside.mean() < LARGEST and _is_empty(cells[inside], cells[~inside]):
            found.append(_sentence(track))
    return found


def _sentence(track: Track) -> str:
    return (
        f"object {track.name!r}: its first box {text(track.boxes[0])} shows nothing that stands out from the rest of "
        "the image; draw it around the object as the image shows it"
    )


def _cells(image: Float[np.ndarray, "3 h w"]) -> tuple[Float[np.ndarray, "y x 6"], int]:
    """The brightest and the darkest value of each channel in each cell, in which thin lines survive; and its side."""
    height, width = image.shape[1:]
    side = math.ceil(max(height, width) / CELLS)
    # repeated at the border, which changes neither the largest nor the smallest value of a cell
    padded = np.pad(image, ((0, 0), (0, -height % side), (0, -width % side)), mode="edge")
    blocks = padded.reshape(3, padded.shape[1] // side, side, -1, side)
    return np.moveaxis(np.concatenate([blocks.max((2, 4)), blocks.min((2, 4))]), 0, -1), side


def _inside(box: Box, scale: tuple[float, float], shape: tuple[int, ...]) -> Bool[np.ndarray, "y x"]:
    """The cells that the box touches."""
    inside = np.zeros(shape, dtype=bool)
    left, right = np.clip([math.floor(box[0] * scale[0]), math.ceil(box[2] * scale[0])], 0, shape[1])
    top, bottom = np.clip([math.floor(box[1] * scale[1]), math.ceil(box[3] * scale[1])], 0, shape[0])
    inside[top:bottom, left:right] = True
    return inside


def _is_empty(inside: Float[np.ndarray, "n 6"], outside: Float[np.ndarray, "m 6"]) -> bool:
    """Whether the cells inside neither differ among themselves nor, together, from most of the cells outside."""
    if not len(inside) or not len(outside):
        return False
    span = _span(np.concatenate([inside, outside]), 0.3)
    if _span(inside, 1) > CONTRAST * span:
        return False
    inside, outside = (x[:: math.ceil(len(x) / most)] for x, most in ((inside, INSIDE), (outside, OUTSIDE)))
    alike = np.abs(inside[:, None] - outside[None]).max(-1) <= 0.25 * span
    return bool(np.quantile(1 - alike.mean(1), 0.95) < RARITY)


def _span(cells: Float[np.ndarray, "n 6"], cut: float) -> float:
    """The largest range of a channel without its `cut` highest and lowest per cent."""
    return float((np.percentile(cells[:, :3], 100 - cut, axis=0) - np.percentile(cells[:, 3:], cut, axis=0)).max())
