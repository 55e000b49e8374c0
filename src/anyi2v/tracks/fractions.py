"""Formats with boxes in fractions of the frame: FreeTraj's lines and TrailBlazer's key frames."""

import re
from typing import Any

from anyi2v.errors import InputError
from anyi2v.tracks.checks import MAX_FRAMES, check_size, frame_number, get, row, shown, typed
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.keyframes import between
from anyi2v.tracks.model import Box, Track, Tracks

FREETRAJ = "FreeTraj .txt"
TRAILBLAZER = "TrailBlazer YAML"
FREETRAJ_SIZE = (512, 320)
"""FreeTraj's frame size (width, height), the default."""
FREETRAJ_FRAMES = 16
"""Number of frames of FreeTraj's videos; shorter tracks are extrapolated."""
TRAILBLAZER_SIZE = (512, 512)
"""TrailBlazer's frame size (width, height), unless the file or the user gives another."""


def matches_freetraj(content: Any) -> bool:
    """Match text whose first line has five numbers separated by commas."""
    if not isinstance(content, str) or not content.strip():
        return False
    parts = content.strip().splitlines()[0].split(",")
    return len(parts) == 5 and re.fullmatch(r"\s*-?[\d.]+\s*", parts[0]) is not None


def read_freetraj(content: str, hints: Hints) -> Tracks:
    """Read lines `frame, y0, y1, x0, x1`: frames from 0, the rest in fractions of the frame.

    As in arthur-qiu/FreeTraj, positions are linear between the lines and extrapolated before the first and after the
    last; the size is that of the first line. A single line is a static object.
    """
    frames, corners, size = [], [], (0.0, 0.0)
    for i, line in enumerate(content.strip().splitlines(), 1):
        where = f"{FREETRAJ}, line {i}"
        if not line.strip():
            continue
        frame, y0, y1, x0, x1 = row([_float(v) for v in line.split(",")], 5, f"{where}", _five(where, line))
        if not frame.is_integer():
            raise InputError(f"{where}: frame {frame:g} is not a whole number")
        frames.append(frame_number(int(frame), f"{where}: frame", 0))
        if i > 1 and frames[-1] <= frames[-2]:
            raise InputError(f"{where}: frame {frames[-1]} comes after frame {frames[-2]}; frames must increase")
        size = (x1 - x0, y1 - y0) if i == 1 else size
        corners.append((x0, y0))
    count = max(frames[-1] + 1, FREETRAJ_FRAMES)
    places = [_straight(frames, corners, k) for k in range(count)]
    boxes = tuple((x, y, x + size[0], y + size[1]) for x, y in places)
    return _in_pixels("object 1", boxes, hints.size or FREETRAJ_SIZE)


def _five(where: str, line: str) -> str:
    return f"{where} is {shown(line)}; it must be frame, y0, y1, x0, x1: five numbers separated by commas"


def _float(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) <= 10 * MAX_FRAMES else None


def _straight(frames: list[int], corners: list[tuple[float, float]], at: int) -> tuple[float, float]:
    """Return the corner at a frame, on the line through the two keys around it or nearest to it."""
    if at in frames or len(frames) == 1:
        return corners[frames.index(at) if at in frames else 0]
    k = min(max(sum(frame <= at for frame in frames) - 1, 0), len(frames) - 2)
    t = (at - frames[k]) / (frames[k + 1] - frames[k])
    (x0, y0), (x1, y1) = corners[k : k + 2]
    return x0 + t * (x1 - x0), y0 + t * (y1 - y0)


def matches_trailblazer(content: Any) -> bool:
    """Match YAML or JSON with the top-level key `keyframe`."""
    if isinstance(content, dict):
        return "keyframe" in content
    return isinstance(content, str) and re.search(r"^keyframe\s*:", content, re.MULTILINE) is not None


def read_trailblazer(content: Any, hints: Hints) -> Tracks:
    """Read `keyframe`: list of {`bbox_ratios`: [left, top, right, bottom] in fractions, `frame`: from 0}.

    The first key must be at frame 0. Linear between the keys, as in hohonu-vicml/TrailBlazer. Prompts, tokens and seeds
    in the file are ignored.
    """
    data = typed(_yaml(content) if isinstance(content, str) else content, dict, TRAILBLAZER)
    frames, boxes = [], []
    for i, key in enumerate(get(data, "keyframe", list, TRAILBLAZER), 1):
        where = f"{TRAILBLAZER}, key frame {i}"
        key = typed(key, dict, where)
        frames.append(frame_number(get(key, "frame", int, where), f"{where}: frame", 0))
        x0, y0, x1, y1 = row(get(key, "bbox_ratios", list, where), 4, f"{where}: bbox_ratios")
        boxes.append((x0, y0, x1, y1))
        if i > 1 and frames[-1] <= frames[-2]:
            raise InputError(f"{where}: frame {frames[-1]} comes after frame {frames[-2]}; frames must increase")
    if not frames or frames[0] != 0:
        raise InputError(f"{TRAILBLAZER}: the first key frame must be frame 0, not {frames[0] if frames else 'none'}")
    moved = between([frame + 1 for frame in frames], boxes, frames[-1] + 1)
    own = (data.get("width") or TRAILBLAZER_SIZE[0], data.get("height") or TRAILBLAZER_SIZE[1])
    width, height = hints.size or tuple(typed(side, int, f"{TRAILBLAZER}: width, height") for side in own)
    check_size(width, height)
    return _in_pixels("object 1", moved, (width, height))


def _in_pixels(name: str, boxes: tuple[Box, ...], size: tuple[int, int]) -> Tracks:
    return Tracks(*size, (Track(name, boxes).scaled(*size),))


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise InputError(f"reading a {TRAILBLAZER} needs PyYAML: pip install 'anyi2v[yaml]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the file starts like {TRAILBLAZER}, but is not YAML: {error!s:.200}") from error
    except (ValueError, OverflowError, RecursionError, AttributeError, KeyError, TypeError) as error:
        # raised by PyYAML's constructors for impossible dates, keys and depths
        raise InputError(f"the file starts like {TRAILBLAZER}, but its YAML is not usable: {error!s:.200}") from error
