"""What can go wrong for a user, by what the user can do about it.

Messages name the thing (object, frame, key), its value, what is allowed, and the way out. Each class also is
the builtin error that Python programmers expect, so `except ValueError` works.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AnyI2VError(Exception):
    """Base of all errors that a user can mend."""

    def __str__(self) -> str:
        # KeyError would print the message's repr
        return str(self.args[0]) if self.args else ""


class InputError(AnyI2VError, ValueError):
    """An image, prompt, track or setting is not usable."""


class CheckpointError(AnyI2VError, ValueError):
    """A weights file is not what it should be."""


class HookError(AnyI2VError, KeyError):
    """A hook point or layer does not exist, or an edit changed a tensor's shape or dtype."""


class NumericsError(AnyI2VError, ArithmeticError):
    """A value became NaN or infinite."""


class ResourceError(AnyI2VError, RuntimeError):
    """Memory, disk or a device does not suffice."""


class AnyI2VWarning(UserWarning):
    """Something that is allowed, but is probably not what was meant; issued through `warnings.warn`.

    The command line prints one line per warning on stderr.
    """


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The `count` known names most like `name`, as text for an error message."""
    return ", ".join(get_close_matches(name, list(known), n=count, cutoff=0.0))
