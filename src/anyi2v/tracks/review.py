"""Summary of tracks, and warnings about possible mistakes."""

import math

from anyi2v.errors import plural
from anyi2v.tracks import annotations, own
from anyi2v.tracks.model import Box, Track, Tracks, centre

SAME_ASPECT = 0.01
"""Relative difference between two aspect ratios attributed to rounding."""


def summary(kind: str, tracks: Tracks) -> str:
    """Summarise tracks on one line: format, objects, frames and size."""
    frames = sorted({len(track.boxes) for track in tracks.objects})
    count = f"{frames[0]} to {frames[-1]} frames" if len(frames) > 1 else plural(max(frames, default=0), "frame")
    return f"{kind}, {plural(len(tracks.objects), 'object')}, {count}, {tracks.width} x {tracks.height} pixels"


def followed(track: Track) -> str:
    """Describe which points of the object are followed: its salient points, or the centre of its first box."""
    count = len(track.points)
    return "the box's centre" if count == 0 else plural(count, "point")


def warnings(tracks: Tracks, cell: tuple[float, float]) -> list[str]:
    """Return warnings, one sentence each, naming object and frame.

    Warns if an object leaves the frame, jumps by more than its box from one frame to the next, or has a box smaller
    than a cell of the latent grid.

    Args:
        tracks: with one box per frame of the video.
        cell: (width, height) of a cell of the video's latent, in pixels of the tracks' frame.
    """
    return [line for track in tracks.objects for line in _of(track, tracks, cell)] or _none(tracks)


def other_aspect(kind: str, tracks: Tracks, width: int, height: int) -> list[str]:
    """Warn about tracks over a frame of another aspect ratio than that of an image, over which they are stretched.

    Only for formats whose frame is that of the image; others are drawn on a canvas of their own, or hold fractions.
    """
    alike = abs(tracks.width * height / (tracks.height * width) - 1) <= SAME_ASPECT
    if alike or kind not in (own.TITLE, annotations.LABELME, annotations.COCO):
        return []
    return [
        f"the tracks are drawn on {tracks.width} x {tracks.height} pixels, but the image has {width} x {height}, "
        "another aspect ratio, so the boxes are stretched; give the image that they were drawn on"
    ]


def _none(tracks: Tracks) -> list[str]:
    return [] if tracks.objects else ["there are no objects, so the motion is not controlled"]


def _of(track: Track, tracks: Tracks, cell: tuple[float, float]) -> list[str]:
    lines = []
    outside = [_outside(box, tracks) for box in track.boxes]
    for words, wholly in (("partly leaves", False), ("leaves", True)):
        frames = [k for k, part in enumerate(outside, 1) if part == wholly]
        if frames:
            count = f"{len(frames)} of {plural(len(track.boxes), 'frame')}"
            lines.append(f"object {track.name!r} {words} the frame in {count}, first in frame {frames[0]}")
    jumps = [k for k in range(1, len(track.boxes)) if _jumps(track.boxes[k - 1], track.boxes[k])]
    if jumps:
        lines.append(
            f"object {track.name!r} jumps by more than its box to frame {jumps[0] + 1} ({plural(len(jumps), 'jump')})"
        )
    small = [k for k, (x0, y0, x1, y1) in enumerate(track.boxes, 1) if x1 - x0 < cell[0] or y1 - y0 < cell[1]]
    if small:
        size = f"{cell[0]:g} x {cell[1]:g}"
        lines.append(
            f"object {track.name!r} has a box smaller than a cell of the latent ({size} pixels) in frame {small[0]}"
        )
    return lines


def _outside(box: Box, tracks: Tracks) -> bool | None:
    """Return True if the box is fully outside the frame, False if partly, None if it is inside."""
    x0, y0, x1, y1 = box
    if x1 <= 0 or y1 <= 0 or x0 >= tracks.width or y0 >= tracks.height:
        return True
    return False if x0 < 0 or y0 < 0 or x1 > tracks.width or y1 > tracks.height else None


def _jumps(before: Box, after: Box) -> bool:
    (ax, ay), (bx, by) = centre(before), centre(after)
    return math.fabs(bx - ax) > before[2] - before[0] or math.fabs(by - ay) > before[3] - before[1]
