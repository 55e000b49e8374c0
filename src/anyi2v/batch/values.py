"""Validation of the values in a job file's line: types, seeds, sweeps and names; does not import torch."""

import contextlib
import re
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from anyi2v.comparators.settings import SETTINGS as COMPARATORS
from anyi2v.comparators.settings import Settings
from anyi2v.errors import AnyI2VError, InputError
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, OperatorKind, SamplerName, typed

MOST_JOBS = 100_000
"""Maximum number of jobs in one file, so that an accidental sweep does not exhaust the memory."""

_HINTS = typing.get_type_hints(MethodConfig)
SETTINGS = tuple(setting.name for setting in fields(MethodConfig))
SOURCE = {key: hint for key, hint in typing.get_type_hints(ConditionSource).items() if key not in ("image", "layer")}
KEYS: dict[str, Any] = {
    **{"image": Path, "layers": list[str], "prompt": str, "tracks": Path, "seed": int, "negative_prompt": str},
    **{"backbone": str, "recipe": Literal["paper", "official"], "backbone_settings": bool, "embeddings": list[str]},
    **{"frames": int, "fps": int, "sampler": SamplerName, "operators": OperatorKind, "name": str, "method": dict},
    "comparator": Settings,
    **SOURCE,
}
"""Keys of a line, besides settings such as `method.lr`, with the types of their values."""

RESERVED = ("index.html", "jobs.csv")
"""Names in the folder of a batch that jobs must not have."""


@contextlib.contextmanager
def noted(found: list[tuple[str, str]], key: str) -> Iterator[None]:
    """Add a user error raised in the body to `found`, under a key."""
    try:
        yield
    except AnyI2VError as error:
        found.append((key, str(error)))


def value_of(key: str, value: Any) -> Any:
    """Convert a value to the type of its key; raises InputError."""
    hint = KEYS[key]
    if hint is dict:
        raise InputError(f"{value!r:.60} is not allowed; it must be an object of settings")
    if hint is Settings:
        return _comparator(value)
    if hint == list[str]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed or not all(isinstance(item, str) and item for item in listed):
            raise InputError(f"{value!r:.60} is not allowed; it must be a list of file names")
        for item in listed:
            _check_text(item)
        return listed
    value = typed(key, value, str if hint is Path else hint)
    if isinstance(value, str):
        _check_text(value)
        if not value and hint is not str:
            raise InputError("it is empty")
    return value


def _comparator(value: Any) -> Settings:
    """Parse the settings of another method from its name or {"name": ..., setting: ...}; raises InputError."""
    settings = {"name": value} if isinstance(value, str) else value
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or name not in COMPARATORS:
        known = ", ".join(COMPARATORS)
        raise InputError(f'{value!r:.60} is not allowed; write one of {known}, or {{"name": ..., setting: ...}}')
    return COMPARATORS[name].from_dict({key: x for key, x in settings.items() if key != "name"})


def _check_text(value: str) -> None:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{value!r:.60} has a character that is not valid text")


def seeds_of(value: Any) -> list[int]:
    """Parse a seed, a list of seeds, or a range "0..9" including both ends; raises InputError."""
    if isinstance(value, dict):
        value = _listed("seed", value)
    if isinstance(value, str) and (ends := re.fullmatch(r"\s*(-?\d{1,20})\s*\.\.\s*(-?\d{1,20})\s*", value)):
        first, last = map(int, ends.groups())
        if not 0 <= last - first < MOST_JOBS:
            raise InputError(f"{value!r} has no seed, or more than {MOST_JOBS}")
        value = list(range(first, last + 1))
    seeds: list[Any] = value if isinstance(value, list) else [value]
    if not seeds:
        raise InputError("the list of seeds is empty")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InputError(f'{seed!r:.60} is not allowed; it must be a whole number, a list of them, or "0..9"')
        if not -(2**63) <= seed < 2**64:
            raise InputError(f"{seed} is not allowed; it must be an integer of at most 64 bits")
    _check_different(seeds)
    return seeds


def choices_of(name: str, value: Any, found: list[tuple[str, str]]) -> list[Any]:
    """Return all values of a setting; for a setting that is itself a list, only {"sweep": [...]} has several."""
    is_list = typing.get_origin(_HINTS[name]) is tuple
    choices = [value]
    with noted(found, f"method.{name}"):
        if isinstance(value, dict) or (isinstance(value, list) and not is_list):
            choices = _listed(name, value) if isinstance(value, dict) else value
        if not choices:
            raise InputError("the list of values is empty")
        for choice in choices:
            MethodConfig.from_dict({"optimise_steps": 0, name: choice})  # so that "align" may be empty
        _check_different([typed(name, choice, _HINTS[name]) for choice in choices])
    return choices


def _listed(key: str, value: dict[str, Any]) -> list[Any]:
    if value.keys() != {"sweep"} or not isinstance(value["sweep"], list):
        raise InputError(f'{value!r:.60} is not allowed; write several values as {{"sweep": [...]}}')
    return value["sweep"]


def _check_different(values: list[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]!r} is given twice")


def check_name(name: str) -> None:
    """Raise InputError for a name that is not valid for a job's folder."""
    bad = next((letter for letter in name if letter in '/\\:*?"|' or ord(letter) < 32), None)
    if bad is not None:
        raise InputError(f"{name!r:.60} is not allowed; a folder's name cannot contain {bad!r}")
    if not name or name.startswith((".", " ")) or name.endswith((".", " ")):
        raise InputError(f"{name!r:.60} is not allowed; a folder's name must not start or end with a dot or a space")
    if len(name.encode()) > 150:
        raise InputError(f"{name!r:.60} is not allowed; it is longer than 150 bytes")
    if name.lower() in RESERVED:
        raise InputError(f"{name!r} is not allowed; the batch has a file of this name")
