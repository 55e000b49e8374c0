"""One job from a user's request to the files of its run: what single runs, several prompts and batches share."""

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
from anyi2v.reports.record import Fingerprint, Origin, RunInputs
from anyi2v.reports.writing import write_run
from anyi2v.samplers import SAMPLERS
from anyi2v.taps import Taps, no_taps
from anyi2v.timing import Progress
from anyi2v.tracks import Tracks


@dataclass(frozen=True)
class Machine:
    """Where and how jobs are computed."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """Of the networks."""
    low_memory: bool = False
    """Take less memory even where there is enough."""
    cache: Path | None = None
    """Folder where inverted images are kept."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What the record of a run must say of device, dtype, threads and memory; what is not in it may be anything."""


@dataclass(frozen=True)
class Inputs:
    """A request and the contents of its files."""

    request: Request
    config: BackboneConfig
    image: Float[Tensor, "3 h w"]
    """The condition at the video's size."""
    tracks: Tracks
    """In pixels of the video."""
    features: Mapping[str, Tensor] | None = None
    """Of the condition, as for `anyi2v.animate`, where they are known already."""


def read_inputs(request: Request) -> Inputs:
    """Reads the files of a request.

    Raises InputError naming the file or the size that cannot be used, CheckpointError for a broken backbone.
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
) -> dict[str, Any]:
    """What the record of a run must say to be the one that is asked for; see `anyi2v.reports.record.differences`.

    Args:
        request: the job.
        asked: as in `Machine`.
        config: of the request's backbone.
        seen: of the condition image at the video's size.
        tracks: in pixels of the video.
        weights: `weights_sha256` of the backbone, where it is known already.
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
    )
    return same | inputs.to_dict()


def _parts(request: Request) -> dict[str, str]:
    """`Result.parts` of the request."""
    parts: dict[str, str] = {} if request.sampler == "ddim" else {"sampler": request.sampler}
    return parts if request.comparator is None else {**parts, "method": name_of(request.comparator)}


def shadow(config: BackboneConfig) -> UNet:
    """The UNet of a backbone without values, for checks before its file is loaded."""
    with torch.device("meta"):
        return UNet(config.unet)


def check_inputs(job: Inputs, unet: UNet) -> None:
    """Raises what `anyi2v.pipeline.check_job`, and the check of another method, do for a job, whatever the weights.

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
    """Whether to run a job in low-memory mode, as asked for or because it must; and what it needs and what is free.

    Args:
        job: what will be computed.
        machine: where.
        loaded: bytes of the job's weights that are on the device already.

    Raises ResourceError if the job does not fit at all.
    """
    frames = job.config.frames if job.request.frames is None else job.request.frames
    height, width = job.image.shape[1:]
    predict = partial(
        memory.predict,
        job.config,
        job.request.method,
        (frames, height, width),
        dtype=machine.dtype,
        device=machine.device,
        operators=job.request.operators,
        tracks=job.tracks,
    )
    modes = (True,) if machine.low_memory else (False, True)
    free = memory.available(machine.device)
    usable = None if free is None else free + loaded
    low_memory, needed = memory.fitting(usable, {mode: partial(predict, low_memory=mode) for mode in modes})
    note = " in low-memory mode" if low_memory else ""
    return low_memory, f"{needed}{note}, free {'unknown' if free is None else memory.gib(free)}"


def load_backbone(request: Request, machine: Machine) -> Backbone:
    """The backbone of a request, on the machine; raises what `anyi2v.load` does."""
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
    """The video of a job; the arguments and what is raised are those of `anyi2v.animate`."""
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
    """Computes a job and writes its run into folder `out`: all of it, or nothing.

    Args:
        backbone: of `load_backbone`.
        job: what to compute.
        machine: where; the backbone's device and dtype are recorded from it.
        out: see `anyi2v.reports.folder.check_out`, whose errors are raised.
        low_memory: of `memory_mode`.
        overwrite: replace a former run.
        impossible: files that no run can have here, of `anyi2v.reports.writing.impossible_outputs`.
        progress: as for `anyi2v.animate`, whose errors are raised too.
    """
    result = compute(backbone, job, machine, low_memory=low_memory, progress=progress)
    dtype = str(backbone.dtype).removeprefix("torch.")
    origin = Origin(job.request.backbone, machine.device, dtype, tuple(job.request.embeddings))
    write_run(out, result, job.image, origin, overwrite=overwrite, impossible=impossible)
    return result
