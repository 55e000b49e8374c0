"""Reading of job files in three formats, as keys and values with line numbers; does not import torch."""

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
"""Maximum size of a job file."""


@dataclass(frozen=True)
class Row:
    """A line of a job file, or its problem."""

    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_rows(path: Path, kinds: Mapping[str, Any]) -> tuple[list[Row], str]:
    """Read the rows of a job file, and the unit of their numbers: lines, from 1, or entries of a JSON list.

    The first row of CSV is the header, whose keys have no values. The format is given by the suffix: .jsonl (or
    .ndjson), .json, .csv.

    Args:
        path: the file.
        kinds: type of each key's value; in CSV, cells of type text or path stay text.

    Raises InputError if the file as a whole is not readable.
    """
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list}
    suffix = path.suffix.lower()
    if suffix not in (*readers, ".csv"):
        raise InputError(f"{path} is not a job file; its name must end in .jsonl, .json or .csv")
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
        raise InputError(f"{path} has more than {MAX_BYTES >> 20} MiB, too much for a job file")
    try:
        return raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: this is not text in UTF-8") from error


class _Twice(ValueError):
    """Raised for a duplicate key of an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise _Twice(f"duplicate key {twice[0]!r:.60}")
    return dict(pairs)


def _row(line: int, data: Any) -> Row:
    if not isinstance(data, dict):
        return Row(line, problem=f"this is a JSON {type(data).__name__}; expected an object {{...}}")
    return Row(line, data)


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: text may have other separators
        if not line.strip():
            continue
        try:
            rows.append(_row(number, json.loads(line, object_pairs_hook=_once)))
        except json.JSONDecodeError as error:
            rows.append(Row(number, problem=f"this is not JSON: {error.msg} at column {error.colno}"))
        except (ValueError, RecursionError) as error:  # thousands of digits or nested brackets
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
        raise InputError(f"{path} holds a JSON {kind}; expected a list of jobs [...]")
    rows = []
    for number, entry in enumerate(data, 1):
        try:
            rows.append(_row(number, _resolved(entry)))
        except _Twice as error:
            rows.append(Row(number, problem=str(error)))
    return rows


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with unchecked keys, so that a duplicate key can be reported with its entry."""


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
        raise InputError(f"{path} has no jobs")
    if header.problem:
        raise InputError(f"{path}, line {header.line}: {header.problem}")
    names = [name.strip() for name in header.values["cells"]]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or "" in names:
        what = f"duplicate column {twice[0]!r}" if twice and twice[0] else "a column has no name"
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
    """Yield the non-empty records as `{"cells": [...]}`, with the line that each starts on."""
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
    """Convert a cell: text for text types, else its JSON value, or text if it is not JSON."""
    if kind in (str, Path):
        return text
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return {"true": True, "false": False}.get(text.strip().lower(), text)
