"""Computation of the page's jobs: one backbone, one job at a time, with progress and cancellation."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import UNet, points
from anyi2v.batch.request import Request
from anyi2v.batch.work import Inputs, Machine, compute, load_backbone, shadow, write_result
from anyi2v.checkpoints.header import read_config
from anyi2v.diffusion import Step
from anyi2v.errors import AnyI2VError
from anyi2v.execution.memory import size_of
from anyi2v.images.media import to_bytes
from anyi2v.images.source import ConditionSource
from anyi2v.reports.inspection import write_inspection
from anyi2v.reports.previews import Preview, fit_preview
from anyi2v.reports.record import image_checksum
from anyi2v.reports.recording import Recording, select
from anyi2v.segments import segments
from anyi2v.taps import no_taps

EVERY = 0.3
"""Minimum number of seconds between two previews of the latents."""


@dataclass(frozen=True)
class Update:
    """Progress of a job."""

    stage: str
    done: int
    total: int
    preview: UInt8[np.ndarray, "h w 3"] | None = None
    """All frames side by side, one pixel per latent cell; None: no new preview."""


class Cancelled(AnyI2VError):
    """The user cancelled the job."""


class Engine:
    """The backbone, loaded on first use, and computations with it.

    Args:
        backbone: name of a shipped backbone, or a file.
        machine: device and precision to compute with.
    """

    def __init__(self, backbone: str, machine: Machine):
        self.name, self.machine = backbone, machine
        self.config = read_config(backbone)
        self.threads = torch.get_num_threads()
        self.lock = threading.Lock()
        self.stops: dict[str, threading.Event] = {}
        self.labels: tuple[tuple[str, str, int], Int[Tensor, "h w"]] | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The networks."""
        return load_backbone(Request(ConditionSource(), "", backbone=self.name), self.machine)

    @cached_property
    def preview(self) -> Preview:
        """Decoder of latents into previews."""
        return fit_preview(self.backbone.vae)

    @cached_property
    def shadow(self) -> UNet:
        """The UNet without values, for checks."""
        return shadow(self.config)

    def arm(self, token: str) -> None:
        """Allow the next job of this session to run."""
        self.stops[token] = threading.Event()

    def stop(self, token: str) -> None:
        """End the job of this session at its next pass, or prevent it from starting."""
        self.stops.setdefault(token, threading.Event()).set()

    @property
    def loaded(self) -> int:
        """Size of the networks in bytes if they are already on the device, otherwise 0."""
        return sum(map(size_of, self.backbone.networks.values())) if "backbone" in vars(self) else 0

    @torch.no_grad()
    def seconds(self, job: Inputs) -> float:
        """Estimate the duration of a job: time one pass of the UNet, then multiply by the number of passes.

        A pass with gradients counts as three; a pass over a single frame counts as two frames of a normal pass. For
        methods other than AnyI2V, what they add to the sampling and the inversion is not counted.
        """
        method, c, backbone = job.request.method, self.config, self.backbone
        frames = c.frames if job.request.frames is None else job.request.frames
        height, width = (side // c.vae.factor for side in job.image.shape[1:])
        z = torch.zeros(1, frames, c.vae.latent_channels, height, width, device=backbone.device)
        text = torch.zeros(1, c.text.length, c.unet.context_dim, device=backbone.device)
        with self.lock:
            torch.set_num_threads(self.threads)
            start = time.perf_counter()
            backbone.unet(z, 1, text, fps=float(c.fps), window=method.window).sum().item()
            single = time.perf_counter() - start
        inversion = 1 if method.inversion == "noise" else method.inversion_timestep / method.inversion_stride
        sampling = method.steps * (2 if method.guidance_scale > 1 else 1)
        updates = min(method.optimise_steps, method.steps) * method.iterations if job.tracks.objects else 0
        if other := job.request.comparator:
            inversion, updates = inversion if other.injection else 0, 0
        return single * (sampling + 3 * updates + 2 * inversion / frames)

    def segments(self, image: Float[Tensor, "3 h w"], prompt: str, clusters: int) -> Int[Tensor, "h w"]:
        """Segment an image, with the most recent result cached; see `anyi2v.segments`."""
        key = (image_checksum(image), prompt, clusters)
        with self.lock:
            if self.labels is None or self.labels[0] != key:
                torch.set_num_threads(self.threads)
                self.labels = key, segments(self.backbone, image, prompt, clusters=clusters)
            return self.labels[1]

    def run(self, job: Inputs, out: Path, token: str, *, low_memory: bool, inspect: bool = False) -> Iterator[Update]:
        """Run a job and write its run, yielding progress; returns when the run is on disk.

        Args:
            job: the job.
            out: folder of the run, which does not exist yet.
            token: the session's token, used by `stop`.
            low_memory: as in `anyi2v.batch.work.compute`.
            inspect: also draw features, similarities and masks into the run's folder.

        Raises:
            Cancelled: the session's job was cancelled.
            AnyI2VError: see `anyi2v.animate`.
        """
        stop = self.stops.setdefault(token, threading.Event())
        updates: queue.SimpleQueue[Update | BaseException | None] = queue.SimpleQueue()
        work = _Work(self, job, out, stop, updates)
        thread = threading.Thread(target=work.run, args=(low_memory, inspect), daemon=True)
        thread.start()
        try:
            while (update := updates.get()) is not None:
                if isinstance(update, BaseException):
                    raise update
                yield update
        finally:
            stop.set()  # the page may have been closed
            thread.join()


class _Work:
    """A job in its own thread."""

    def __init__(
        self,
        engine: Engine,
        job: Inputs,
        out: Path,
        stop: threading.Event,
        updates: "queue.SimpleQueue[Update | BaseException | None]",
    ):
        self.engine, self.job, self.out, self.stop, self.updates = engine, job, out, stop, updates
        self.shown = 0.0

    def run(self, low_memory: bool, inspect: bool) -> None:
        """Put updates into the queue, followed by None or the exception raised."""
        try:
            with self.engine.lock:
                torch.set_num_threads(self.engine.threads)  # threads do not inherit this setting
                self._compute(low_memory, inspect)
            self.updates.put(None)
        except BaseException as error:  # reported by the other thread
            self.updates.put(error)

    def _compute(self, low_memory: bool, inspect: bool) -> None:
        engine, job = self.engine, self.job
        self.progress("loading", 0, 1)
        backbone = engine.backbone
        recording = _recording(engine, job) if inspect else None

        def observe(step: Step, z: Tensor) -> None:
            if recording is not None:
                recording.observe(step, z)
            self.observe(z)

        taps = no_taps if recording is None else recording
        options: dict[str, Any] = {
            "low_memory": low_memory,
            "taps": taps,
            "observe": observe,
            "progress": self.progress,
        }
        result = compute(backbone, job, engine.machine, **options)
        self.progress("writing", 0, 1)
        write_result(self.out, result, job, backbone, engine.machine)
        if recording is not None:
            write_inspection(self.out, backbone, job.image, result, recording)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report the progress of a stage; raises Cancelled if the job must end."""
        if self.stop.is_set():
            raise Cancelled("cancelled; nothing was written")
        self.updates.put(Update(stage, done, total))

    def observe(self, z: Float[Tensor, "1 f c h w"]) -> None:
        """Show the latents, unless a preview was shown a moment ago."""
        now = time.monotonic()
        if now - self.shown >= EVERY:
            self.shown = now
            self.updates.put(Update("denoising", -1, 0, strip(self.engine.preview(z[0]))))


def strip(frames: Float[Tensor, "f 3 h w"]) -> UInt8[np.ndarray, "hh ww 3"]:
    """Arrange small frames in rows of eight, each pixel enlarged so that the picture is a few hundred pixels wide."""
    columns = min(len(frames), 8)
    rest = -len(frames) % columns
    padded = torch.cat([frames, frames.new_zeros(rest, *frames.shape[1:])])
    picture = to_bytes(rearrange(padded, "(r k) c h w -> c (r h) (k w)", k=columns))
    factor = max(1, 640 // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _recording(engine: Engine, job: Inputs) -> Recording:
    c = engine.config
    frames = c.frames if job.request.frames is None else job.request.frames
    size = {"height": job.image.shape[1] // c.vae.factor, "width": job.image.shape[2] // c.vae.factor}
    known = points(engine.shadow, frames=frames, tokens=c.text.length, **size)
    return Recording(select(job.request.method, known, frames), job.request.method, known)
