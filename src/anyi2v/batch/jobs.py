"""Parsing of job files, before any file that they refer to is read; does not import torch.

A file is JSON Lines, a JSON list, or CSV with a header; each line is an object of `KEYS` and settings of the method.
All problems are collected, each with its line and key.
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
from anyi2v.checkpoints.header import SHIPPED, SHIPPED_CONTROLS, read_config
from anyi2v.comparators.settings import Settings, SparseCtrlSettings
from anyi2v.errors import AnyI2VError, InputError, closest
from anyi2v.files import expanded
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe


@dataclass(frozen=True)
class Problem:
    """A problem in a job file."""

    line: int
    key: str
    """Key that the problem is about; empty for the whole line."""
    message: str


class Mistakes(Exception):
    """Raised with all problems of one line, as pairs of key and message."""

    def __init__(self, found: Iterable[tuple[str, str]]):
        self.found = list(found)
        super().__init__(self.found)


@dataclass(frozen=True)
class BatchJob:
    """One job of a job file."""

    line: int
    name: str
    """Name of the job's folder."""
    request: Request
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method given in the job's line."""


@dataclass(frozen=True)
class JobFile:
    """Contents of a job file."""

    path: Path
    jobs: list[BatchJob]
    problems: list[Problem]
    unit: str = "line"
    """Unit of line numbers: "line", or "entry" for a JSON list."""

    def where(self, problem: Problem) -> str:
        """Format a problem on one line."""
        key = f", {problem.key}" if problem.key else ""
        return f"{self.path}, {self.unit} {problem.line}{key}: {problem.message}"


def read_jobs(path: str | Path) -> JobFile:
    """Read a job file, with all problems that can be found without reading the files it refers to.

    Paths in the file are relative to its folder. A line with a list of seeds or of setting values expands to several
    jobs.

    Raises InputError if the file as a whole is not readable, or has no jobs.
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
        raise InputError(f"{path} has no jobs")
    counts = Counter(job.name.casefold() for job in jobs)  # some file systems ignore case
    first: dict[str, int] = {}
    for job in jobs:
        former = first.setdefault(job.name.casefold(), job.line)
        if counts[job.name.casefold()] > 1 and former != job.line:
            text = f"{job.name!r} is also the folder of {unit} {former}; each job needs its own"
            problems.append(Problem(job.line, "name", text))
    return JobFile(path, jobs, problems, unit)


def _of_known_columns(rows: list[Row], problems: list[Problem]) -> Iterator[Row]:
    """Yield the CSV rows below the header, reporting unknown columns once, for the header's line."""
    found: list[tuple[str, str]] = []
    header, *below = rows
    _sorted(header, found)
    problems += [Problem(header.line, *mistake) for mistake in found]
    unknown = {key for key, _ in found}
    for row in below:
        yield replace(row, values={key: value for key, value in row.values.items() if key not in unknown})


class _Reader:
    """Converts rows to jobs, with paths relative to `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.configs: dict[str, BackboneConfig | AnyI2VError] = {}
        self.bases: dict[tuple[str, str | None], MethodConfig] = {}

    def jobs(self, row: Row, most: int) -> list[BatchJob]:
        """Return the jobs of a row; raises Mistakes."""
        if row.problem:
            raise Mistakes([("", row.problem)])
        found: list[tuple[str, str]] = []
        plain, settings = _sorted(row, found)
        values: dict[str, Any] = {}
        for key, value in plain.items():
            with noted(found, key):
                values[key] = seeds_of(value) if key == "seed" else value_of(key, value)
        # fixed order, so that names and order of the jobs do not depend on the order of keys
        swept = {name: choices_of(name, settings[name], found) for name in SETTINGS if name in settings}
        self._check_whole(values, plain, found)
        base = self._base(values, swept, found)
        seeds = values.get("seed", [0])
        count = len(seeds)
        for choices in swept.values():
            count *= len(choices)
        if not found and count > most:
            found.append(("", f"this expands to {count} jobs; a file has at most {MOST_JOBS} in all"))
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
        """Check a line's required keys, and that its name is valid for a folder."""
        if "image" not in plain and "layers" not in plain:
            found.append(("image", "the condition image is missing; give an image, or layers"))
        if "prompt" not in plain:
            found.append(("prompt", "the prompt is missing; describe the video"))
        if "name" in values:
            with noted(found, "name"):
                check_name(values["name"])

    def _base(
        self, values: Mapping[str, Any], swept: Mapping[str, list[Any]], found: list[tuple[str, str]]
    ) -> MethodConfig:
        """Return the base settings, of the recipe and the backbone, that the line's settings override."""
        own: Mapping[str, Any] = {}
        backbone, uses_own = self._backbone(values), values.get("backbone_settings", True)
        with noted(found, "backbone"):
            config = self._config(backbone)
            own = config.method if uses_own else {}
        name = values.get("recipe", "paper")
        key = (name, backbone if uses_own else None)
        if key not in self.bases:
            self.bases[key] = recipe(name, own)
        return self.bases[key]

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
        """Build the request of a row for one seed and one set of method settings."""
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
            comparator=self._comparator(values.get("comparator")),
            **{
                key: values[key]
                for key in ("prompt", "negative_prompt", "frames", "fps", "sampler", "operators")
                if key in values
            },
        )

    def _comparator(self, settings: Settings | None) -> Settings | None:
        """Resolve the file of a sparse control network relative to the folder."""
        if not isinstance(settings, SparseCtrlSettings) or settings.control in (None, *SHIPPED_CONTROLS):
            return settings
        return replace(settings, control=str(self._path(settings.control)))

    def _layer(self, text: str) -> str:
        """Resolve `image` or `image:mask` relative to the folder; existing files may have colons in their names."""
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
    except (OSError, ValueError):  # too long or invalid name
        return False


def _sorted(row: Row, found: list[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a row into plain values and settings of the method; unknown keys are added to `found`."""
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
            found.append((key, f"unknown key{hint}; the closest are {closest(key, known)}"))
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
                found.append((full, "it is given twice, as method.* and inside method"))
            else:
                settings[name] = content
    return plain, settings


def _name(
    line: int, request: Request, values: Mapping[str, Any], chosen: Mapping[str, Any], swept: Mapping[str, list[Any]]
) -> str:
    """Return the folder's name: the line's name, or its number, prompt and seed, plus the values of swept settings."""
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
