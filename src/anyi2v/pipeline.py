"""The main loop, which takes one job from image to video."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.comparators.settings import Settings, name_of
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.execution.grad_modes import own_modes
from anyi2v.execution.machine import release_memory
from anyi2v.guard import all_finite, failure, frames_text
from anyi2v.images.media import check_tracks
from anyi2v.job import Job, Method, Result, check_general, check_kinds
from anyi2v.method.anyi2v import AnyI2V, check_settings
from anyi2v.method.config import MethodConfig
from anyi2v.method.features import condition_features
from anyi2v.method.noise import stream
from anyi2v.method.objective import Objective
from anyi2v.method.recipes import remarks
from anyi2v.samplers import Sampler, ddim, sampler_name
from anyi2v.taps import Pass, Taps, no_taps, whole
from anyi2v.timing import Progress, Stages
from anyi2v.tracks import Tracks

Observer = Callable[[Step, Tensor], object]
"""Callback that receives each denoising step and the latents after it, `1 f c h w`."""


@own_modes
def animate(
    backbone: Backbone,
    image: Tensor,
    prompt: str,
    tracks: Tracks | None,
    *,
    config: MethodConfig | None = None,
    seed: int = 0,
    frames: int | None = None,
    fps: int | None = None,
    negative_prompt: str = "",
    features: Mapping[str, Tensor] | None = None,
    cache: Path | None = None,
    low_memory: bool = False,
    taps: Taps = no_taps,
    method: Method | None = None,
    sampler: Sampler | None = None,
    objective: Objective | None = None,
    observe: Observer | None = None,
    progress: Progress | bool = False,
) -> Result:
    """Animate a condition image along tracks.

    Results do not depend on surrounding `torch.no_grad`, `inference_mode` or `autocast` contexts.

    Args:
        backbone: from `anyi2v.load`.
        image: `3 h w`, a condition of any modality, in [0, 1]; the video has its size.
        prompt: describes the video.
        tracks: boxes over time, in pixels of their own width and height; scaled to the image and resampled to the
            video's frames. With None or no objects, the first frame is controlled and the motion is free. Warns if the
            image is uniform inside an object's first box.
        config: hyper-parameters; by default `backbone.method()`, the recipe "paper" with the backbone's own settings.
            Use `backbone.method(steps=12)` to change some of them; a plain MethodConfig has none of the backbone's
            settings.
        seed: seeds everything random, each with its own generator: the initial noise, the noise of inversion="noise"
            and of eta, and the low-rank PCA. The same seed on the same device gives identical bytes; on a GPU this
            requires `torch.use_deterministic_algorithms(True)`, because the backward pass of attention is not
            deterministic.
        frames: number of frames, by default the backbone's.
        fps: frames per second of the video, by default the backbone's; passed to a UNet that embeds the frame rate.
        negative_prompt: prompt of the unconditional pass.
        features: `Result.features` of a job with the same backbone, image, prompt and inversion settings (for example
            with other tracks), or features from `invert_images`; skips the inversion.
        cache: folder that caches such features, keyed by everything they depend on; see `anyi2v.method.features_cache`.
            Not used together with `taps`.
        low_memory: recompute layers in the optimisation's backward pass, run the two guidance passes one after the
            other, decode frames one by one, and keep no packed copy of the weights for the inversion: about half the
            memory for a third more time. Results differ by rounding. See `anyi2v.execution.memory.predict`.
        taps: returns a tap for each pass of the UNet, to read or replace any tensor of the job. The tap runs after the
            method's edits; in denoising it also sees the pass with the negative prompt, see `Denoiser`. A tap that
            returns its tensors unchanged leaves the result bit-identical.
        method: how the video is steered; by default `AnyI2V` with the settings of `config`. `anyi2v.comparators` has
            others.
        sampler: how the latents move from one noise level to the next; by default `samplers.ddim` with the `eta` of
            `config`.
        objective: what `AnyI2V` minimises; by default the paper's objective, `FeatureAlignment` with the settings of
            `config`.
        observe: called with each step and the latents after it.
        progress: called with a stage, the number of finished units and their total; True shows a progress bar per
            stage.

    Raises:
        InputError, HookError: an input is not usable; raised before any work. HookError also if a tap names a point
            that does not exist, before that tap's first pass, or if a tap raises Stop.
        NumericsError: a value became NaN or infinite; the message names the stage, step, layer, object and frame.
    """
    config = backbone.method() if config is None else config
    check_kinds(config, method, sampler, objective)
    frames = backbone.config.frames if frames is None else frames
    fps = backbone.config.fps if fps is None else fps
    parts = _parts(method, sampler, objective)
    check_job(backbone, image, config, frames, fps, seed)
    tracks = check_tracks(tracks, image).scaled(image.shape[2], image.shape[1]).resample(frames)
    _warn_of_idle_settings(config, tracks, negative_prompt, cache)
    stages = Stages(progress=progress, device=backbone.device)
    inputs: dict[str, Any] = {"features": features, "cache": cache, "taps": whole(taps), "stages": stages}
    job = Job(backbone, image, prompt, negative_prompt, tracks, config, seed, frames, fps, low_memory, **inputs)

    negative, positive = _text(job)
    schedule = backbone.config.schedule
    denoiser = Denoiser(
        backbone.unet, positive, negative, config, schedule=schedule, fps=fps, low_memory=low_memory, taps=job.taps
    )
    sampler = bound_sampler(sampler, config, seed)
    run = (method or AnyI2V(objective)).start(job, denoiser)
    # drawn on the CPU in float32 so that it does not depend on the device
    z = torch.randn(job.latent_shape, generator=torch.Generator().manual_seed(seed))
    z = run.initial_latents(z).to(backbone.device)
    steps = job.steps[run.first_step :]
    done = stages.counter("denoising", len(steps))
    for step in steps:
        z = run.guide(z, step)
        with stages.stage("denoising"):
            noise = denoiser(z, step, tap=run.tap(step), negative_tap=run.negative_tap(step))
            z = sampler(z, noise, step)
            _check_latents(z, step, denoiser)
        done(1)
        if observe is not None:
            observe(step, z)
    return Result(
        video=_decoded(job, z),
        masks=run.masks(),
        losses=list(run.losses),
        timings=stages.seconds,
        prompt=prompt,
        negative_prompt=negative_prompt,
        tracks=tracks,
        config=config,
        seed=seed,
        fps=fps,
        features=dict(run.features),
        features_given=features is not None,
        low_memory=low_memory,
        operators=backbone.operators,
        parts=parts,
        method_settings=method.to_dict() if isinstance(method, Settings) else {},
    )


@own_modes
def invert_images(
    backbone: Backbone,
    images: Sequence[Float[Tensor, "3 h w"]],
    prompts: Sequence[str],
    *,
    config: MethodConfig | None = None,
    fps: int | None = None,
    low_memory: bool = False,
    progress: Progress | bool = False,
) -> list[dict[str, Tensor]]:
    """Compute the `features` of several independent jobs by inverting their images as one batch.

    A single image leaves a GPU mostly idle, and on a CPU a batch of eight takes about half the time per image
    (docs/performance.md). The features equal those of separate jobs up to rounding.

    Args:
        backbone: from `anyi2v.load`.
        images: condition images of equal size, in [0, 1].
        prompts: one per image.
        config: hyper-parameters, as for `animate`; only the settings of inversion and injection are used.
        fps: as for `animate`.
        low_memory: as for `animate`.
        progress: as for `animate`.

    Returns:
        Per image, tensors by hook point, for the argument `features` of `animate`.

    Raises:
        InputError, HookError: an input is not usable, or the images cannot form a batch; raised before any work.
        NumericsError: a value became NaN or infinite.
    """
    config = backbone.method() if config is None else config
    check_kinds(config)
    fps = backbone.config.fps if fps is None else fps
    if not len(images) == len(prompts) > 0:
        raise InputError(f"{len(images)} images and {len(prompts)} prompts; each image needs a prompt")
    if config.inversion == "noise":
        raise InputError("inversion='noise' has nothing to invert: it draws noise from each job's seed")
    for number, image in enumerate(images, 1):
        check_job(backbone, image, config, 1, fps)
        if image.shape != images[0].shape:
            size, first = (f"{x.shape[2]}x{x.shape[1]}" for x in (image, images[0]))
            raise InputError(f"image {number} is {size} pixels, image 1 {first}; a batch needs images of equal size")
    stages = Stages(progress=progress, device=backbone.device)
    tracks = check_tracks(None, images[0])
    job = Job(backbone, images[0], prompts[0], "", tracks, config, 0, 1, fps, low_memory, stages=stages)
    with torch.no_grad():
        text = backbone.encode_text(list(prompts)).float()
    schedule = backbone.config.schedule
    denoiser = Denoiser(backbone.unet, text, config=config, schedule=schedule, fps=fps, low_memory=low_memory)
    found = condition_features(job, denoiser, torch.stack([*images]))
    return [{name: x[i : i + 1].clone() for name, x in found.items()} for i in range(len(images))]


def check_job(backbone: Backbone, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0) -> None:
    """Check a job before any work is done.

    Raises:
        InputError: the image, its size, the number of frames, the frame rate, the seed or the timesteps are not usable.
        HookError: a layer that the backbone does not have, or that cannot be injected or aligned.
    """
    check_general(backbone, image, config, frames, fps, seed)
    check_settings(config, backbone.unet)


def _parts(method: Method | None, sampler: Sampler | None, objective: Objective | None) -> dict[str, str]:
    """Return the names of the parts that differ from the defaults."""
    if method is not None and objective is not None:
        raise InputError(
            "objective= is an argument of the method AnyI2V; pass one of them, or method=AnyI2V(objective)"
        )
    parts = {"method": method, "objective": objective}
    found = {kind: _qualified(part) for kind, part in parts.items() if part is not None}
    if isinstance(method, Settings):
        found["method"] = name_of(method)
    if (name := sampler_name(sampler)) != "ddim":
        found["sampler"] = name or _qualified(sampler)
    return found


def _qualified(part: object) -> str:
    named: Any = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def bound_sampler(sampler: Sampler | None, config: MethodConfig, seed: int) -> Sampler:
    """Return the sampler of a job: the given one, or DDIM with the job's eta.

    Raises InputError for eta > 0 with another sampler.
    """
    if sampler is None or sampler is ddim:
        return partial(ddim, eta=config.eta, generator=stream(seed, "eta"))
    if config.eta > 0:
        raise InputError(f"eta={config.eta:g} is a setting of the sampler ddim; with another sampler it must be 0")
    return sampler


def _warn_of_idle_settings(config: MethodConfig, tracks: Tracks, negative_prompt: str, cache: Path | None) -> None:
    """Warn the caller of `animate` about each setting that has no effect."""
    found = remarks(config, optimises=bool(tracks.objects))
    if negative_prompt and config.guidance_scale <= 1:
        found.append(f"negative_prompt={negative_prompt!r} is not used: guidance_scale={config.guidance_scale:g}")
    if cache is not None and config.inversion == "noise":
        found.append("cache is not used: inversion='noise' draws from the seed and takes one pass")
    for text in found:
        warnings.warn(text, AnyI2VWarning, stacklevel=3)


def _text(job: Job) -> tuple[Float[Tensor, "1 l d"], Float[Tensor, "1 l d"]]:
    """Encode the negative prompt and the prompt."""
    with job.stages.stage("text"), torch.no_grad():
        states = job.backbone.encode_text([job.negative_prompt, job.prompt]).float()
    if not all_finite(states):
        raise failure("the states of the prompt", "text", dtype=job.backbone.unet.dtype)
    negative, positive = states.split(1)
    return negative, positive


def _check_latents(z: Float[Tensor, "1 f c h w"], step: Step, denoiser: Denoiser) -> None:
    """Raise NumericsError if the latents are not finite after a step."""
    if not all_finite(z):
        here = Pass("denoising", step.t, step.index)
        raise failure("the latents", here, culprit=denoiser.culprit(), dtype=denoiser.unet.dtype)


@torch.no_grad()
def _decoded(job: Job, z: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "f 3 hh ww"]:
    """Decode the video; checked for NaN before the clamp, which would turn infinities into ones."""
    release_memory()  # else the decoder's tensors would add to the memory cached by the denoising
    vae, done = job.backbone.vae, job.stages.counter("decode", 1)
    with job.stages.stage("decode"):
        video = (vae.decode(z[0], chunk=1 if job.low_memory else 8) / 2 + 0.5).cpu()
    done(1)
    if not all_finite(video):
        bad = frames_text(~video.isfinite().flatten(1).all(-1))
        raise failure("the video", "decode", culprit=bad, dtype=vae.dtype)
    return video.clamp(0, 1)
