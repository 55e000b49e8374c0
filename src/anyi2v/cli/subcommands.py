"""Tables of commands as types that tyro parses, and shell completion."""

import contextlib
import inspect
import io
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, Union

import tyro

from anyi2v.errors import InputError

COMPLETION = "--print-completion"
"""Flag that asks for a completion script."""
SHELLS = ("bash", "zsh")


def flat(commands: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without groups, in which a command of a group is named after both."""
    found = {}
    for name, kind in commands.items():
        found |= {f"{name} {sub}": part for sub, part in kind.items()} if isinstance(kind, dict) else {name: kind}
    return found


def subcommands(commands: Mapping[str, Any]) -> Any:
    """Return the type that tyro parses into one of the commands, each described by the first line of its docstring."""
    found = []
    for name, kind in commands.items():
        kind = _group(name, kind) if isinstance(kind, dict) else kind
        first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
        found.append(Annotated[Any, tyro.conf.subcommand(name, constructor=kind, description=first)])
    return Union[tuple(found)]  # noqa: UP007 (the members are only known here)


def _group(name: str, commands: Mapping[str, Any]) -> type:
    """Return a class that tyro parses from the command that follows the group's name."""
    choice = Annotated[subcommands(commands), tyro.conf.arg(name="")]
    return make_dataclass(name, [("command", choice)], namespace={"__doc__": f"{', '.join(commands)}."})


def _with_common_flags(commands: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with the flags of all commands added to each."""
    flags = [("quiet", bool, False), ("verbose", Annotated[bool, tyro.conf.arg(aliases=["-v"])], False)]
    return {
        name: _with_common_flags(kind)
        if isinstance(kind, dict)
        else make_dataclass(kind.__name__, flags, bases=(kind,), frozen=True, kw_only=True)
        for name, kind in commands.items()
    }


def completion(args: Sequence[str], commands: Mapping[str, Any], prog: str = "anyi2v") -> str:
    """Return the script that completes commands and flags in the shell that `args` names.

    Raises InputError unless it is one of `SHELLS`.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        raise InputError(f"{COMPLETION} needs the name of a shell: {', '.join(SHELLS)}")
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        table = subcommands(_with_common_flags(commands))
        tyro.cli(table, prog=prog, args=["--tyro-print-completion", args[0]])
    # a candidate and its description must be one line of the completer's output
    lines = script.getvalue().splitlines()
    return "\n".join(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line for line in lines)
