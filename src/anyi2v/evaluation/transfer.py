"""Motion transfer: tracks of objects in a video from their boxes in its first frame."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.following import BoxFollower, Followed, Follower
from anyi2v.tracks import Track, Tracks


def boxes_of(texts: Sequence[str]) -> tuple[Track, ...]:
    """Parse objects from texts such as "cow=40,200,200,330": a name, and x0, y0, x1, y1 in pixels.

    Raises:
        InputError: a text has another form; the message names it.
    """
    found = []
    for text in texts:
        name, _, numbers = text.rpartition("=")
        try:
            if not name.strip():
                raise ValueError
            x0, y0, x1, y1 = map(float, numbers.split(","))
        except ValueError:
            raise InputError(f"box {text!r} is not usable; write NAME=X0,Y0,X1,Y1, in pixels of the video") from None
        found.append(Track(name.strip(), ((x0, y0, x1, y1),)))
    return tuple(found)


def tracks_from_video(
    video: Float[Tensor, "f 3 h w"], first: Tracks, follower: Follower | None = None
) -> tuple[Tracks, Followed]:
    """Return tracks with a box for each frame of a video, and details of the following.

    A lost object keeps its last visible box.

    Args:
        video: in [0, 1].
        first: objects of frame 1, in pixels of the video.
        follower: by default `BoxFollower` with Lucas-Kanade.

    Raises:
        InputError: the video has one frame, or the follower fails.
    """
    if len(video) < 2:
        raise InputError("the video has a single frame, so nothing moves in it")
    found = (follower or BoxFollower())(video, first)
    moved = (
        replace(track, boxes=tuple(map(tuple, boxes.tolist())))
        for track, boxes in zip(first.objects, found.boxes, strict=True)
    )
    return replace(first, objects=tuple(moved)), found


def lost(tracks: Tracks, found: Followed) -> list[str]:
    """Return a line for every object that is lost, entirely or in most of its points."""
    lines = []
    for track, seen, points in zip(tracks.objects, found.seen, found.points, strict=True):
        if not seen.all():
            frame = int((~seen).nonzero()[0]) + 1
            lines.append(f"{track.name!r} is lost from frame {frame} of {len(seen)} on, where its box stands still")
        elif points[-1] < 0.5:
            lines.append(f"{track.name!r}: only {points[-1]:.0%} of its points are followed to the last frame")
    return lines
