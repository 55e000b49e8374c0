"""Reading of track files in any format, detected from the content, never from the name."""

import codecs
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.files import expanded
from anyi2v.tracks import annotations, anyi2v_json, arrays, fractions, own, paths, texts
from anyi2v.tracks.checks import shown
from anyi2v.tracks.hints import Hints
from anyi2v.tracks.model import Tracks
from anyi2v.tracks.stored import Stored, stored_arrays

MAX_BYTES = 1 << 26
"""Maximum size of a text or JSON file, which takes about ten times as much memory."""
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and encodings, UTF-32 first, because its mark starts with UTF-16's."""


class Format(NamedTuple):
    """A track file format."""

    title: str
    matches: Callable[[Any], bool]
    """Return whether a file's content (JSON data, text, a `Stored` array or several by name) has this format."""
    read: Callable[[Any, Hints], Tracks]


FORMATS = (
    Format(own.TITLE, own.matches, own.read),
    Format(anyi2v_json.TITLE, anyi2v_json.matches, anyi2v_json.read),
    Format(arrays.SG_I2V, arrays.matches_sg_i2v, arrays.read_sg_i2v),
    Format(arrays.COTRACKER_NPY, arrays.matches_cotracker_npy, arrays.read_cotracker_npy),
    Format(arrays.COTRACKER, arrays.matches_cotracker, arrays.read_cotracker),
    Format(arrays.TAPNET, arrays.matches_tapnet, arrays.read_tapnet),
    Format(arrays.TAP_VID, arrays.matches_tap_vid, arrays.read_tap_vid),
    Format(fractions.FREETRAJ, fractions.matches_freetraj, fractions.read_freetraj),
    Format(texts.MOT, texts.matches_mot, texts.read_mot),
    Format(texts.XY, texts.matches_xy, texts.read_xy),
    Format(fractions.TRAILBLAZER, fractions.matches_trailblazer, fractions.read_trailblazer),
    Format(annotations.LABELME, annotations.matches_labelme, annotations.read_labelme),
    Format(annotations.COCO, annotations.matches_coco, annotations.read_coco),
    Format(paths.DRAG_ANYTHING, paths.matches_drag_anything, paths.read_drag_anything),
    Format(paths.VIPSEG, paths.matches_vipseg, paths.read_vipseg),
    Format(paths.SPLINE, paths.matches_spline, paths.read_spline),
    Format(paths.IMAGE_CONDUCTOR, paths.matches_image_conductor, paths.read_image_conductor),
)
"""All formats, in the order in which they are tried."""


def load_tracks(
    path: str | Path, *, size: tuple[int, int] | None = None, box_size: tuple[float, float] | None = None
) -> Tracks:
    """Read tracks from a file in any format of `FORMATS`, or from a run.json.

    Args:
        path: the file; its format is detected from the content.
        size: (width, height) of the image that the tracks were drawn on; required by formats with pixel coordinates
            that do not contain it.
        box_size: (width, height) of the boxes of objects that only have a path, in pixels of the file's frame; by
            default squares of a quarter of the frame's shorter side.

    Warns about a file without objects, unless it is the record of a run without objects. Raises InputError naming file,
    object and key.
    """
    path = expanded(path)
    content, _, tracks = _read(path, Hints(size, box_size, path.parent))
    if not tracks.objects and not own.is_record(content):
        warnings.warn(f"{path} has no objects to follow, so the motion is not controlled", AnyI2VWarning, stacklevel=2)
    return tracks


def read_tracks(
    path: str | Path, *, size: tuple[int, int] | None = None, box_size: tuple[float, float] | None = None
) -> tuple[str, Tracks]:
    """Read tracks like `load_tracks`, and return them with the name of the format."""
    path = expanded(path)
    _, kind, tracks = _read(path, Hints(size, box_size, path.parent))
    return kind.title, tracks


def _read(path: Path, hints: Hints) -> tuple[Any, Format, Tracks]:
    try:
        content = content_of(path)
        kind = recognise(content)
        return content, kind, kind.read(content, hints)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def tracks_from_dict(data: Any, hints: Hints | None = None) -> Tracks:
    """Build tracks from the plain data of any JSON format; raises InputError."""
    return recognise(data).read(data, hints or Hints())


def recognise(content: Any) -> Format:
    """Detect the format of a file's content; raises InputError describing the content and listing the formats."""
    for kind in FORMATS:
        if kind.matches(content):
            return kind
    titles = ", ".join(kind.title for kind in FORMATS)
    raise InputError(f"this is not a track file, but {_described(content)}; supported formats: {titles}")


def content_of(path: Path) -> Any:
    """Read JSON data, text, a stored array, or a dict of those; raises OSError, or InputError for anything else."""
    with path.open("rb") as file:
        raw = file.read(8)
        if raw.startswith((b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")):
            return stored_arrays(path)
        if raw.startswith(b"\x80") and raw[1:2] in b"\2\3\4\5":
            raise InputError(
                "this is a pickle, which is not loaded because it may run code; save its arrays with numpy.savez, for "
                "example points= and occluded= of a TAP-Vid video"
            )
        raw += file.read(MAX_BYTES)
    if len(raw) > MAX_BYTES:
        raise InputError(f"the file has more than {MAX_BYTES >> 20} MiB, too much for a track file")
    encoding = next((encoding for mark, encoding in BOMS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"this is not a track file: neither text nor NumPy, it starts with {shown(raw)}") from error
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"this is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"this JSON cannot be read: {error!s:.100}") from error


def _described(content: Any) -> str:
    if isinstance(content, dict):
        what = "a .npz file" if any(isinstance(value, Stored) for value in content.values()) else "a JSON object"
        return f"{what} with {', '.join(f'{key!r:.40}' for key in list(content)[:8]) or 'no keys'}"
    if isinstance(content, Stored):
        return f"an array of {content}"
    if isinstance(content, str):
        return f"text that starts with {shown(content.lstrip()[:40])}" if content.strip() else "empty"
    return f"a JSON list that starts with {shown(content[:2])}" if isinstance(content, list) else shown(content)
