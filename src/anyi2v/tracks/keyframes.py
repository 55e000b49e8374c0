"""Boxes between key frames: linear, or smooth without overshooting. Free of torch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from anyi2v.tracks.model import Box

Interpolation = Literal["linear", "smooth"]


def between(
    frames: Sequence[int], boxes: Sequence[Box], count: int, interpolation: Interpolation = "linear"
) -> tuple[Box, ...]:
    """One box for each of the frames 1 to `count`.

    Centre and size are interpolated, so that no box turns inside out. Key frames keep their boxes to the last
    bit; before the first and after the last one the box stands still.

    Args:
        frames: of the keys, from 1, growing, none beyond `count`.
        boxes: one per key.
        count: frames of the result.
        interpolation: "smooth" is a monotone cubic (`pchip`): the box stops where it turns, and nowhere else.
    """
    keys, corners = np.array(frames, dtype=np.float64), np.array(boxes, dtype=np.float64)
    at = np.arange(1, count + 1, dtype=np.float64).clip(keys[0], keys[-1])
    with np.errstate(over="ignore", invalid="ignore"):  # boxes that are not finite are found by their owner
        values = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        if len(keys) == 1:
            moved = np.repeat(values, count, axis=0)
        elif interpolation == "smooth":
            moved = pchip(keys, values, at)
        else:
            moved = np.stack([np.interp(at, keys, column) for column in values.T], axis=1)
        out = np.concatenate([moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2], axis=1)
    for k in (0, -1):
        out[at == keys[k]] = corners[k]
    out[np.array(frames) - 1] = corners
    return tuple(map(tuple, out.tolist()))


def pchip(x: Num[np.ndarray, " k"], y: Float[np.ndarray, "k n"], at: Float[np.ndarray, " m"]) -> np.ndarray:
    """Piecewise cubic Hermite interpolation that is monotone wherever its data are (Fritsch and Carlson 1980).

    The slope at an inner key is the weighted harmonic mean of its neighbours' slopes, zero where they differ in
    sign (Fritsch and Butland 1984); at the ends the three-point rule, cut so as not to overshoot.

    Args:
        x: at least two places, growing.
        y: values there.
        at: where to evaluate, inside of `x`.
    """
    h = np.diff(x)[:, None]
    d = np.diff(y, axis=0) / h
    m = _slopes(h, d)
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t, h = ((at - x[k]) / np.diff(x)[k])[:, None], h[k]
    start = (1 + 2 * t) * (1 - t) ** 2 * y[k] + t * (1 - t) ** 2 * h * m[k]
    return start + t**2 * (3 - 2 * t) * y[k + 1] + t**2 * (t - 1) * h * m[k + 1]


def _slopes(h: np.ndarray, d: np.ndarray) -> np.ndarray:
    if len(d) == 1:
        return np.concatenate([d, d])
    one, two = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    turns = np.sign(d[:-1]) * np.sign(d[1:]) <= 0
    before, after = np.where(turns, 1.0, d[:-1]), np.where(turns, 1.0, d[1:])
    inner = np.where(turns, 0.0, (one + two) / (one / before + two / after))
    return np.concatenate([_end(h[0], h[1], d[0], d[1]), inner, _end(h[-1], h[-2], d[-1], d[-2])])


def _end(h0: np.ndarray, h1: np.ndarray, d0: np.ndarray, d1: np.ndarray) -> np.ndarray:
    """The slope at an end, from the two intervals next to it; `[1 n]`."""
    m = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    too_steep = (np.sign(d0) != np.sign(d1)) & (np.abs(m) > 3 * np.abs(d0))
    m = np.where(np.sign(m) != np.sign(d0), 0.0, np.where(too_steep, 3 * d0, m))
    return m[None]
