"""Check whether the first boxes contain anything that could be an object, judged by the image alone."""

import math

import numpy as np
from jaxtyping import Bool, Float

from anyi2v.tracks.checks import text
from anyi2v.tracks.model import Box, Track, Tracks

CELLS = 64
"""Number of cells along the image's longer side, at which it is analysed."""
LARGEST = 0.5
"""Maximum fraction of the frame; a larger box is meant for the background, or leaves too little to compare with."""
CONTRAST = 0.42
"""Fraction of the image's colour range; a box that spans less has no content of its own. In the synthetic world's
condition images, all boxes with their object span at least 0.48, and all boxes without an object at most 0.36
(tests/test_tracks_contents.py)."""
RARITY = 0.6
"""Fraction of the cells outside of the box that a cell must differ from in colour to count as foreground: the inside of
a large, flat object has no contrast either, but its colour differs from the background."""
INSIDE, OUTSIDE = 256, 1024
"""Maximum numbers of cells that are compared with each other."""


def doubtful(image: Float[np.ndarray, "3 h w"], tracks: Tracks) -> list[str]:
    """Return warnings, one sentence each, about tracks that are allowed but probably not intended.

    `image` and `tracks` are as for `empty_boxes`.
    """
    lines = empty_boxes(image, tracks)
    if tracks.objects and not any(track.weight for track in tracks.objects):
        lines.append("all objects have weight 0, so none is followed")
    return lines


def empty_boxes(image: Float[np.ndarray, "3 h w"], tracks: Tracks) -> list[str]:
    """Return a sentence for each object whose first box has nothing that stands out from the rest of the image.

    Only moving objects are checked, because a static box may hold the background still. Objects with a mask are
    skipped, because the user specified their pixels, and so are boxes of at least half of the frame.

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
        "the image; draw it around the object in the image"
    )


def _cells(image: Float[np.ndarray, "3 h w"]) -> tuple[Float[np.ndarray, "y x 6"], int]:
    """Return the maximum and minimum per channel in each cell, which keep thin lines, and the cell's side in pixels."""
    height, width = image.shape[1:]
    side = math.ceil(max(height, width) / CELLS)
    # edge padding changes neither the maximum nor the minimum of a cell
    padded = np.pad(image, ((0, 0), (0, -height % side), (0, -width % side)), mode="edge")
    blocks = padded.reshape(3, padded.shape[1] // side, side, -1, side)
    return np.moveaxis(np.concatenate([blocks.max((2, 4)), blocks.min((2, 4))]), 0, -1), side


def _inside(box: Box, scale: tuple[float, float], shape: tuple[int, ...]) -> Bool[np.ndarray, "y x"]:
    """Return the cells that the box touches."""
    inside = np.zeros(shape, dtype=bool)
    left, right = np.clip([math.floor(box[0] * scale[0]), math.ceil(box[2] * scale[0])], 0, shape[1])
    top, bottom = np.clip([math.floor(box[1] * scale[1]), math.ceil(box[3] * scale[1])], 0, shape[0])
    inside[top:bottom, left:right] = True
    return inside


def _is_empty(inside: Float[np.ndarray, "n 6"], outside: Float[np.ndarray, "m 6"]) -> bool:
    """Return whether the cells inside differ neither from each other nor from most of the cells outside."""
    if not len(inside) or not len(outside):
        return False
    span = _span(np.concatenate([inside, outside]), 0.3)
    if _span(inside, 1) > CONTRAST * span:
        return False
    inside, outside = (x[:: math.ceil(len(x) / most)] for x, most in ((inside, INSIDE), (outside, OUTSIDE)))
    alike = np.abs(inside[:, None] - outside[None]).max(-1) <= 0.25 * span
    return bool(np.quantile(1 - alike.mean(1), 0.95) < RARITY)


def _span(cells: Float[np.ndarray, "n 6"], cut: float) -> float:
    """Return the largest range of a channel, without its highest and lowest `cut` per cent."""
    return float((np.percentile(cells[:, :3], 100 - cut, axis=0) - np.percentile(cells[:, 3:], cut, axis=0)).max())
