"""The values of a line of a file of jobs: their types, seeds, sweeps and names. Free of torch."""

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
"""In one file; a sweep by mistake is found before it fills the memory."""

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
"""What a line may have beside `method.lr` and the like, and the type of its value."""

RESERVED = ("index.html", "jobs.csv")
"""Names in the folder of a batch that are no job's."""


@contextlib.contextmanager
def noted(found: list[tuple[str, str]], key: str) -> Iterator[None]:
    """Puts an error of the body that a user can mend into `found`, under a key."""
    try:
        yield
    except AnyI2VError as error:
        found.append((key, str(error)))


def value_of(key: str, value: Any) -> Any:
    """A value as the type of its key; raises InputError."""
    hint = KEYS[key]
    if hint is dict:
        raise InputError(f"{value!r:.60} is not allowed; it must be an object of settings")
    if hint is Settings:
        return _comparator(value)
    if hint == list[str]:
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed or not all(isinstance(item, str) and item for item in listed):
            raise InputError(f"{value!r:.60} is not allowed; it must be a list of names of files")
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
    """The settings of another method, from its name or {"name": ..., setting: ...}; raises InputError."""
    settings = {"name": value} if isinstance(value, str) else value
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or name not in COMPARATORS:
        known = ", ".join(COMPARATORS)
        raise InputError(f'{value!r:.60} is not allowed; write one of {known}, or {{"name": ..., setting: ...}}')
    return COMPARATORS[name].from_dict({key: x for key, x in settings.items() if key != "name"})


def _check_text(value: str) -> None:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{value!r:.60} holds a letter that no text has")


def seeds_of(value: Any) -> list[int]:
    """A seed, a list of seeds, or "0..9", which has both ends; raises InputError."""
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
            raise InputError(f"{seed} is not allowed; it must be a whole number of at most 64 bits")
    _check_different(seeds)
    return seeds


def choices_of(name: str, value: Any, found: list[tuple[str, str]]) -> list[Any]:
    """All values of a setting; of one that is a list itself, only {"sweep": [...]} has several."""
    is_list = typing.get_origin(_HINTS[name]) is tuple
    choices = [value]
    with noted(found, f"method.{name}"):
        if isinstance(value, dict) or (isinstance(value, list) and not is_list):
            choices = _listed(name, value) if isinstance(value, dict) else value
        if not choices:
            raise InputError("the list of values is empty")
        for choice in choices:
            MethodConfig.from_dict({"optimise_steps": 0, name: choice})  # without which "align" may be empty
        _check_different([typed(name, choice, _HINTS[name]) for choice in choices])
    return choices


def _listed(key: str, value: dict[str, Any]) -> list[Any]:
    if value.keys() != {"sweep"} or not isinstance(value["sweep"], list):
        raise InputError(f'{value!r:.60} is not allowed; several values are written {{"sweep": [...]}}')
    return value["sweep"]


def _check_different(values: list[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]!r} is there twice")


def check_name(name: str) -> None:
    """Raises InputError for a name that is no folder's below that of the batch."""
    bad = next((letter for letter in name if letter in '/\\:*?"|' or ord(letter) < 32), None)
    if bad is not None:
        raise InputError(f"{name!r:.60} is not allowed; a folder's name cannot hold {bad!r}")
    if not name or name.startswith((".", " ")) or name.endswith((".", " ")):
        raise InputError(f"{name!r:.60} is not allowed; a folder's name begins and ends with other letters")
    if len(name.encode()) > 150:
        raise InputError(f"{name!r:.60} is not allowed; it is longer than 150 bytes")
    if name.lower() in RESERVED:
        raise InputError(f"{name!r} is not allowed; the batch has a file of this name")
