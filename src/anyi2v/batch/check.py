"""Checks of a batch before any work; each file that its lines refer to is read once."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.text import tokenize
from anyi2v.batch.jobs import BatchJob, Problem
from anyi2v.batch.work import Inputs, check_inputs, shadow, wanted
from anyi2v.checkpoints.embeddings import read_embeddings
from anyi2v.checkpoints.header import read_config
from anyi2v.comparators.registry import comparator
from anyi2v.comparators.settings import Settings, SparseCtrlSettings
from anyi2v.errors import AnyI2VError, HookError, InputError
from anyi2v.files import check_place, expanded, read_json
from anyi2v.images.conditions import load_condition
from anyi2v.images.fit import Fit
from anyi2v.images.media import load_placed
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig
from anyi2v.pipeline import bound_sampler
from anyi2v.reports.folder import RECORD, check_out, recover
from anyi2v.reports.record import Fingerprint, control_sha256, differences, sha256, weights_sha256
from anyi2v.samplers import SAMPLERS
from anyi2v.tracks import Tracks

T = TypeVar("T")
WORDS = {
    "frames per second": "fps",
    "frames requested": "frames",
    "window=": "method.window",
    "seed": "seed",
    "inversion until timestep": "method.inversion_timestep",
    "sampling steps": "method.steps",
    "inversion stride": "method.inversion_stride",
}
"""Maps phrases in messages of `check_inputs` to the key that they are about; the first match is used."""


@dataclass(frozen=True)
class Task:
    """A valid job, and the values that the record in its folder must have for it to be done."""

    job: BatchJob
    folder: Path
    wanted: Mapping[str, Any]
    """See `anyi2v.batch.work.wanted`; without the tracks themselves."""

    @property
    def done(self) -> bool:
        """Whether the folder has the finished run."""
        recover(self.folder)
        path = self.folder / RECORD
        return path.is_file() and not differences(read_json(path), self.wanted)


class Checker:
    """Checks jobs one by one; files shared by several jobs are read and checked once.

    Args:
        out: folder of the batch.
        asked: as in `anyi2v.batch.work.Machine`.
        overwrite: whether runs with other inputs may be replaced.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any], *, overwrite: bool = False):
        self.out, self.asked, self.overwrite = expanded(out), asked, overwrite
        self.problems: list[Problem] = []
        self.known: dict[Any, Any] = {}

    def task(self, job: BatchJob) -> Task | None:
        """Check a job and return its task; None if it is invalid, with the reasons added to `problems`."""
        request, before = job.request, len(self.problems)
        with self._problem(job, "backbone"):
            config = self._once(("config", request.backbone), lambda: read_config(request.backbone))
            weights = self._once(("weights", request.backbone), lambda: weights_sha256(request.backbone))
        if len(self.problems) > before:
            return None
        seen = tracks = control = None
        if self._size_fits(job, config):
            with self._problem(job, "image" if request.source.image is not None else "layers"):
                seen, fit = self._condition(request.source, config)
            if seen is not None:
                with self._problem(job, "tracks"):
                    tracks = self._once(("tracks", request.tracks, fit), lambda: load_placed(request.tracks, fit))
        self._check_text(job, config)
        self._check_settings(job, config)
        if len(self.problems) > before or seen is None or tracks is None:
            return None
        if request.comparator is not None:
            with self._problem(job, "comparator"):
                unet = self._once(("unet", request.backbone), lambda: shadow(config))
                frames = config.frames if request.frames is None else request.frames
                comparator(request.comparator).check(request.method, unet, tracks, request.prompt, frames)
                control = self._control(request.comparator)
        if len(self.problems) > before:
            return None
        with self._problem(job, "name"):
            record = wanted(request, self.asked, config, seen, tracks, weights, control)
            del record["tracks"]  # the checksum is compared instead
            task = Task(job, self.out / job.name, record)
            self._check_folder(task)
            return task
        return None

    @contextmanager
    def _problem(self, job: BatchJob, key: str) -> Iterator[None]:
        try:
            yield
        except AnyI2VError as error:
            self.problems.append(Problem(job.line, key, str(error)))

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        """Return, or raise, the cached outcome of `make`."""
        if key not in self.known:
            try:
                self.known[key] = make()
            except AnyI2VError as error:
                self.known[key] = error
        found = self.known[key]
        if isinstance(found, AnyI2VError):
            raise found.with_traceback(None)
        return found

    def _size_fits(self, job: BatchJob, config: BackboneConfig) -> bool:
        source, before = job.request.source, len(self.problems)
        with self._problem(job, "width" if source.width is not None else "height"):
            config.check_size(
                config.width if source.width is None else source.width,
                config.height if source.height is None else source.height,
            )
        return len(self.problems) == before

    def _condition(self, source: ConditionSource, config: BackboneConfig) -> tuple[Fingerprint, Fit]:
        """Return the image's fingerprint and placement; the pixels are not kept."""

        def read() -> tuple[Fingerprint, Fit]:
            image, fit = load_condition(**source.condition(config))
            return Fingerprint.of(image), fit

        return self._once(("image", source, config.width, config.height), read)

    def _control(self, settings: Settings) -> str | None:
        """Return the checksum of the method's sparse control network, if it has one."""
        if not isinstance(settings, SparseCtrlSettings):
            return None
        return self._once(("control", settings.control), lambda: control_sha256(settings.control))

    def _check_text(self, job: BatchJob, config: BackboneConfig) -> None:
        request = job.request
        embeddings: dict[str, Tensor] = {}
        with self._problem(job, "embeddings"):
            if request.embeddings:
                key = ("embeddings", request.embeddings, request.backbone)
                embeddings = self._once(key, lambda: read_embeddings(request.embeddings, config.text))
                self._once(("checksums", request.embeddings), lambda: [sha256(path) for path in request.embeddings])
        for key in ("prompt", "negative_prompt"):
            text = getattr(request, key)
            known = ("text", text, request.embeddings, request.backbone)
            with self._problem(job, key):
                self._once(known, lambda text=text: tokenize(config.text, [text], embeddings).shape)

    def _check_settings(self, job: BatchJob, config: BackboneConfig) -> None:
        """Check the method against the backbone, and the number of frames, frame rate and sampler."""
        request = job.request
        # whether a job can run does not depend on these values
        numbers = {"lr": MethodConfig.lr, "weight_decay": MethodConfig.weight_decay, "guidance_scale": 1.0}
        method = self._once(("method", request.method), lambda: replace(request.method, **numbers))
        known = (request.backbone, method, request.frames, request.fps)
        try:
            unet = self._once(("unet", request.backbone), lambda: shadow(config))
            image = torch.zeros(1).expand(3, config.height, config.width)
            checked = Inputs(replace(request, comparator=None), config, image, Tracks(config.width, config.height))
            self._once(("settings", *known), lambda: check_inputs(checked, unet))
        except HookError as error:
            self.problems.append(Problem(job.line, _setting(str(error)), str(error)))
        except AnyI2VError as error:
            key = next((key for words, key in WORDS.items() if words in str(error)), _setting(str(error)))
            self.problems.append(Problem(job.line, key, str(error)))
        with self._problem(job, "sampler"):
            bound_sampler(SAMPLERS[request.sampler](), request.method, request.seed)

    def _check_folder(self, task: Task) -> None:
        """Raise InputError if the folder has a run with other inputs, or other files."""
        if not task.folder.exists():
            return
        if task.done:
            return
        path = task.folder / RECORD
        if path.is_file() and not self.overwrite:
            found = "; ".join(differences(read_json(path), task.wanted))
            raise InputError(
                f"folder {task.folder} has a run with other inputs ({found}); use --overwrite to rerun it, or "
                "give another folder"
            )
        check_out(task.folder, overwrite=self.overwrite)


def _setting(message: str) -> str:
    """Return the key of the method's setting that a message names."""
    names = sorted(MethodConfig().to_dict(), key=len, reverse=True)
    name = next((name for name in names if name in message), None)
    return f"method.{name}" if name else "method"


def check_batch(out: Path) -> None:
    """Raise InputError for a folder that cannot be a batch's, ResourceError if it cannot be written."""
    out = expanded(out)
    if os.path.exists(out) and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    if (out / RECORD).exists():
        raise InputError(f"{out} is a run; a batch needs a folder for its runs")
    check_place(out)
