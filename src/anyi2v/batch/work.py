"""One job from a user's request to the files of its run, shared by single runs, sweeps and batches."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v import pipeline
from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import UNet
from anyi2v.batch.request import Request
from anyi2v.checkpoints import checkpoint
from anyi2v.checkpoints.header import read_config
from anyi2v.comparators.registry import comparator
from anyi2v.comparators.settings import name_of
from anyi2v.execution import memory
from anyi2v.images import media
from anyi2v.images.conditions import load_condition
from anyi2v.job import Result, check_asked
from anyi2v.method.anyi2v import check_settings
from anyi2v.method.footprint import Footprint
from anyi2v.reports.record import Fingerprint, Origin, RunInputs
from anyi2v.reports.writing import write_run
from anyi2v.samplers import SAMPLERS
from anyi2v.taps import Taps, no_taps
from anyi2v.timing import Progress
from anyi2v.tracks import Tracks

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """Device, dtype and memory settings that jobs are computed with."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """Dtype of the networks."""
    low_memory: bool = False
    """Use low-memory mode even if there is enough memory."""
    cache: Path | None = None
    """Folder that caches inverted images."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Values of device, dtype, threads and memory that a matching run's record must have; missing ones match
    anything."""


@dataclass(frozen=True)
class Inputs:
    """A request together with the contents of its files."""

    request: Request
    config: BackboneConfig
    image: Float[Tensor, "3 h w"]
    """Condition image at the video's size."""
    tracks: Tracks
    """In pixels of the video."""
    features: Mapping[str, Tensor] | None = None
    """Features of the condition, as for `anyi2v.animate`, if already known."""


def read_inputs(request: Request) -> Inputs:
    """Read the files of a request.

    Raises InputError naming the file or size that is not usable, CheckpointError for a broken backbone.
    """
    config = read_config(request.backbone)
    image, fit = load_condition(**request.source.condition(config))
    return Inputs(request, config, image, media.load_placed(request.tracks, fit))


def wanted(
    request: Request,
    asked: Mapping[str, Any],
    config: BackboneConfig,
    seen: Fingerprint,
    tracks: Tracks,
    weights: str | None = None,
    control: str | None = None,
) -> dict[str, Any]:
    """Return the values that a run's record must have to match a request; see `anyi2v.reports.record.differences`.

    Args:
        request: the job.
        asked: as in `Machine`.
        config: configuration of the request's backbone.
        seen: fingerprint of the condition image at the video's size.
        tracks: in pixels of the video.
        weights: `weights_sha256` of the backbone, if already known.
        control: `control_sha256` of the request's sparse control network, if already known.
    """
    same = dict(asked)
    if request.operators != "fast":
        same["operators"] = request.operators
    inputs = RunInputs(
        backbone=request.backbone,
        image=seen,
        tracks=tracks,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        frames=config.frames if request.frames is None else request.frames,
        fps=config.fps if request.fps is None else request.fps,
        config=request.method,
        embeddings=request.embeddings,
        parts=_parts(request),
        method_settings={} if request.comparator is None else request.comparator.to_dict(),
        weights=weights,
        control=control,
    )
    return same | inputs.to_dict()


def _parts(request: Request) -> dict[str, str]:
    """Return `Result.parts` of the request."""
    parts: dict[str, str] = {} if request.sampler == "ddim" else {"sampler": request.sampler}
    return parts if request.comparator is None else {**parts, "method": name_of(request.comparator)}


def shadow(config: BackboneConfig) -> UNet:
    """Create a backbone's UNet on the meta device, for checks before its file is loaded."""
    with torch.device("meta"):
        return UNet(config.unet)


def check_inputs(job: Inputs, unet: UNet) -> None:
    """Run the checks of `anyi2v.pipeline.check_job`, and of another method, that do not depend on weights.

    `unet` may be a `shadow`.
    """
    request, config = job.request, job.config
    frames = config.frames if request.frames is None else request.frames
    fps = config.fps if request.fps is None else request.fps
    check_asked(config, unet, job.image, request.method, frames, fps, request.seed)
    check_settings(request.method, unet)
    if request.comparator is not None:
        comparator(request.comparator).check(request.method, unet, job.tracks, request.prompt, frames)


def memory_mode(job: Inputs, machine: Machine, *, loaded: int = 0) -> tuple[bool, str]:
    """Decide whether to run a job in low-memory mode; also return its required and free memory as text.

    Args:
        job: the job to be computed.
        machine: the machine to compute on.
        loaded: bytes of the job's weights that are already on the device.

    Raises ResourceError if the job does not fit at all.
    """
    start = time.perf_counter()
    frames = job.config.frames if job.request.frames is None else job.request.frames
    height, width = job.image.shape[1:]
    method, tracks = Footprint(job.request.method), job.tracks
    if job.request.comparator is not None:
        method, tracks = comparator(job.request.comparator).footprint(job.request.method), None
    predict = partial(
        memory.predict,
        job.config,
        method,
        (frames, height, width),
        dtype=machine.dtype,
        device=machine.device,
        operators=job.request.operators,
        tracks=tracks,
    )
    modes = (True,) if machine.low_memory else (False, True)
    free = memory.available(machine.device)
    usable = None if free is None else free + loaded
    low_memory, needed = memory.fitting(usable, {mode: partial(predict, low_memory=mode) for mode in modes})
    LOGGER.debug("memory predicted in %.1f s: %s", time.perf_counter() - start, needed)
    note = " in low-memory mode" if low_memory else ""
    return low_memory, f"{needed}{note}, free {'unknown' if free is None else memory.gib(free)}"


def load_backbone(request: Request, machine: Machine) -> Backbone:
    """Load the backbone of a request onto the machine; raises what `anyi2v.load` raises."""
    return checkpoint.load(
        request.backbone,
        device=machine.device,
        dtype=machine.dtype,
        operators=request.operators,
        embeddings=request.embeddings,
    )


def compute(
    backbone: Backbone,
    job: Inputs,
    machine: Machine,
    *,
    low_memory: bool,
    taps: Taps = no_taps,
    observe: pipeline.Observer | None = None,
    progress: Progress | bool = False,
) -> Result:
    """Compute the video of a job; arguments and errors are those of `anyi2v.animate`."""
    request = job.request
    return pipeline.animate(
        backbone,
        job.image,
        request.prompt,
        job.tracks,
        config=request.method,
        seed=request.seed,
        frames=request.frames,
        fps=request.fps,
        negative_prompt=request.negative_prompt,
        cache=machine.cache,
        low_memory=low_memory,
        features=job.features,
        taps=taps,
        observe=observe,
        method=None if request.comparator is None else comparator(request.comparator),
        sampler=SAMPLERS[request.sampler](),
        progress=progress,
    )


def run_job(
    backbone: Backbone,
    job: Inputs,
    machine: Machine,
    out: Path,
    *,
    low_memory: bool,
    overwrite: bool = False,
    impossible: Mapping[str, str] | None = None,
    progress: Progress | bool = False,
) -> Result:
    """Compute a job and write its run into folder `out` atomically.

    Args:
        backbone: from `load_backbone`.
        job: the job to compute.
        machine: the machine to compute on; its device is recorded.
        out: output folder; errors are those of `anyi2v.reports.folder.check_out`.
        low_memory: from `memory_mode`.
        overwrite: replace an earlier run.
        impossible: files that cannot be written on this machine, from `anyi2v.reports.writing.impossible_outputs`.
        progress: as for `anyi2v.animate`, whose errors are raised too.
    """
    result = compute(backbone, job, machine, low_memory=low_memory, progress=progress)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.timings.items())
    LOGGER.debug("stages: %s", stages)
    write_result(out, result, job, backbone, machine, overwrite=overwrite, impossible=impossible)
    return result


def write_result(
    out: Path,
    result: Result,
    job: Inputs,
    backbone: Backbone,
    machine: Machine,
    *,
    overwrite: bool = False,
    impossible: Mapping[str, str] | None = None,
) -> None:
    """Write the result of `compute` into folder `out`; arguments are those of `run_job`.

    Raises the errors of `anyi2v.reports.writing.write_run`.
    """
    dtype = str(backbone.dtype).removeprefix("torch.")
    origin = Origin(job.request.backbone, machine.device, dtype, tuple(job.request.embeddings))
    write_run(out, result, job.image, origin, overwrite=overwrite, impossible=impossible)
