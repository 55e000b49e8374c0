"""Validation of values read from files, with errors that name them."""

import reprlib
from collections.abc import Collection, Iterable
from typing import Any

from anyi2v.errors import InputError, closest

MAX_FRAMES = 10_000
"""Maximum number of frames, so that a typing error does not exhaust the memory."""
MAX_OBJECTS = 1000
MAX_BOXES = 1_000_000
"""Maximum number of boxes over all objects and frames, 200 MB."""
MAX_SIDE = 65_536
"""Maximum width and height of a frame of reference in pixels."""


def get(data: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """Return `data[key]`, checked by `typed`; raises InputError listing the existing keys."""
    if key not in data:
        keys = ", ".join(map(repr, list(data)[:12])) or "no keys"
        raise InputError(f"{where}: key {key!r} is missing; it has {keys:.200}")
    return typed(data[key], kind, f"{where}: {key}")


def typed(value: Any, kind: type, where: str) -> Any:
    """Return `value` if it is a `kind` (booleans are not numbers); raises InputError otherwise."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where} must be {_KINDS[kind]}, not {shown(value)}")
    return value


_KINDS = {dict: "an object {...}", list: "a list", str: "a text", int: "a whole number"}


def number(value: Any, where: str) -> float:
    """Convert `value` to a float; raises InputError."""
    return row([value], 1, where, f"{where} must be a number, not {shown(value)}")[0]


def frame_number(value: Any, where: str, low: int) -> int:
    """Check that `value` is a frame number of at least `low`; raises InputError."""
    frame = typed(value, int, where)
    if not low <= frame <= MAX_FRAMES:
        raise InputError(f"{where} is {shown(frame)}; it must be {low} to {MAX_FRAMES}")
    return frame


def rows(values: Any, size: int, where: str) -> tuple[Any, ...]:
    """Convert `values` to a tuple of tuples of `size` floats; raises InputError naming the entry, from 1."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{where} must be a list of lists of {size} numbers, not {shown(values)}")
    converted = []
    for number, value in enumerate(values, 1):
        try:
            converted.append(row(value, size, where))
        except InputError as error:
            raise InputError(f"{where}: entry {number} is {shown(value)}; it must be {size} numbers") from error
    return tuple(converted)


def row(value: Any, size: int, where: str, message: str | None = None) -> tuple[float, ...]:
    """Convert `value` to a tuple of `size` floats; raises InputError with `message`."""
    try:
        numbers = tuple(float(item) for item in value if not isinstance(item, str | bytes | bool))
        if len(numbers) == size == len(value):
            return numbers
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(message or f"{where} is {shown(value)}; it must be {size} numbers")


def known_keys(data: dict[str, Any], allowed: Collection[str], where: str) -> None:
    """Raise InputError for an unknown key, usually a typing error."""
    for key in data:
        if key not in allowed:
            raise InputError(f"{where}: key {key!r:.60} is not known here; the closest are {closest(key, allowed)}")


def check_size(width: int, height: int) -> None:
    """Raise InputError for an invalid size of a frame of reference."""
    for name, value in (("width", width), ("height", height)):
        if not 1 <= value <= MAX_SIDE:
            raise InputError(f"tracks: {name} is {shown(value)}; it must be at least 1 pixel and at most {MAX_SIDE}")


def check_counts(objects: int, frames: int) -> None:
    """Raise InputError if the objects would exhaust the memory, which even a small file can cause."""
    if objects > MAX_OBJECTS or frames > MAX_FRAMES:
        raise InputError(
            f"the file has {objects} tracks of {frames} frames; at most {MAX_OBJECTS} of {MAX_FRAMES} can be used: "
            "choose some of them"
        )
    if objects * frames > MAX_BOXES:
        raise InputError(
            f"the file has {objects} tracks of {frames} frames; at most {MAX_BOXES} boxes can be used in all: choose "
            "some of them"
        )


def text(numbers: Iterable[float]) -> str:
    """Format numbers in brackets, in short form."""
    return "(" + ", ".join(f"{value:g}" for value in numbers) + ")"


def shown(value: Any) -> str:
    """Format `value` in at most 60 characters, regardless of its size and depth."""
    try:
        return f"{reprlib.repr(value):.60}"
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"a {type(value).__name__} too long to print"
