"""Checks of fields in third-party configurations for supported values."""

from collections.abc import Mapping
from typing import Any

from anyi2v.errors import CheckpointError

Json = Mapping[str, Any]


def expect(data: Json, what: str, required: Json) -> None:
    """Raise CheckpointError unless every field of `required` is absent from `data` or has the required value.

    An absent field has its library's default, which is the supported value.
    """
    for name, value in required.items():
        if name in data and data[name] != value:
            raise CheckpointError(f"{what}: {name} is {data[name]!r}, but only {value!r} is supported")


def one_of(values: list[str], meaning: Mapping[str, Any], field: str) -> list[Any]:
    """Map values to their meanings; raises CheckpointError, naming the field, for an unsupported value."""
    for value in values:
        if value not in meaning:
            raise CheckpointError(f"{field}: {value!r} is not supported, only {', '.join(meaning)}")
    return [meaning[value] for value in values]


def same(data: Json, name: str, levels: int) -> int:
    """Return a number that may also be given once per level; raises CheckpointError unless all are equal."""
    value = data[name]
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(set(values)) != 1 or len(values) != levels:
        raise CheckpointError(f"{name} is {value!r}, but only the same number for all {levels} levels is supported")
    return values[0]
