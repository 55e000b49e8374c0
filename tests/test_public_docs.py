"""What the API reference (docs/reference) shows is documented, and it shows every name that a page imports."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import anyi2v

ROOT = Path(__file__).parents[1]
SHOWN = sorted(
    identifier
    for page in (ROOT / "docs" / "reference").glob("*.md")
    for identifier in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
)
ARGS = re.compile(r"^Args:\n((?:    .*\n?|\n)+)", re.MULTILINE)
RAISED_BY = {"failure": "NumericsError"}
"""Functions that return the exception to raise, by its name."""


def resolved(identifier: str) -> Any:
    """The object behind a dotted name, whose longest importable part is a module."""
    parts = identifier.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{identifier} does not exist")


def members(where: str, found: Any) -> Iterator[tuple[str, Any]]:
    """An object and, of a module or class, its own public members, as far as they can have a docstring."""
    if isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(found) if callable(found) else found
    if not isinstance(found, ModuleType) and not inspect.isclass(found) and not inspect.isfunction(found):
        return
    yield where, found
    if not inspect.isfunction(found):
        home = found.__name__ if isinstance(found, ModuleType) else found.__module__
        for name, member in vars(found).items():
            member = getattr(member, "__func__", member)
            own = isinstance(member, property) or getattr(member, "__module__", None) == home
            if own and (not name.startswith("_") or name == "__call__"):
                yield from members(f"{where}.{name}", member)


@cache
def documented() -> dict[str, Any]:
    return {where: found for identifier in SHOWN for where, found in members(identifier, resolved(identifier))}


def functions() -> dict[str, Any]:
    return {where: found for where, found in documented().items() if inspect.isfunction(found)}


def test_the_reference_is_complete() -> None:
    assert {f"anyi2v.{name}" for name in anyi2v.__all__} - {"anyi2v.AnyI2VError"} <= set(SHOWN)
    assert len(functions()) > 150


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_what_pages_import_is_in_the_reference(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module, names in re.findall(r"^from (anyi2v\.\S+) import (.+)$", text, re.MULTILINE):
        for name in names.split(", "):
            found = resolved(f"{module}.{name}")
            home = getattr(found, "__module__", module)
            assert {module, home, f"{home}.{name}", f"{module}.{name}"} & set(SHOWN), f"{module}.{name}"


def test_there_are_docstrings() -> None:
    """Each begins with a sentence."""
    first = {where: (inspect.getdoc(found) or "").split("\n\n")[0] for where, found in documented().items()}
    assert not {where for where, text in first.items() if not re.match(r"[A-Z\"'`].*[.:]$", text, re.DOTALL)}


def args(text: str) -> set[str] | None:
    """Names in a docstring's section Args; None without one."""
    section = ARGS.search(text)
    return set(re.findall(r"^    (\w+):", section[1], re.MULTILINE)) if section else None


def parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def test_lists_of_arguments_are_whole() -> None:
    wrong = {}
    for where, found in documented().items():
        described = args(inspect.getdoc(found) or "")
        wanted = parameters(found.__init__ if inspect.isclass(found) else found) if described else described
        if described != wanted:
            wrong[where] = (described, wanted)
    assert not wrong


def raised(function: Any) -> set[str]:
    """Names of the exceptions that a function raises itself; functions inside it are others."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    names, pending = set(), list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise):
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(made, ast.Name) and (made.id[0].isupper() or made.id in RAISED_BY):
                names.add(RAISED_BY.get(made.id, made.id))
    return names


def test_errors_are_named() -> None:
    """A docstring says of each exception that the function raises itself that it does."""
    silent = set()
    for where, function in functions().items():
        text = inspect.getdoc(function) or ""
        silent |= {(where, name) for name in raised(function) if name not in text or "raise" not in text.lower()}
    assert not silent


def test_the_checks_themselves_notice() -> None:
    def incomplete(a: int, b: int) -> None:
        """Do something.

        Args:
            a: one of two.
        """
        raise ValueError(a + b)

    assert args(inspect.getdoc(incomplete) or "") == {"a"} != parameters(incomplete)
    assert raised(incomplete) == {"ValueError"}
    assert raised(raised) == set()
