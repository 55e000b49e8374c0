"""Any track file: told by its content, never by its name. Free of torch."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anyi2v.errors import InputError
from anyi2v.files import expanded
from anyi2v.tracks import anyi2v_json, arrays, fractions, own, paths
from anyi2v.tracks.checks import shown
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.model import Tracks


class Format(NamedTuple):
    """A kind of track file."""

    title: str
    matches: Callable[[Any], bool]
    """Whether a file's content (JSON data, text, an array or named arrays) is of this kind."""
    read: Callable[[Any, Hints], Tracks]


FORMATS = (
    Format(own.TITLE, own.matches, own.read),
    Format(anyi2v_json.TITLE, anyi2v_json.matches, anyi2v_json.read),
    Format(arrays.SG_I2V, arrays.matches_sg_i2v, arrays.read_sg_i2v),
    Format(arrays.COTRACKER, arrays.matches_cotracker, arrays.read_cotracker),
    Format(fractions.FREETRAJ, fractions.matches_freetraj, fractions.read_freetraj),
    Format(fractions.TRAILBLAZER, fractions.matches_trailblazer, fractions.read_trailblazer),
    Format(paths.DRAG_ANYTHING, paths.matches_drag_anything, paths.read_drag_anything),
    Format(paths.VIPSEG, paths.matches_vipseg, paths.read_vipseg),
    Format(paths.IMAGE_CONDUCTOR, paths.matches_image_conductor, paths.read_image_conductor),
)
"""In the order in which they are tried."""


def load_tracks(
    path: str | Path, *, size: tuple[int, int] | None = None, box_size: tuple[float, float] | None = None
) -> Tracks:
    """Reads tracks from a file of any kind in `FORMATS`, or from a run.json of ours.

    Args:
        path: of the file; what it is, its content tells.
        size: (width, height) of the image that the tracks were drawn on; needed by the kinds that have its pixels
            without saying how many there are.
        box_size: (width, height) of the boxes of objects that have a path only, in pixels of the file's frame; by
            default squares of a quarter of the frame's shorter side.

    Raises InputError naming file, object and key.
    """
    return read_tracks(path, size=size, box_size=box_size)[1]


def read_tracks(
    path: str | Path, *, size: tuple[int, int] | None = None, box_size: tuple[float, float] | None = None
) -> tuple[str, Tracks]:
    """`load_tracks`, and the name of the file's kind."""
    path = expanded(path)
    hints = Hints(size, box_size, path.parent)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        content = _content(raw)
        kind = recognise(content)
        return kind.title, kind.read(content, hints)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def tracks_from_dict(data: Any) -> Tracks:
    """Tracks from the plain data of any JSON format; raises InputError."""
    return recognise(data).read(data, Hints())


def recognise(content: Any) -> Format:
    """The kind of a file's content; raises InputError telling what it is and what there is."""
    for kind in FORMATS:
        if kind.matches(content):
            return kind
    titles = ", ".join(kind.title for kind in FORMATS)
    raise InputError(f"this is no track file, but {_described(content)}; formats that can be read: {titles}")


def _content(raw: bytes) -> Any:
    """JSON data, text, an array, or a dict of arrays."""
    if raw.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
        return _numpy(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"this is no track file: neither text nor NumPy's, it begins with {shown(raw)}") from error
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"this JSON cannot be read: {error!s:.100}") from error


def _numpy(raw: bytes) -> Any:
    try:
        loaded = np.load(io.BytesIO(raw), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # on broken files NumPy and zipfile raise a dozen kinds, up to SyntaxError
        raise InputError(f"this NumPy file cannot be read: {str(error).splitlines()[0]:.100}") from error


def _described(content: Any) -> str:
    if isinstance(content, dict):
        what = "a .npz file" if any(isinstance(value, np.ndarray) for value in content.values()) else "a JSON object"
        return f"{what} with {', '.join(f'{key!r:.40}' for key in list(content)[:8]) or 'no keys'}"
    if isinstance(content, str):
        return f"text that begins with {shown(content.lstrip()[:40])}" if content.strip() else "empty"
    return f"a JSON list that begins with {shown(content[:2])}" if isinstance(content, list) else shown(content)
