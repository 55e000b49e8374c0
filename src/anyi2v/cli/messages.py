"""Messages of the command line: results on stdout, everything else on stderr through the logger "anyi2v".

Only the command line configures logging; the library's modules log to loggers below "anyi2v".
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyi2v.timing import Progress

LOGGER = logging.getLogger("anyi2v")
LEVELS = {"--quiet": logging.ERROR, "-v": logging.DEBUG, "--verbose": logging.DEBUG}
"""Level of messages by the flags of all commands."""
PREFIXES = {logging.WARNING: "anyi2v: warning: ", logging.ERROR: "anyi2v: error: "}


def split_level(args: Sequence[str]) -> tuple[int, list[str]]:
    """Return the level that the flags of `LEVELS` ask for, by default INFO, and the other arguments."""
    asked = [LEVELS[arg] for arg in args if arg in LEVELS]
    return (asked[-1] if asked else logging.INFO), [arg for arg in args if arg not in LEVELS]


class _Lines(logging.Handler):
    """Prints each message as one line on stderr, above any progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, with its logger's name if it is for debugging."""
        prefix = f"{record.name}: " if record.levelno <= logging.DEBUG else PREFIXES.get(record.levelno, "")
        line = prefix + " ".join(record.getMessage().split())
        if (bars := sys.modules.get("tqdm")) is not None:
            bars.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


@contextmanager
def logged(level: int) -> Iterator[None]:
    """Print messages from this level on, in the `with` block."""
    handler, former, propagated = _Lines(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False  # other packages may add handlers of their own to the root
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(former)
        LOGGER.propagate = propagated


def quiet() -> bool:
    """Return whether only errors and the paths of results are printed."""
    return not LOGGER.isEnabledFor(logging.WARNING)


def result(path: Path | str, line: str) -> None:
    """Print a line about a result on stdout; with --quiet, only its path."""
    print(path if quiet() else line, flush=True)


def remark(text: str) -> None:
    """Print a table or a remark about results on stdout, unless --quiet is given."""
    if not quiet():
        print(text, flush=True)


def remark_following(run: Path) -> None:
    """Print how closely each object of a run follows its track, and what to try if one does not."""
    from anyi2v.files import read_json
    from anyi2v.reports.folder import RECORD
    from anyi2v.reports.following import advice, recorded

    data = read_json(run / RECORD)
    found = recorded(data)
    for one in found:
        remark(f"  {one.name}: {', '.join(filter(None, (one.distance, one.verdict)))}")
    if text := advice(found, data["parts"].get("method")):
        remark(f"  {text}")


def bars() -> bool:
    """Return whether to draw progress bars: on a terminal without --quiet."""
    return sys.stderr.isatty() and not quiet()


def progress() -> "Progress | bool":
    """Return the progress of a job: bars on a terminal, else a message when a stage begins and ends."""
    from anyi2v.timing import Lines

    return bars() or Lines()
