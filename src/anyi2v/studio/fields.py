"""Settings of a dataclass as form fields; names, types and help texts come from the class, as for flags.

Forms have numbers, texts, choices and check boxes; tuples are texts with commas between items.
"""

import ast
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from anyi2v.errors import InputError
from anyi2v.method.config import typed

Kind = Literal["choice", "truth", "whole", "number", "text"]


@dataclass(frozen=True)
class Setting:
    """A field of a form."""

    name: str
    kind: Kind
    hint: Any
    text: str
    """Help text: the docstring of the dataclass field."""
    choices: tuple[str, ...] = ()
    """Options of a choice."""
    optional: bool = False
    """Whether it may be left empty, which means None."""

    @property
    def label(self) -> str:
        """Name with spaces instead of underscores."""
        return self.name.replace("_", " ")


def settings_of(kind: type[Any]) -> list[Setting]:
    """Return the fields of a dataclass in order, inherited ones first, each with its docstring in the source."""
    hints = typing.get_type_hints(kind)
    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if dataclasses.is_dataclass(cls):
            texts |= _texts(cls)
    return [_setting(field.name, hints[field.name], texts.get(field.name, "")) for field in dataclasses.fields(kind)]


def _texts(kind: type[Any]) -> dict[str, str]:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    found: dict[str, str] = {}
    for field, text in pairwise(getattr(tree, "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _setting(name: str, hint: Any, text: str) -> Setting:
    inner, optional = hint, False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner, optional = typing.get_args(hint)[0], True
    if typing.get_origin(inner) is Literal:
        return Setting(name, "choice", hint, text, tuple(map(str, typing.get_args(inner))), optional)
    kinds: dict[Any, Kind] = {bool: "truth", int: "whole", float: "number"}
    return Setting(name, kinds.get(inner, "text"), hint, text, (), optional)


def shown(setting: Setting, value: Any) -> Any:
    """Convert a value to its form in the page; the inverse of `parsed`."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if setting.optional:  # numbers too are text then, as a number field of gradio cannot be empty: it becomes 0
        return "" if value is None else str(value)
    return value


def parsed(setting: Setting, value: Any) -> Any:
    """Parse a form value into a value of the setting; raises InputError naming the setting."""
    if value is None or (value == "" and setting.optional):
        if setting.optional:
            return None
        raise InputError(f"{setting.name} is empty; give a value")
    if setting.kind == "text" and isinstance(value, str):
        inner = typing.get_args(setting.hint)[0] if setting.optional else setting.hint
        value = _items(setting.name, value, typing.get_args(inner)[0])
    elif setting.kind in ("whole", "number"):
        value = _number(setting.name, value) if setting.optional and isinstance(value, str) else value
        value = _whole(value) if setting.kind == "whole" else value
    return typed(setting.name, value, setting.hint)


def _items(name: str, text: str, kind: type[Any]) -> tuple[Any, ...]:
    """Split a text at its commas; numbers may have spaces between them instead."""
    if kind is str:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    numbers = [_number(name, item) for item in re.split(r"[,\s]+", text) if item]
    return tuple(map(_whole, numbers)) if kind is int else tuple(numbers)


def _whole(value: Any) -> Any:
    """Convert 2.0, as number fields give it, to 2; other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name}: {text!r:.40} is not a number") from None


def parsed_all(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parse the settings of a dataclass from form values whose keys start with `prefix`; raises InputError."""
    return {
        setting.name: parsed(setting, values[prefix + setting.name])
        for setting in settings_of(kind)
        if prefix + setting.name in values
    }
