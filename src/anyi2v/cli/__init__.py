"""The command line: `anyi2v COMMAND ...`."""

# Flags and help are generated from the dataclasses. torch is imported only when work starts, so that --help is fast.

import errno
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

import anyi2v
from anyi2v.cli.animate import Animate
from anyi2v.cli.animate_defaults import animate_defaults
from anyi2v.cli.batch import BatchCommand
from anyi2v.cli.bench import BenchBackbone, BenchMicro, BenchScaling, BenchStages
from anyi2v.cli.compare import Compare
from anyi2v.cli.condition import Condition, Segments
from anyi2v.cli.convert import Convert
from anyi2v.cli.evaluate import EvalVBench, EvalVideos
from anyi2v.cli.examples import Examples
from anyi2v.cli.inspection import Inspect
from anyi2v.cli.messages import LOGGER, bars, logged, quiet, remark, result, split_level
from anyi2v.cli.studio import Studio
from anyi2v.cli.subcommands import COMPLETION, completion, flat, subcommands
from anyi2v.cli.tracks import TracksCheck, TracksConvert, TracksFromVideo, TracksShow
from anyi2v.cli.vipseg import EvalVIPSeg
from anyi2v.errors import AnyI2VError, AnyI2VWarning
from anyi2v.execution.threads import wait_passively
from anyi2v.files import with_home


@dataclass(frozen=True)
class Demo:
    """Run the method on the shipped micro backbone; needs no input files.

    Examples:
    $ anyi2v demo
    $ anyi2v demo --out somewhere
    """

    out: Path = Path("demo")
    """Output folder for videos and pictures."""
    backbone: str = "micro"
    """Name or file of a backbone trained on the synthetic world."""
    overwrite: bool = False
    """Replace the files of an earlier demo in the folder; other files are kept."""

    def run(self) -> None:
        """Run the demo."""
        from anyi2v.micro.benchmark import demo
        from anyi2v.reports.overview import INDEX

        remark(demo.run(self.out, backbone=self.backbone, overwrite=self.overwrite, progress=bars()))
        remark(f"pictures: {self.out / demo.SHEET}; videos: {self.out}/*/video.mp4")
        page = self.out / INDEX
        result(page, f"page: {page}")


HELP = """Animate any conditional image along drawn tracks.

$ anyi2v animate --example edge
$ anyi2v examples
$ anyi2v COMMAND --help

The first command makes a video from files that ship with the package, the second lists these, the third explains a
command and gives examples. Without a command, --version prints the version, and --print-completion bash (or zsh) a
script that completes commands and flags in the shell.

All commands take --quiet, to print nothing but errors and the paths of results, and -v or --verbose, to print details
such as the device, the dtype, predicted memory and the use of the cache.
"""
"""Description of the program."""

COMMON = "Also: --quiet, -v or --verbose, as for all commands; see `anyi2v --help`."
"""End of the description of every command."""

COMMANDS: dict[str, Any] = {
    "animate": Animate,
    "examples": Examples,
    "batch": BatchCommand,
    "condition": Condition,
    "segments": Segments,
    "studio": Studio,
    "demo": Demo,
    "inspect": Inspect,
    "compare": Compare,
    "convert": Convert,
    "tracks": {
        "show": TracksShow,
        "convert": TracksConvert,
        "check": TracksCheck,
        "from-video": TracksFromVideo,
    },
    "eval": {"videos": EvalVideos, "vipseg": EvalVIPSeg, "vbench-export": EvalVBench},
    "bench": {
        "micro": BenchMicro,
        "backbone": BenchBackbone,
        "stages": BenchStages,
        "scaling": BenchScaling,
    },
}


def parse(args: Sequence[str], commands: Mapping[str, Any] = COMMANDS, prog: str = "anyi2v") -> Any:
    """Parse the command in `args`; exits with a message and code 2 for invalid flags."""
    name = args[0] if args else ""
    if name not in commands:
        help_text = inspect.cleandoc(HELP) if commands is COMMANDS else None
        return tyro.cli(subcommands(flat(commands)), prog=prog, args=args, description=help_text)
    kind, prog = commands[name], f"{prog} {name}"
    if isinstance(kind, dict):
        return parse(args[1:], kind, prog)
    default = animate_defaults(args[1:]) if name == "animate" else tyro.MISSING_NONPROP
    description = f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{COMMON}"
    return tyro.cli(kind, prog=prog, args=args[1:], default=default, description=description)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program `anyi2v` and return its exit code.

    0 is success, 1 that jobs of a batch failed, 2 an error that the user can fix, with one line on stderr, and 130
    Ctrl-C.
    """
    level, args = split_level(sys.argv[1:] if args is None else args)
    with logged(level):
        try:
            return _run(args)
        except BrokenPipeError:
            if not _reader_left():
                raise
        except AnyI2VError as error:
            return _refused(str(error))
        except OSError as error:
            # any access to a path longer than the system allows
            if error.errno != errno.ENAMETOOLONG:
                raise
            return _refused(f"{error.filename}: {error.strerror}")
        except KeyboardInterrupt:
            LOGGER.critical("anyi2v: interrupted; finished files are kept, partial ones are not")
            return 130  # the exit code that shells use for Ctrl-C
    return 0


def _run(args: Sequence[str]) -> int:
    """Run a command, or print what a flag without command asks for; return the exit code."""
    wait_passively()
    if list(args) == ["--version"]:
        print(f"anyi2v {anyi2v.__version__}")
        return 0
    if args and args[0] == COMPLETION:
        print(completion(args[1:], COMMANDS))
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = partial(_print_warning, warnings.showwarning, set())
        warnings.simplefilter("always", AnyI2VWarning)
        code = with_home(parse(args)).run()
    sys.stdout.flush()
    return code or 0


def _reader_left() -> bool:
    """Return whether the reader of the output has gone (`| head`); the remaining output is then discarded."""
    try:
        print(flush=True)  # at worst an empty line before an unrelated traceback
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _print_warning(
    usual: Callable[..., None], printed: set[str], message: Warning | str, category: type[Warning], *rest: Any
) -> None:
    """Print our own warnings once, on one line and without source location; others by the `usual` function."""
    if issubclass(category, AnyI2VWarning):
        if str(message) not in printed:
            LOGGER.warning(message)
        printed.add(str(message))
    elif not quiet():
        usual(message, category, *rest)


def _refused(message: str) -> int:
    LOGGER.error(message)
    return 2
