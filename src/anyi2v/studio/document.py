"""The page's track document: our track JSON with key frames, exactly as the commands read it. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.images.fit import Fit
from anyi2v.tracks import Box, Tracks, own, tracks_from_dict
from anyi2v.tracks.checks import MAX_FRAMES
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.keyframes import between
from anyi2v.tracks.masks import encode
from anyi2v.tracks.read import content_of, recognise

MAX_TEXT = 1 << 23
"""Maximum number of characters in a document from the page."""
EXACT = 1e-6
"""Maximum deviation in pixels of a box from the line between two key frames without its own key frame."""


def empty(width: int, height: int, frames: int) -> dict[str, Any]:
    """Return a document without objects."""
    return {"width": width, "height": height, "frames": frames, "objects": []}


def checked(text: Any) -> tuple[dict[str, Any], Tracks]:
    """Parse a document from the page; return its data and its tracks.

    Raises:
        InputError: the commands would reject it too, or it names files: data from a page must not open files.
    """
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise InputError(f"the tracks are no text of at most {MAX_TEXT} characters")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the tracks are not JSON: {error!s:.100}") from error
    if not own.matches(data) or own.is_record(data):
        raise InputError("this is not an anyi2v track file: there is no key 'objects'")
    return data, tracks_from_dict(data, Hints(folder=None))


def written(document: dict[str, Any]) -> str:
    """Return the document as the text of a track file."""
    return json.dumps(document, indent=1) + "\n"


def document_of(tracks: Tracks, frames: int) -> dict[str, Any]:
    """Convert tracks to a document with key frames where a box is not on the line between its neighbours.

    `between` reproduces the boxes of `tracks.resample(frames)` to within `EXACT` pixels.
    """
    objects: list[dict[str, Any]] = []
    for track in tracks.resample(frames).objects:
        keys = [{"frame": k + 1, "box": list(track.boxes[k])} for k in _keys(track.boxes)]
        item: dict[str, Any] = {"name": track.name, "keyframes": keys}
        if track.points:
            item["points"] = list(map(list, track.points))
        if track.weight != 1:
            item["weight"] = track.weight
        if track.mask is not None:
            item["mask"] = encode(track.mask)
        objects.append(item)
    return {**empty(tracks.width, tracks.height, frames), "objects": objects}


def _keys(boxes: tuple[Box, ...]) -> list[int]:
    """Return indices of boxes between which all others lie on straight lines, as few as one pass finds."""
    keys, last = [0], len(boxes) - 1
    if all(box == boxes[0] for box in boxes):
        return keys
    while keys[-1] < last:
        start, end = keys[-1], keys[-1] + 1
        while end < last and _straight(boxes[start : end + 2]):
            end += 1
        keys.append(end)
    return keys


def _straight(boxes: tuple[Box, ...]) -> bool:
    line = between((1, len(boxes)), (boxes[0], boxes[-1]), len(boxes))
    pairs = zip(boxes, line, strict=True)
    return all(abs(a - b) <= EXACT for box, other in pairs for a, b in zip(box, other, strict=True))


def imported(path: Path, fit: Fit, frames: int) -> tuple[str, dict[str, Any]]:
    """Read a track file; return its format and its content as a document over the fitted image.

    A document exported by the page is returned unchanged. For other files, tracks over the source of `fit` are mapped
    to the fitted image and resampled to `frames` frames.

    Raises:
        InputError: the file is invalid, or its masks are in other files.
    """
    try:
        content = content_of(path)
        kind = recognise(content)
        tracks = kind.read(content, Hints(fit.source, folder=None))
        same = (tracks.width, tracks.height) == (fit.width, fit.height)
        if same and kind.title == own.TITLE and _is_document(content, frames):
            return kind.title, content
        placed = tracks if same else fit.tracks(tracks)
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    return kind.title, document_of(placed, frames)


def _is_document(content: Any, frames: int) -> bool:
    """Whether our JSON has only key frames, and as many frames as the page."""
    items = content.get("objects")
    return content.get("frames") == frames and isinstance(items, list) and all("keyframes" in item for item in items)


def framed(document: dict[str, Any], frames: int) -> dict[str, Any]:
    """Change the number of frames: key frames keep their relative time and stay distinct.

    Raises:
        InputError: there are fewer frames than key frames of an object, or too many frames.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"frames is {frames}; it must be 1 to {MAX_FRAMES}")
    former = document["frames"]
    if former == frames:
        return document
    objects = []
    for item in document["objects"]:
        keys, last = item["keyframes"], 0
        if len(keys) > frames:
            raise InputError(f"object {item['name']!r} has {len(keys)} key frames; {frames} frames are too few")
        moved = []
        for left, key in zip(range(len(keys) - 1, -1, -1), keys, strict=True):
            wish = 1 + round((key["frame"] - 1) * (frames - 1) / max(former - 1, 1))
            last = min(max(wish, last + 1), frames - left)
            moved.append({**key, "frame": last})
        objects.append({**item, "keyframes": moved})
    return {**document, "frames": frames, "objects": objects}
