"""Text formats with lines of numbers: MOTChallenge's boxes, and paths as x,y."""

import re
import warnings
from typing import Any

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks.checks import check_counts, frame_number, row, shown
from anyi2v.tracks.hints import Hints, moved
from anyi2v.tracks.keyframes import between
from anyi2v.tracks.model import Box, Track, Tracks

MOT = "MOT .txt"
XY = "x,y .txt"

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_BETWEEN = r"\s*[,;\s]\s*"
_LINES = {n: re.compile(rf"{_NUMBER}({_BETWEEN}{_NUMBER}){{{n}}}") for n in ("1", "5,9")}


def matches_mot(content: Any) -> bool:
    """Match text whose first line has six to ten numbers."""
    return _first_line(content, "5,9")


def read_mot(content: str, hints: Hints) -> Tracks:
    """Read lines `frame, id, left, top, width, height`, in pixels of the images; more columns may follow.

    The file's first frame is the image. Each id becomes an object, linearly interpolated where it has no line, and
    static after its last one. Ids that are missing in the first frame are left out, and so are lines whose seventh
    column is 0, which marks lines to ignore. (MOTChallenge's det.txt, gt.txt and trackers' results.)
    """
    keys: dict[int, dict[int, Box]] = {}
    for i, values in _numbers(content, range(6, 11), MOT, "frame, id, left, top, width, height"):
        where, (at, name, x, y, w, h, *more) = f"{MOT}, line {i}", values
        if not (at.is_integer() and name.is_integer()):
            raise InputError(f"{where}: frame {at:g} and id {name:g} must be whole numbers")
        frame = frame_number(int(at), f"{where}: frame", 0)
        if more and more[0] == 0:
            continue
        boxes = keys.setdefault(int(name), {})
        if frame in boxes:
            raise InputError(f"{where}: id {name:g} already has a box in frame {frame}; a tracker's ids must differ")
        boxes[frame] = (x, y, x + w, y + h)
    return from_keys(MOT, {f"object {name}": boxes for name, boxes in sorted(keys.items())}, hints.needed_size(MOT))


def from_keys(title: str, keys: dict[str, dict[int, Box]], size: tuple[int, int]) -> Tracks:
    """Build tracks from boxes by name and frame; objects missing in the first frame are left out with a warning."""
    frames = [frame for boxes in keys.values() for frame in boxes]
    first, last = min(frames, default=0), max(frames, default=0)
    check_counts(len(keys), last - first + 1)
    objects, late = [], []
    for name, boxes in keys.items():
        at = sorted(boxes)
        if at[0] > first:
            late.append(f"{name} (from frame {at[0]})")
            continue
        moved_ = between([frame - first + 1 for frame in at], [boxes[frame] for frame in at], last - first + 1)
        objects.append(Track(name, moved_))
    if late:
        named = ", ".join(late[:10]) + (" and more" if len(late) > 10 else "")
        warnings.warn(
            f"{title}: frame {first}, that of the image, lacks {len(late)} of {len(keys)} objects, which were "
            f"left out: {named}",
            AnyI2VWarning,
            stacklevel=2,
        )
    return Tracks(*size, tuple(objects))


def matches_xy(content: Any) -> bool:
    """Match text whose first line has two numbers."""
    return _first_line(content, "1")


def read_xy(content: str, hints: Hints) -> Tracks:
    """Read lines `x, y`, one per frame, in pixels of the image; an empty line ends an object."""
    paths: list[list[tuple[float, float]]] = []
    last = -1
    for i, (x, y) in _numbers(content, range(2, 3), XY, "x, y"):
        if not paths or i > last + 1:
            paths.append([])
        paths[-1].append((x, y))
        last = i
    check_counts(len(paths), max(map(len, paths)))
    size = hints.needed_size(XY)
    objects = [Track(f"object {n}", moved(hints.box_at(path[0], size), path)) for n, path in enumerate(paths, 1)]
    return Tracks(*size, tuple(objects))


def _first_line(content: Any, more: str) -> bool:
    if not isinstance(content, str) or not content.strip():
        return False
    return _LINES[more].fullmatch(content.strip().splitlines()[0].strip()) is not None


def _numbers(content: str, counts: range, title: str, what: str) -> list[tuple[int, tuple[float, ...]]]:
    """Return the number, from 1, and the values of each line that is not empty."""
    out = []
    for i, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        values = re.split(_BETWEEN, line.strip().rstrip(",;"))
        message = f"{title}, line {i} is {shown(line)}; it must be {what}"
        if len(values) not in counts:
            raise InputError(message)
        out.append((i, row([_float(value) for value in values], len(values), title, message)))
    return out


def _float(value: str) -> float | None:
    return float(value) if re.fullmatch(_NUMBER, value) else None
