"""NumPy file formats: SG-I2V's trajectories, and points of CoTracker and of tapnet (TAPIR)."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks.checks import check_counts
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.model import Track, Tracks
from anyi2v.tracks.stored import Stored

SG_I2V = "SG-I2V .npy"
COTRACKER_NPY = "CoTracker .npy"
COTRACKER = "CoTracker .npz"
TAPNET = "tapnet .npz"
TAP_VID = "TAP-Vid .npz"
VISIBLE = 0.9
"""CoTracker's visibility threshold, for files with confidences."""
_TRACKS, _VISIBILITY = ("tracks", "pred_tracks"), ("visibility", "pred_visibility")
FARTHEST = 2
"""Maximum absolute value of coordinates in fractions of the frame in TAP-Vid's files; pixels exceed it."""


def matches_sg_i2v(content: Any) -> bool:
    """Match a single array without exactly four axes."""
    return isinstance(content, Stored) and content.ndim != 4


def read_sg_i2v(content: Stored, hints: Hints) -> Tracks:
    """Read [objects, 2 + frames, 2]: corners of the first box, then its centre in each frame, all (x, y).

    Coordinates are in pixels of the original image. As in Kmcode1/SG-I2V (`read_condition`), the box moves by the
    displacement of the centre from its first position.
    """
    if content.ndim != 3 or content.shape[1] < 3 or content.shape[2] != 2 or not _numbers(content):
        raise InputError(f"{SG_I2V} has {content}; it must be [objects, 2 + frames, 2] of numbers")
    check_counts(content.shape[0], content.shape[1] - 2)
    objects, size = [], hints.needed_size(SG_I2V)
    for i, points in enumerate(content.read().astype(np.float64).tolist(), 1):
        (x0, y0), (x1, y1), (x, y), *_ = points
        if not (x0 < x1 and y0 < y1):
            raise InputError(
                f"{SG_I2V}, object {i}: ({x0:g}, {y0:g}) and ({x1:g}, {y1:g}) are not the upper left and lower right "
                f"corners of a box; {_NO_SG_I2V}"
            )
        if not (x0 <= x <= x1 and y0 <= y <= y1):
            warnings.warn(
                f"{SG_I2V}, object {i}: its path starts at ({x:g}, {y:g}), outside of its box; {_NO_SG_I2V}",
                AnyI2VWarning,
                stacklevel=2,
            )
        objects.append(Track(f"object {i}", moved((x0, y0, x1, y1), list(map(tuple, points[2:])))))
    return Tracks(*size, tuple(objects))


_NO_SG_I2V = "CoTracker's points must be saved with four axes, [1, frames, points, 2], or by np.savez(file, tracks=...)"


def matches_cotracker_npy(content: Any) -> bool:
    """Match a single array with four axes."""
    return isinstance(content, Stored) and content.ndim == 4


def read_cotracker_npy(content: Stored, hints: Hints) -> Tracks:
    """Read [1, frames, points, 2] of (x, y) in pixels of the video; all points are treated as visible."""
    shape = _point_shape(COTRACKER_NPY, "it", content, frames_first=True)
    tracks = _in_order(content.read(), shape)
    return _objects(COTRACKER_NPY, tracks, np.ones(shape, dtype=bool), hints)


def matches_cotracker(content: Any) -> bool:
    """Match a .npz file with an array of tracks."""
    return _arrays(content) and any(key in content for key in _TRACKS) and not _of_tapnet(content)


def matches_tapnet(content: Any) -> bool:
    """Match a .npz file with an array of tracks, and `visibles` or `occluded`."""
    return _arrays(content) and any(key in content for key in _TRACKS) and _of_tapnet(content)


def matches_tap_vid(content: Any) -> bool:
    """Match a .npz file with `points` or `target_points`, and `occluded`."""
    return _arrays(content) and "occluded" in content and ("points" in content or "target_points" in content)


def _arrays(content: Any) -> bool:
    return isinstance(content, dict) and any(isinstance(value, Stored) for value in content.values())


def _of_tapnet(content: dict[str, Stored]) -> bool:
    return "visibles" in content or "occluded" in content


def read_cotracker(content: dict[str, Stored], hints: Hints) -> Tracks:
    """Read array `tracks` or `pred_tracks` of (x, y) in pixels, [1, frames, points, 2] or [frames, points, 2].

    Each point becomes an object. While it is hidden according to `visibility` or `pred_visibility` ([1, frames,
    points], bool or confidence), its position is interpolated linearly; points that are never visible are left out. (As
    returned by facebookresearch/co-tracker.)
    """
    key = next(key for key in _TRACKS if key in content)
    shape = _point_shape(COTRACKER, key, content[key], frames_first=True)
    seen = np.ones(shape, dtype=bool)
    for other in _VISIBILITY:
        if other in content:
            seen = _flags(COTRACKER, other, content[other], shape, VISIBLE, ("frames", "points"))
            break
    return _objects(COTRACKER, _in_order(content[key].read(), shape), seen, hints)


def read_tapnet(content: dict[str, Stored], hints: Hints) -> Tracks:
    """Read array `tracks`, [points, frames, 2] of (x, y) in pixels of the video, and `visibles` or `occluded`.

    These are the names of google-deepmind/tapnet, whose axes are swapped compared to CoTracker's; the names determine
    how the axes are read.
    """
    key = next(key for key in _TRACKS if key in content)
    if both := [other for other in _VISIBILITY if other in content]:
        other = "visibles" if "visibles" in content else "occluded"
        raise InputError(
            f"{TAPNET}: it has {both[0]!r}, which is CoTracker's, [frames, points], and {other!r}, which is "
            "tapnet's, [points, frames]; remove one of them"
        )
    return _tapnet(TAPNET, key, content, hints, lambda tracks: tracks)


def read_tap_vid(content: dict[str, Stored], hints: Hints) -> Tracks:
    """Read a video of google-deepmind/tapnet's benchmark: `points` [points, frames, 2], `occluded` [points, frames].

    `points` are in fractions of the frame, as in the benchmark's files; `target_points` are in pixels, as returned by
    its loaders.
    """
    if "target_points" in content:
        return _tapnet(TAP_VID, "target_points", content, hints, lambda tracks: tracks)
    size = hints.needed_size(TAP_VID)

    def in_pixels(tracks: Float[np.ndarray, "f n 2"]) -> Float[np.ndarray, "f n 2"]:
        if np.abs(tracks).max(initial=0) > FARTHEST:
            raise InputError(
                f"{TAP_VID}: points has values up to {np.abs(tracks).max():g}; it must be in fractions of the frame, "
                "0 to 1; for pixels, name the array target_points"
            )
        return tracks * np.array(size, dtype=np.float64)

    return _tapnet(TAP_VID, "points", content, hints, in_pixels)


def _tapnet(
    title: str, key: str, content: dict[str, Stored], hints: Hints, in_pixels: Callable[[np.ndarray], np.ndarray]
) -> Tracks:
    shape = _point_shape(title, key, content[key], frames_first=False)
    flags = "visibles" if "visibles" in content else "occluded"
    if flags == "occluded" and np.issubdtype(content[flags].dtype, np.floating):
        raise InputError(f"{title}: occluded has {content[flags]}; it must be bool, not a network's scores")
    seen = _flags(title, flags, content[flags], shape, 0.5, ("points", "frames"))
    tracks = _in_order(content[key].read(), shape)
    return _objects(
        title, in_pixels(tracks.astype(np.float64).swapaxes(0, 1)), (seen if flags == "visibles" else ~seen).T, hints
    )


def _point_shape(title: str, key: str, stored: Stored, *, frames_first: bool) -> tuple[int, int]:
    """Return the two axes before the last, for arrays with or without a leading axis of length 1.

    Raises InputError for other arrays, and for more points or frames than can be used.
    """
    wanted = "[1, frames, points, 2]" if frames_first else "[points, frames, 2]"
    shape = stored.shape[1:] if stored.ndim == 4 and stored.shape[0] == 1 else stored.shape
    if len(shape) != 3 or shape[2] != 2 or not shape[0] or not shape[1] or not _numbers(stored):
        raise InputError(f"{title}: {key} has {stored}; it must be {wanted} of numbers, from one video")
    frames, points = shape[:2] if frames_first else shape[1::-1]
    check_counts(points, frames)
    return shape[0], shape[1]


def _in_order(array: np.ndarray, shape: tuple[int, int]) -> Num[np.ndarray, "f n 2"]:
    return array.reshape(*shape, 2)  # removes at most an axis of length 1


def _flags(
    title: str, key: str, stored: Stored, shape: tuple[int, int], threshold: float, axes: tuple[str, str]
) -> Bool[np.ndarray, "a b"]:
    """Return which points are visible when; leading and trailing axes of length 1 are dropped."""
    found = stored.shape
    while len(found) > 2 and found[-1] == 1:
        found = found[:-1]
    while len(found) > 2 and found[0] == 1:
        found = found[1:]
    if found != shape or not (stored.dtype == bool or _numbers(stored)):
        hint = "; its axes are exchanged" if found == shape[::-1] else ""
        raise InputError(
            f"{title}: {key} has {stored}; it must be {list(shape)}, [{axes[0]}, {axes[1]}] like the tracks{hint}"
        )
    flags = stored.read().reshape(shape)
    return flags > threshold if np.issubdtype(flags.dtype, np.floating) else flags.astype(bool)


def _objects(title: str, tracks: Num[np.ndarray, "f n 2"], seen: Bool[np.ndarray, "f n"], hints: Hints) -> Tracks:
    """Return each point that is visible in some frame as an object; warn about the others."""
    size = hints.needed_size(title)
    objects, hidden = [], []
    for i in range(tracks.shape[1]):
        path = _filled(tracks[:, i].astype(np.float64), seen[:, i])
        if path:
            objects.append(Track(f"point {i + 1}", moved(hints.box_at(path[0], size), path)))
        else:
            hidden.append(str(i + 1))
    if hidden:
        names = ", ".join(hidden[:10]) + (" and more" if len(hidden) > 10 else "")
        warnings.warn(
            f"{title}: {len(hidden)} of {tracks.shape[1]} points are never visible and were left out: {names}",
            AnyI2VWarning,
            stacklevel=2,
        )
    return Tracks(*size, tuple(objects))


def _filled(path: Float[np.ndarray, "f 2"], seen: Bool[np.ndarray, " f"]) -> list[tuple[float, float]]:
    at = np.flatnonzero(seen)
    if not len(at):
        return []
    frames = np.arange(len(path))
    x, y = (np.interp(frames, at, path[at, k]).tolist() for k in (0, 1))
    return list(zip(x, y, strict=True))


def _numbers(array: Stored) -> bool:
    return np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
