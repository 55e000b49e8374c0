"""Data classes of tracks: boxes over time, and salient points on the objects.

Boxes are (x0, y0, x1, y1) and points (x, y) in pixels of a frame of `width` x `height`, x to the right and y downwards;
boxes are half-open. Messages count objects, frames and points from 1.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from anyi2v.errors import InputError
from anyi2v.tracks.checks import MAX_FRAMES, check_size, rows, shown, text
from anyi2v.tracks.checks import number as as_number
from anyi2v.tracks.masks import encode, inside, middle

Box = tuple[float, float, float, float]
"""x0, y0, x1 and y1 in pixels."""
Point = tuple[float, float]
"""x and y in pixels."""


@dataclass(frozen=True)
class Track:
    """One object's boxes, one per frame of the track, which may have more or fewer frames than the video.

    Any nested sequences of numbers are accepted and stored as tuples of floats.
    """

    name: str
    boxes: tuple[Box, ...]
    points: tuple[Point, ...] = ()
    """Salient points on the object in frame 1; empty: the first box's centre."""
    mask: Bool[np.ndarray, "h w"] | None = field(default=None, hash=False)
    """Mask of the object over the whole frame 1, in any resolution; only the part inside the first box is used."""
    weight: float = 1.0
    """Non-negative factor of the object's part of the alignment loss; how strongly the track is followed if it
    conflicts with others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", rows(self.boxes, 4, f"object {self.name!r}: boxes"))
        object.__setattr__(self, "points", rows(self.points, 2, f"object {self.name!r}: points"))
        weight = as_number(self.weight, f"object {self.name!r}: weight")
        if not 0 <= weight < math.inf:
            raise InputError(f"object {self.name!r}: weight is {weight:g}; it must be finite and at least 0")
        object.__setattr__(self, "weight", weight)
        if self.mask is not None:
            mask = np.array(self.mask, dtype=bool)
            if mask.ndim != 2 or not mask.size:
                raise InputError(f"object {self.name!r}: mask has shape {mask.shape}; it must be [height, width]")
            mask.setflags(write=False)
            object.__setattr__(self, "mask", mask)

    def __eq__(self, other: object) -> bool:
        # the generated method cannot compare arrays
        if not isinstance(other, Track):
            return NotImplemented
        mine, theirs = ((t.name, t.boxes, t.points, t.weight) for t in (self, other))
        same = mine == theirs
        if self.mask is None or other.mask is None:
            return same and self.mask is other.mask
        return same and np.array_equal(self.mask, other.mask)

    @property
    def salient_points(self) -> tuple[Point, ...]:
        """The points, or the first box's centre if there are none."""
        return self.points or (centre(self.boxes[0]),)

    def resample(self, frames: int) -> "Track":
        """Resample the motion to `frames` frames, linearly in time; the end points are kept exactly.

        A single box stays static. A single frame keeps the first box.
        """
        boxes = np.array(self.boxes, dtype=np.float64)
        times = np.arange(frames) * (len(boxes) - 1) / max(frames - 1, 1)
        before = np.floor(times).astype(int)
        after = np.minimum(before + 1, len(boxes) - 1)
        moved = boxes[before] + (times - before)[:, None] * (boxes[after] - boxes[before])
        return replace(self, boxes=tuple(map(tuple, moved.tolist())))

    def scaled(self, x: float, y: float) -> "Track":
        """Multiply all coordinates by `x` and `y`."""
        boxes = tuple((x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in self.boxes)
        return replace(self, boxes=boxes, points=tuple((px * x, py * y) for px, py in self.points))


@dataclass(frozen=True)
class Tracks:
    """All objects of a job in one frame of reference. Without objects the motion is not controlled.

    An object with a mask but without points gets a central point of the mask, because the box's centre may not be on
    it.

    Raises InputError, naming object and frame, for a box that is not finite, has no area, or is completely outside the
    frame in frame 1; for a point outside its first box; for a mask that is empty in the first box; for an object
    without boxes; for a name that is empty or used twice. Also if `objects` is not a tuple of Track.
    """

    width: int
    height: int
    objects: tuple[Track, ...] = ()

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        given: object = self.objects
        if not isinstance(given, tuple | list) or not all(isinstance(track, Track) for track in given):
            raise InputError(
                f"objects must be a tuple of Track, not {shown(given)}; pass Tracks(width, height, (track,))"
            )
        names: dict[str, int] = {}
        for number, track in enumerate(self.objects, 1):
            where = f"object {number} ({track.name!r})"
            if not track.name:
                raise InputError(f"object {number} has an empty name; give it one")
            if any("\ud800" <= letter <= "\udfff" for letter in track.name):
                raise InputError(f"{where} has an unpaired surrogate in its name, which cannot be printed; rename it")
            if track.name in names:
                raise InputError(f"{where} has the same name as object {names[track.name]}; names must differ")
            names[track.name] = number
            self._check(track, where)
        object.__setattr__(self, "objects", tuple(map(self._pointed, self.objects)))

    def _check(self, track: Track, where: str) -> None:
        if not track.boxes:
            raise InputError(f"{where} has no boxes; give at least one (one box: a static object)")
        for frame, box in enumerate(track.boxes, 1):
            _check_box(box, f"{where}, frame {frame}")
        x0, y0, x1, y1 = track.boxes[0]
        if x1 <= 0 or y1 <= 0 or x0 >= self.width or y0 >= self.height:
            raise InputError(
                f"{where}, frame 1: box {text(track.boxes[0])} lies outside the frame of {self.width} x "
                f"{self.height} pixels; the object must be visible in frame 1"
            )
        for number, (x, y) in enumerate(track.points, 1):
            if not (x0 <= x <= x1 and y0 <= y <= y1):
                raise InputError(
                    f"{where}, point {number}: {text((x, y))} is outside of the first box {text(track.boxes[0])}"
                )
        if track.mask is not None and not inside(track.mask, track.boxes[0], self.width, self.height).any():
            raise InputError(f"{where}: the mask is empty inside the first box {text(track.boxes[0])}")

    def _pointed(self, track: Track) -> Track:
        if track.mask is None or track.points:
            return track
        x0, y0, x1, y1 = track.boxes[0]
        x, y = middle(inside(track.mask, track.boxes[0], self.width, self.height), self.width, self.height)
        return replace(track, points=((min(max(x, x0), x1), min(max(y, y0), y1)),))

    def resample(self, frames: int) -> "Tracks":
        """Resample all tracks, see `Track.resample`. Raises InputError unless `frames` is 1 to `MAX_FRAMES`."""
        if not 1 <= frames <= MAX_FRAMES:
            raise InputError(f"frames is {frames}; it must be 1 to {MAX_FRAMES}")
        return replace(self, objects=tuple(track.resample(frames) for track in self.objects))

    def scaled(self, width: int, height: int) -> "Tracks":
        """Scale the tracks to a frame of `width` x `height` pixels."""
        x, y = width / self.width, height / self.height
        return Tracks(width, height, tuple(track.scaled(x, y) for track in self.objects))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON; `tracks_from_dict` is the exact inverse.

        Masks are included as run lengths (`anyi2v.tracks.masks.encode`).
        """
        objects = []
        for track in self.objects:
            item: dict[str, Any] = {
                "name": track.name,
                "boxes": list(map(list, track.boxes)),
                "points": list(map(list, track.points)),
            }
            if track.weight != 1:
                item["weight"] = track.weight
            objects.append(item if track.mask is None else {**item, "mask": encode(track.mask)})
        return {"width": self.width, "height": self.height, "objects": objects}


def centre(box: Box) -> Point:
    """Return the centre of a box."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _check_box(box: Box, where: str) -> None:
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        raise InputError(f"{where}: box {text(box)} is not finite; give four numbers x0, y0, x1, y1")
    for size, low, high, what in ((x1 - x0, "x0", "x1", "width"), (y1 - y0, "y0", "y1", "height")):
        if size <= 0:
            amount = "zero" if size == 0 else "negative"
            raise InputError(f"{where}: box {text(box)} has {amount} {what}; {high} must exceed {low}")
