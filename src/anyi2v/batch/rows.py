"""The rows of a file of jobs in its three formats, as keys and values with line numbers. Free of torch."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.files import expanded

MAX_BYTES = 1 << 28
"""Of a file of jobs."""


@dataclass(frozen=True)
class Row:
    """A line of a file, or what is wrong about it."""

    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_rows(path: Path, kinds: Mapping[str, Any]) -> tuple[list[Row], str]:
    """The rows of a file and what their numbers count: lines, from 1, or entries of a JSON list.

    The first row of CSV is the header, whose keys have no values.

    The ending of the file's name tells its format: .jsonl (or .ndjson), .json, .csv.

    Args:
        path: of the file.
        kinds: the type of each key's value; of CSV, text stays text where the type is text or a path.

    Raises InputError if the file as a whole cannot be read.
    """
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list}
    suffix = path.suffix.lower()
    if suffix not in (*readers, ".csv"):
        raise InputError(f"{path} is no file of jobs by its name; it must end in .jsonl, .json or .csv")
    text = _text(path)
    if suffix == ".csv":
        return _csv(path, text, kinds), "line"
    return readers[suffix](path, text), "entry" if suffix == ".json" else "line"


def _text(path: Path) -> str:
    path = expanded(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES >> 20} MiB, which no file of jobs needs")
    try:
        return raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: this is not text in UTF-8") from error


class _Twice(ValueError):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise _Twice(f"the key {twice[0]!r:.60} is there twice")
    return dict(pairs)


def _row(line: int, data: Any) -> Row:
    if not isinstance(data, dict):
        return Row(line, problem=f"this is a JSON {type(data).__name__}; an object {{...}} is needed")
    return Row(line, data)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: text may hold other separators
        if not line.strip():
            continue
        try:
            rows.append(_row(number, json.loads(line, object_pairs_hook=_once)))
        except json.JSONDecodeError as error:
            rows.append(Row(number, problem=f"this is not JSON: {error.msg} at column {error.colno}"))
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
            rows.append(Row(number, problem=f"this JSON cannot be read: {error!s:.100}"))
    return rows


def _json_list(path: Path, text: str) -> list[Row]:
    try:
        data = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error!s:.100}") from error
    if not isinstance(data, list) or isinstance(data, _Pairs):
        kind = "object" if isinstance(data, _Pairs) else type(data).__name__
        raise InputError(f"{path} holds a JSON {kind}; a list of jobs [...] is needed")
    rows = []
    for number, entry in enumerate(data, 1):
        try:
            rows.append(_row(number, _resolved(entry)))
        except _Twice as error:
            rows.append(Row(number, problem=str(error)))
    return rows


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON whose keys have not been looked at, so that a mistake is known by its entry."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _resolved(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _resolved(item) for key, item in _once(value).items()}
    return [_resolved(item) for item in value] if isinstance(value, list) else value


def _csv(path: Path, text: str, kinds: Mapping[str, Any]) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = _records(reader)
    header = next(records, None)
    if header is None:
        raise InputError(f"{path} holds no job")
    if header.problem:
        raise InputError(f"{path}, line {header.line}: {header.problem}")
    names = [name.strip() for name in header.values["cells"]]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or "" in names:
        what = f"column {twice[0]!r} is there twice" if twice and twice[0] else "a column has no name"
        raise InputError(f"{path}, line {header.line}: {what}")
    rows = [Row(header.line, dict.fromkeys(names))]
    for record in records:
        cells = record.values.get("cells", [])
        if record.problem:
            rows.append(record)
        elif len(cells) != len(names):
            problem = f"{len(cells)} cells, but the header has {len(names)} columns"
            rows.append(Row(record.line, problem=problem))
        else:
            values = {name: _cell(cell, kinds.get(name)) for name, cell in zip(names, cells, strict=True) if cell}
            rows.append(Row(record.line, values))
    return rows


def _records(reader: Any) -> Iterator[Row]:
    """The records that are not empty, as `{"cells": [...]}`, each by the line that it begins on."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, problem=f"this is not CSV: {error}")
            continue
        if any(cells):
            yield Row(line, {"cells": cells})


def _cell(text: str, kind: Any) -> Any:
    """A cell's value: text where text is wanted, else what it says in JSON, or text if that is nothing."""
    if kind in (str, Path):
        return text
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return {"true": True, "false": False}.get(text.strip().lower(), text)
