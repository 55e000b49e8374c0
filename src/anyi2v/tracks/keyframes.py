"""Interpolation of boxes between key frames and of points along paths: linear, monotone cubic, or eased."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Num

from anyi2v.tracks.model import Box, Point

Interpolation = Literal["linear", "smooth", "ease-in", "ease-out", "ease-in-out"]
Ease = Literal["in", "out", "in-out"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
EASES: tuple[Ease, ...] = get_args(Ease)


def between(
    frames: Sequence[int], boxes: Sequence[Box], count: int, interpolation: Interpolation = "linear"
) -> tuple[Box, ...]:
    """Interpolate boxes for the frames 1 to `count`.

    Centre and size are interpolated, so that no box gets a negative size. Boxes at key frames are kept exactly; before
    the first and after the last key the box is static.

    Args:
        frames: frames of the keys, from 1, increasing, at most `count`.
        boxes: one per key.
        count: number of frames of the result.
        interpolation: "smooth" is a monotone cubic (`pchip`): the box stops only where it reverses. The others are
            linear in space, but `eased` in time between consecutive keys.
    """
    keys, corners = np.array(frames, dtype=np.float64), np.array(boxes, dtype=np.float64)
    at = np.arange(1, count + 1, dtype=np.float64).clip(keys[0], keys[-1])
    with np.errstate(over="ignore", invalid="ignore"):  # the caller reports boxes that are not finite
        values = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        if len(keys) == 1:
            moved = np.repeat(values, count, axis=0)
        elif interpolation == "smooth":
            moved = pchip(keys, values, at)
        else:
            if interpolation != "linear":
                at_keys = np.interp(at, keys, np.arange(len(keys)))
                k = np.floor(at_keys).clip(0, len(keys) - 2)
                at = np.interp(k + eased(at_keys - k, _EASE[interpolation]), np.arange(len(keys)), keys)
            moved = np.stack([np.interp(at, keys, column) for column in values.T], axis=1)
        out = np.concatenate([moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2], axis=1)
    for k in (0, -1):
        out[at == keys[k]] = corners[k]
    out[np.array(frames) - 1] = corners
    return tuple(map(tuple, out.tolist()))


_EASE: dict[Interpolation, Ease] = {"ease-in": "in", "ease-out": "out", "ease-in-out": "in-out"}


def eased(t: Float[np.ndarray, " n"], ease: Ease) -> Float[np.ndarray, " n"]:
    """Ease times in [0, 1] so that a movement starts ("in") or ends ("out") slowly, or both; 0 and 1 are fixed."""
    match ease:
        case "in":
            return t**2
        case "out":
            return 1 - (1 - t) ** 2
        case "in-out":
            return t**2 * (3 - 2 * t)


def along(path: Sequence[Point], count: int, *, constant: bool = False, ease: Ease | None = None) -> tuple[Point, ...]:
    """Return `count` points on the polyline through `path`; the first and last are exactly its ends.

    Args:
        path: points at equal time steps, at least one.
        count: number of points of the result.
        constant: space the points at equal distances along the polyline, regardless of the steps of `path`.
        ease: easing of the times, see `eased`.
    """
    points, t = np.array(path, dtype=np.float64), np.linspace(0, 1, count)
    t = t if ease is None else eased(t, ease)
    with np.errstate(over="ignore", invalid="ignore"):  # `Tracks` reports values that are not finite
        steps = np.hypot(*np.diff(points, axis=0).T) if constant else np.ones(len(points) - 1)
        at = np.concatenate([[0.0], np.cumsum(steps)])
        out = np.stack([np.interp(t * at[-1], at, column) for column in points.T], axis=1)
    out[-1] = points[-1]
    out[0] = points[0]
    return tuple((x, y) for x, y in out.tolist())


def pchip(x: Num[np.ndarray, " k"], y: Float[np.ndarray, "k n"], at: Float[np.ndarray, " m"]) -> np.ndarray:
    """Interpolate by piecewise cubic Hermite polynomials, monotone wherever the data are (Fritsch and Carlson 1980).

    The slope at an inner key is the weighted harmonic mean of the adjacent slopes, or zero if they differ in sign
    (Fritsch and Butland 1984); at the ends the three-point rule is used, limited to avoid overshoot.

    Args:
        x: at least two positions, increasing.
        y: values at `x`.
        at: positions to evaluate at, within the range of `x`.
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
    """Return the slope at an end, from the two adjacent intervals; `[1 n]`."""
    m = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    too_steep = (np.sign(d0) != np.sign(d1)) & (np.abs(m) > 3 * np.abs(d0))
    m = np.where(np.sign(m) != np.sign(d0), 0.0, np.where(too_steep, 3 * d0, m))
    return m[None]
