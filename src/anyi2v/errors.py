"""Exceptions and warnings, classified by what the user can do about them.

Messages name the item (object, frame, key), its value, what is allowed and how to fix it. Each class also derives from
the matching built-in exception, so `except ValueError` works.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AnyI2VError(Exception):
    """Base class of all errors that a user can fix."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class InputError(AnyI2VError, ValueError):
    """An image, prompt, track or setting is not usable."""


class CheckpointError(AnyI2VError, ValueError):
    """A weights file is damaged, incomplete or of an unsupported format."""


class HookError(AnyI2VError, KeyError):
    """A hook point or layer does not exist, or an edit changed a tensor's shape or dtype."""


class NumericsError(AnyI2VError, ArithmeticError):
    """A value became NaN or infinite."""


class ResourceError(AnyI2VError, RuntimeError):
    """Memory, disk space or a device is insufficient or unavailable."""


class AnyI2VWarning(UserWarning):
    """A setting or input that is allowed but probably not intended; issued through `warnings.warn`.

    The command line prints one line per warning on stderr.
    """


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the `count` known names most similar to `name`, comma-separated, for an error message."""
    return ", ".join(get_close_matches(name, list(known), n=count, cutoff=0.0))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; the closest are ..." with up to three known names that resemble `name`, "" if none does."""
    found = get_close_matches(name, list(known))
    return f"; the closest are {', '.join(found)}" if found else ""


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 frame" or "2 frames", for a message."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
