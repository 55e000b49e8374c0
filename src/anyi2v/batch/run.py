"""Execution of a batch's jobs, one by one in this process or in parallel by workers.

The files on disk are the only state: a job is done if its folder has a run with its inputs. A job that fails leaves
`ERROR` in its folder and does not affect the others.
"""

import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from anyi2v.backbone.networks import Backbone
from anyi2v.batch.ahead import Ahead
from anyi2v.batch.check import Task
from anyi2v.batch.request import Request
from anyi2v.batch.work import Inputs, Machine, load_backbone, memory_mode, read_inputs, run_job
from anyi2v.errors import AnyI2VError, AnyI2VWarning, ResourceError
from anyi2v.execution.cluster import Death, Workers, spread
from anyi2v.execution.machine import release_memory
from anyi2v.execution.memory import size_of
from anyi2v.files import atomic
from anyi2v.method.config import MethodConfig
from anyi2v.reports.folder import ERROR, BusyError, check_out, claimed, discard
from anyi2v.tracks import Box, Tracks

Status = Literal["made", "there", "busy", "failed"]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job in this invocation."""

    task: Task
    status: Status
    """Made now, already there, being made by another process, or failed."""
    seconds: float = 0.0
    message: str = ""
    """Message of a failure."""
    warnings: tuple[str, ...] = ()
    """Warnings issued during the job."""


@dataclass
class Maker:
    """Runs tasks; the backbone is kept loaded while consecutive tasks use it."""

    machine: Machine
    overwrite: bool = False
    """Replace runs with other inputs."""
    impossible: dict[str, str] = field(default_factory=dict)
    """Files that cannot be written on this machine, from `anyi2v.reports.writing.impossible_outputs`."""
    ahead: Ahead | None = None
    """Inverts the images of several jobs together; None: each job inverts its own."""
    backbone: Backbone | None = None
    of: tuple[Any, ...] = ()
    """Settings that the backbone was loaded with."""
    modes: dict[Any, bool] = field(default_factory=dict)

    def __call__(self, task: Task) -> Outcome:
        """Run a task unless it is already done.

        Only KeyboardInterrupt and the like propagate; the job in progress then leaves nothing.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AnyI2VWarning)
            outcome = self._outcome(task)
        said = [warning for warning in caught if issubclass(warning.category, AnyI2VWarning)]
        for warning in caught:
            if warning not in said:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return replace(outcome, warnings=tuple(str(warning.message) for warning in said))

    def _outcome(self, task: Task) -> Outcome:
        start = time.perf_counter()
        try:
            if task.done:
                return Outcome(task, "there")
            with claimed(task.folder):
                if task.done:  # another process has finished it meanwhile
                    return Outcome(task, "there")
                try:
                    self._make(task)
                    return Outcome(task, "made", time.perf_counter() - start)
                except Exception as error:  # any error must not affect the other jobs
                    _write_error(task, error)
                    return Outcome(task, "failed", time.perf_counter() - start, _message(error))
        except BusyError:
            return Outcome(task, "busy")
        except AnyI2VError as error:  # the folder is not writable, so the error cannot be written either
            return Outcome(task, "failed", time.perf_counter() - start, _message(error))

    def _make(self, task: Task) -> None:
        check_out(task.folder, overwrite=self.overwrite)
        request = task.job.request
        backbone = self._backbone(request)
        job = read_inputs(request)
        low_memory = self._low_memory(task, job, backbone)
        if self.ahead is not None:
            job = replace(job, features=self.ahead.features(task, backbone, low_memory=low_memory))
        run_job(
            backbone,
            job,
            self.machine,
            task.folder,
            low_memory=low_memory,
            overwrite=self.overwrite,
            impossible=self.impossible,
        )

    def _backbone(self, request: Request) -> Backbone:
        of = (request.backbone, request.operators, request.embeddings)
        if self.backbone is None or of != self.of:
            self.backbone = None  # released before the next one is loaded
            release_memory()
            self.backbone, self.of = load_backbone(request, self.machine), of
        return self.backbone

    def _low_memory(self, task: Task, job: Inputs, backbone: Backbone) -> bool:
        """Return whether a job needs low-memory mode.

        A prediction can take as long as a small job. Boxes as large as the frame are therefore tried first: if they
        fit, smaller boxes need no separate prediction.
        """
        usual, wanted, request = MethodConfig(), task.wanted, job.request
        method = replace(request.method, lr=usual.lr, weight_decay=usual.weight_decay)
        size = (wanted["frames"], wanted["width"], wanted["height"], len(job.tracks.objects))
        key = (request.backbone, request.operators, method, *size)
        loaded = sum(map(size_of, backbone.networks.values()))

        def needed(job: Inputs, key: tuple[Any, ...]) -> bool:
            if key not in self.modes:
                self.modes[key], _ = memory_mode(job, self.machine, loaded=loaded)
            return self.modes[key]

        tracks = job.tracks
        if all(x1 - x0 <= tracks.width and y1 - y0 <= tracks.height for x0, y0, x1, y1 in _boxes(tracks)):
            try:
                if not needed(replace(job, tracks=largest_boxes(tracks)), key):
                    return False
            except ResourceError:
                self.modes[key] = True
        return needed(job, (*key, wanted["checksums"]["tracks"]))


def _boxes(tracks: Tracks) -> Iterator[Box]:
    return (box for track in tracks.objects for box in track.boxes)


def largest_boxes(tracks: Tracks) -> Tracks:
    """Enlarge all boxes to the whole frame, which needs the most memory for this number of objects."""
    whole = (0.0, 0.0, float(tracks.width), float(tracks.height))
    return replace(tracks, objects=tuple(replace(track, boxes=(whole,) * len(track.boxes)) for track in tracks.objects))


def run_tasks(
    make: Callable[[], Maker], tasks: Sequence[Task], tell: Callable[[Outcome], object], workers: Workers | None = None
) -> list[Outcome]:
    """Run all tasks that are not done yet, and return their outcomes.

    Args:
        make: creates the `Maker`; called once in each process.
        tasks: tasks, started in this order.
        tell: called with the outcome of each job as soon as it is known.
        workers: parallel workers; None: run in this process.

    Raises what `anyi2v.execution.cluster.spread` raises; an exception in a job becomes its outcome.
    """
    outcomes = []
    for outcome in _outcomes(make, tasks, workers):
        outcomes.append(outcome)
        tell(outcome)
    return outcomes


def _outcomes(make: Callable[[], Maker], tasks: Sequence[Task], workers: Workers | None) -> Iterator[Outcome]:
    missing = {task.folder: task for task in tasks if not task.done}
    yield from (Outcome(task, "there") for task in tasks if task.folder not in missing)
    try:
        for task, outcome in spread(make, list(missing.values()), workers):
            del missing[task.folder]
            if isinstance(outcome, Death):
                discard(task.folder)
                _write_error(task, ResourceError(outcome.message))
                outcome = Outcome(task, "failed", message=outcome.message)
            yield outcome
    finally:
        if workers is not None:  # workers were killed if tasks are missing
            discard(*missing)


def _message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _write_error(task: Task, error: Exception) -> None:
    """Write why a job failed into its folder; ignored if that is not writable either."""
    data: dict[str, Any] = {"message": _message(error), "kind": type(error).__name__, "line": task.job.line}
    if not isinstance(error, AnyI2VError):
        data["traceback"] = "".join(traceback.format_exception(error))
    with suppress(AnyI2VError, OSError):
        write_json(task.folder / ERROR, data)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data as JSON atomically; raises ResourceError if the path cannot be written."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
