"""The jobs of a file, before any of the files that they name is read. Free of torch.

A file is JSON Lines, a JSON list, or CSV with a header; each line is an object of `KEYS` and settings of the method.
Nothing is refused at the first mistake: all of them are collected, each with its line and key.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anyi2v.backbone.config import BackboneConfig
from anyi2v.batch.request import Request
from anyi2v.batch.rows import Row, read_rows
from anyi2v.batch.values import KEYS, MOST_JOBS, SETTINGS, SOURCE, check_name, choices_of, noted, seeds_of, value_of
from anyi2v.checkpoints.header import SHIPPED, read_config
from anyi2v.errors import AnyI2VError, InputError, closest
from anyi2v.files import expanded
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe


@dataclass(frozen=True)
class Problem:
    """A mistake in a file of jobs."""

    line: int
    key: str
    """Empty if it is about the whole line."""
    message: str


class Mistakes(Exception):
    """Those of one line, as pairs of key and message."""

    def __init__(self, found: Iterable[tuple[str, str]]):
        self.found = list(found)
        super().__init__(self.found)


@dataclass(frozen=True)
class BatchJob:
    """One job of a file."""

    line: int
    name: str
    """Of its folder."""
    request: Request
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the method that its line gives."""


@dataclass(frozen=True)
class JobFile:
    """What a file of jobs says."""

    path: Path
    jobs: list[BatchJob]
    problems: list[Problem]
    unit: str = "line"
    """What `line` counts: in a JSON list, entries."""

    def where(self, problem: Problem) -> str:
        """The problem as one line for people."""
        key = f", {problem.key}" if problem.key else ""
        return f"{self.path}, {self.unit} {problem.line}{key}: {problem.message}"


def read_jobs(path: str | Path) -> JobFile:
    """The jobs of a file, and all mistakes that can be found without reading what the jobs name.

    Paths in the file are relative to its folder. A line with a list of seeds or of values of settings is several jobs.

    Raises InputError if the file as a whole cannot be read, or holds no job at all.
    """
    path = expanded(path)
    rows, unit = read_rows(path, KEYS)
    reader = _Reader(path.parent)
    jobs: list[BatchJob] = []
    problems: list[Problem] = []
    if path.suffix.lower() == ".csv":
        rows = list(_of_known_columns(rows, problems))
    for row in rows:
        try:
            jobs += reader.jobs(row, MOST_JOBS - len(jobs))
        except Mistakes as mistakes:
            problems += [Problem(row.line, *mistake) for mistake in mistakes.found]
    if not jobs and not problems:
        raise InputError(f"{path} holds no job")
    counts = Counter(job.name.casefold() for job in jobs)  # some file systems do not tell upper from lower case
    first: dict[str, int] = {}
    for job in jobs:
        former = first.setdefault(job.name.casefold(), job.line)
        if counts[job.name.casefold()] > 1 and former != job.line:
            text = f"{job.name!r} is also the folder of {unit} {former}; each job needs one of its own"
            problems.append(Problem(job.line, "name", text))
    return JobFile(path, jobs, problems, unit)


def _of_known_columns(rows: list[Row], problems: list[Problem]) -> Iterator[Row]:
    """The rows of CSV below the header, whose unknown columns are mistakes of its line alone."""
    found: list[tuple[str, str]] = []
    header, *below = rows
    _sorted(header, found)
    problems += [Problem(header.line, *mistake) for mistake in found]
    unknown = {key for key, _ in found}
    for row in below:
        yield replace(row, values={key: value for key, value in row.values.items() if key not in unknown})


class _Reader:
    """Makes jobs of rows; paths are below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.configs: dict[str, BackboneConfig | AnyI2VError] = {}

    def jobs(self, row: Row, most: int) -> list[BatchJob]:
        """The jobs of a row; raises Mistakes."""
        if row.problem:
            raise Mistakes([("", row.problem)])
        found: list[tuple[str, str]] = []
        plain, settings = _sorted(row, found)
        values: dict[str, Any] = {}
        for key, value in plain.items():
            with noted(found, key):
                values[key] = seeds_of(value) if key == "seed" else value_of(key, value)
        # in one order, so that names and order of the jobs do not depend on that of the keys
        swept = {name: choices_of(name, settings[name], found) for name in SETTINGS if name in settings}
        self._check_whole(values, plain, found)
        base = self._base(values, swept, found)
        seeds = values.get("seed", [0])
        count = len(seeds)
        for choices in swept.values():
            count *= len(choices)
        if not found and count > most:
            found.append(("", f"these are {count} jobs; a file has at most {MOST_JOBS} in all"))
        if found:
            raise Mistakes(found)
        jobs = []
        for *chosen, seed in itertools.product(*swept.values(), seeds):
            chosen = dict(zip(swept, chosen, strict=True))
            with noted(found, "method"):
                method = MethodConfig.from_dict({**base.to_dict(), **chosen}) if chosen else base
                request = self._request(values, method, seed)
                jobs.append(BatchJob(row.line, _name(row.line, request, values, chosen, swept), request, chosen))
        if found:
            raise Mistakes(dict.fromkeys(found))
        return jobs

    def _check_whole(self, values: dict[str, Any], plain: Mapping[str, Any], found: list[tuple[str, str]]) -> None:
        """What a line needs, and a name that can be a folder's."""
        if "image" not in plain and "layers" not in plain:
            found.append(("image", "there is no condition image; give an image, or layers"))
        if "prompt" not in plain:
            found.append(("prompt", "there is none; say what the video shows"))
        if "name" in values:
            with noted(found, "name"):
                check_name(values["name"])

    def _base(
        self, values: Mapping[str, Any], swept: Mapping[str, list[Any]], found: list[tuple[str, str]]
    ) -> MethodConfig:
        """The settings that those of the line are put on top of: the recipe's and the backbone's own."""
        own: Mapping[str, Any] = {}
        with noted(found, "backbone"):
            config = self._config(self._backbone(values))
            own = config.method if values.get("backbone_settings", True) else {}
        return recipe(values.get("recipe", "paper"), own)

    def _config(self, backbone: str) -> BackboneConfig:
        if backbone not in self.configs:
            try:
                self.configs[backbone] = read_config(backbone)
            except AnyI2VError as error:
                self.configs[backbone] = error
        found = self.configs[backbone]
        if isinstance(found, AnyI2VError):
            raise found.with_traceback(None)
        return found

    def _backbone(self, values: Mapping[str, Any]) -> str:
        name = values.get("backbone", "micro")
        return name if name in SHIPPED else str(self._path(name))

    def _path(self, name: str | Path) -> Path:
        return self.folder / expanded(name)

    def _request(self, values: Mapping[str, Any], method: MethodConfig, seed: int) -> Request:
        """The job that a row describes, with one of its seeds and of its settings of the method."""
        paths = {key: self._path(values[key]) for key in ("image", "tracks") if key in values}
        source = ConditionSource(
            image=paths.get("image"),
            layer=tuple(self._layer(text) for text in values.get("layers", ())),
            **{key: values[key] for key in SOURCE if key in values},
        )
        return Request(
            source=source,
            method=method,
            seed=seed,
            tracks=paths.get("tracks"),
            backbone=self._backbone(values),
            embeddings=tuple(map(self._path, values.get("embeddings", ()))),
            **{
                key: values[key]
                for key in ("prompt", "negative_prompt", "frames", "fps", "sampler", "operators", "comparator")
                if key in values
            },
        )

    def _layer(self, text: str) -> str:
        """`image` or `image:mask` with both below the folder; colons may be parts of names that are there."""
        colons = [i for i, letter in enumerate(text) if letter == ":"]
        if not colons or _there(self._path(text)):
            return str(self._path(text))
        for i in reversed(colons):
            if _there(self._path(text[:i])) and _there(self._path(text[i + 1 :])):
                break
        else:
            i = colons[-1]
        return f"{self._path(text[:i])}:{self._path(text[i + 1 :])}" if text[i + 1 :] else text


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or one that cannot be
        return False


def _sorted(row: Row, found: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row's values by their keys, and its settings of the method by theirs; what is unknown goes to `found`."""
    plain: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in row.values.items():
        if key == "method" and isinstance(value, dict):
            given = {f"method.{name}": content for name, content in value.items()}
        elif key.startswith("method."):
            given = {key: value}
        elif key not in KEYS:
            known = [*KEYS, *(f"method.{name}" for name in SETTINGS)]
            hint = f"; settings are written method.{key}" if key in SETTINGS else ""
            found.append((key, f"there is no such key{hint}; the closest are {closest(key, known)}"))
            continue
        else:
            if value is not None:
                plain[key] = value
            continue
        for full, content in given.items():
            name = full.removeprefix("method.")
            if name not in SETTINGS:
                text = f"the method has no setting {name!r}; the closest are {closest(name, SETTINGS)}"
                found.append((full, text))
            elif name in settings:
                found.append((full, "it is given twice, as method.* and within method"))
            else:
                settings[name] = content
    return plain, settings


def _name(
    line: int, request: Request, values: Mapping[str, Any], chosen: Mapping[str, Any], swept: Mapping[str, list[Any]]
) -> str:
    """The folder's name: the line's own, or its number and the words of its prompt; and what is swept, or the seed."""
    parts = list(_swept_parts(chosen, swept))
    if "name" in values:
        several = len(values.get("seed", [0])) > 1
        return "-".join([values["name"], *([f"s{request.seed}"] if several else []), *parts])
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40].strip("-") or "prompt"
    return "-".join([f"{line:04}-{slug}-s{request.seed}", *parts])


def _swept_parts(chosen: Mapping[str, Any], swept: Mapping[str, list[Any]]) -> Iterator[str]:
    for name, choices in swept.items():
        if len(choices) > 1:
            value = chosen[name]
            short = f"{choices.index(value) + 1}" if isinstance(value, list | tuple) else f"{value}"
            yield f"{name}-{short}"
