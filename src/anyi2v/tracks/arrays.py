"""Formats in NumPy's files: SG-I2V's trajectories, CoTracker's tracks. Free of torch."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from anyi2v.errors import InputError
from anyi2v.tracks.checks import MAX_FRAMES
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.model import Track, Tracks

SG_I2V = "SG-I2V .npy"
COTRACKER = "CoTracker .npz"
VISIBLE = 0.9
"""CoTracker's threshold, where a file has confidences."""
MAX_OBJECTS = 1000


def matches_sg_i2v(content: Any) -> bool:
    """A single array."""
    return isinstance(content, np.ndarray)


def read_sg_i2v(content: np.ndarray, hints: Hints) -> Tracks:
    """[objects, 2 + frames, 2]: corners of the first box, then its centre in each frame, all (x, y).

    In pixels of the original image. As in Kmcode1/SG-I2V (`read_condition`), the box moves as the centre moves
    from its first place.
    """
    if content.ndim != 3 or content.shape[1] < 3 or content.shape[2] != 2 or not _numbers(content):
        raise InputError(
            f"{SG_I2V} has shape {content.shape} of {content.dtype}; it must be [objects, 2 + frames, 2] of numbers"
        )
    _check_counts(len(content), content.shape[1] - 2)
    objects = []
    for i, points in enumerate(content.astype(np.float64).tolist(), 1):
        (x0, y0), (x1, y1), *path = map(tuple, points)
        objects.append(Track(f"object {i}", moved((x0, y0, x1, y1), path)))
    return Tracks(*hints.needed_size(SG_I2V), tuple(objects))


def matches_cotracker(content: Any) -> bool:
    """A .npz file with an array of tracks."""
    return _arrays(content) and any(key in content for key in _TRACKS)


_TRACKS, _VISIBILITY = ("tracks", "pred_tracks"), ("visibility", "pred_visibility", "visibles")


def _arrays(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(value, np.ndarray) for value in content.values())


def read_cotracker(content: dict[str, np.ndarray], hints: Hints) -> Tracks:
    """Array `tracks` or `pred_tracks`, [1, frames, points, 2] or [frames, points, 2], of (x, y) in pixels of the video.

    Each point becomes an object. While `visibility` or `pred_visibility` ([1, frames, points], bool or confidence)
    says that it is hidden, it goes straight from where it was seen last to where it is seen next; points that
    are never seen are left out. (As facebookresearch/co-tracker returns them.)
    """
    key = next(key for key in _TRACKS if key in content)
    tracks = content[key]
    if tracks.ndim == 4 and len(tracks) == 1:
        tracks = tracks[0]
    if tracks.ndim != 3 or tracks.shape[2] != 2 or not tracks.shape[0] or not _numbers(tracks):
        raise InputError(
            f"{COTRACKER}: {key} has shape {content[key].shape} of {tracks.dtype}; it must be "
            "[1, frames, points, 2] of numbers, from one video"
        )
    _check_counts(tracks.shape[1], tracks.shape[0])
    size = hints.needed_size(COTRACKER)
    objects = []
    for i in range(tracks.shape[1]):
        path = _filled(tracks[:, i].astype(np.float64), _seen(content, tracks.shape[:2])[:, i])
        if path:
            objects.append(Track(f"point {i + 1}", moved(hints.box_at(path[0], size), path)))
    return Tracks(*size, tuple(objects))


def _seen(content: dict[str, np.ndarray], shape: tuple[int, ...]) -> Bool[np.ndarray, "f n"]:
    key = next((key for key in _VISIBILITY if key in content), None)
    if key is None:
        return np.ones(shape, dtype=bool)
    seen = content[key]
    if seen.size != shape[0] * shape[1] or not (seen.dtype == bool or _numbers(seen)):
        raise InputError(
            f"{COTRACKER}: {key} has shape {seen.shape} of {seen.dtype}; it must be {list(shape)}, one per point"
        )
    seen = seen.reshape(shape)
    return seen > VISIBLE if np.issubdtype(seen.dtype, np.floating) else seen.astype(bool)


def _filled(path: Float[np.ndarray, "f 2"], seen: Bool[np.ndarray, " f"]) -> list[tuple[float, float]]:
    at = np.flatnonzero(seen)
    if not len(at):
        return []
    frames = np.arange(len(path))
    x, y = (np.interp(frames, at, path[at, k]).tolist() for k in (0, 1))
    return list(zip(x, y, strict=True))


def _numbers(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)


def _check_counts(objects: int, frames: int) -> None:
    if objects > MAX_OBJECTS or frames > MAX_FRAMES:
        raise InputError(
            f"the file has {objects} tracks of {frames} frames; at most {MAX_OBJECTS} of {MAX_FRAMES} can be used: "
            "choose some of them"
        )
