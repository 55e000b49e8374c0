"""The loop: one job from image to video."""

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
from anyi2v.job import Job, Method, Result, check_general
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
"""Called with each denoising step and the latents after it, `1 f c h w`."""


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
    """Animates a condition image along tracks; the same inside of `torch.no_grad`, `inference_mode` and `autocast`.

    Args:
        backbone: from `anyi2v.load`.
        image: `3 h w`, condition of any modality, in [0, 1]; its size is the video's.
        prompt: what the video shows.
        tracks: boxes over time, in pixels of any frame of reference; scaled to the image and resampled to the
            video's frames. None, or without objects: the first frame is controlled and the motion is free. Warns about
            an object whose first box shows nothing of the image that could be one.
        config: hyper-parameters; by default `backbone.method()`, recipe "paper" with the backbone's own settings.
            `backbone.method(steps=12)` changes some of them; a MethodConfig of your own has none of the backbone's.
        seed: of everything random, each from a generator of its own: the initial noise, the noise of
            inversion="noise" and of eta, and the low-rank PCA. Equal seed and device give equal bytes; on a GPU, where
            attention's backward pass adds up in an order of its own each time, only with
            `torch.use_deterministic_algorithms(True)`.
        frames: by default the backbone's.
        fps: frames per second of the video, by default the backbone's; passed to a UNet that embeds the frame rate.
        negative_prompt: for the unconditional pass.
        features: `Result.features` of a job with the same backbone, image, prompt and inversion settings, for
            example with other tracks, or from `invert_images`; spares the inversion.
        cache: a folder where such features are kept and looked up by everything that they depend on; see
            `anyi2v.method.features_cache`. Not used while `taps` watch.
        low_memory: layers are recomputed in the optimisation's backward pass, the two passes of the guidance run one
            after the other, and frames are decoded one by one: about half the memory for a third more time. The
            inversion keeps the weights once. The results differ by rounding. See `anyi2v.execution.memory.predict`.
        taps: gives a tap for each pass of the UNet, to watch or change any tensor of the job. It acts after the
            method's edits; in denoising it sees the pass with the negative prompt too, see `Denoiser`. A tap that
            returns the tensors it was given changes no bit of the result.
        method: how the video is steered; by default `AnyI2V` with the settings of `config`. Others are in
            `anyi2v.comparators`.
        sampler: how the latents move from one noise level to the next; by default `samplers.ddim` with the `eta` of
            `config`.
        objective: what `AnyI2V` minimises; by default the paper's, `FeatureAlignment` with the settings of `config`.
        observe: called with each step and the latents after it.
        progress: called with a stage, the number of its units that are done, and their total; True shows a bar per
            stage.

    Raises:
        InputError, HookError: before any work, if something about the job is not usable; HookError also before the
            first pass of a tap that names a point which does not exist, and if a tap raises Stop.
        NumericsError: a value became NaN or infinite; the message names stage, step, layer, object and frame.
    """
    config = config or backbone.method()
    frames = backbone.config.frames if frames is None else frames
    fps = backbone.config.fps if fps is None else fps
    parts = _parts(method, sampler, objective)
    check_job(backbone, image, config, frames, fps, seed)
    _warn_of_idle_settings(config, negative_prompt, cache)
    tracks = check_tracks(tracks, image).scaled(image.shape[2], image.shape[1]).resample(frames)
    stages = Stages(progress=progress, device=backbone.device)
    inputs: dict[str, Any] = {"features": features, "cache": cache, "taps": whole(taps), "stages": stages}
    job = Job(backbone, image, prompt, negative_prompt, tracks, config, seed, frames, fps, low_memory, **inputs)

    negative, positive = _text(job)
    denoiser = Denoiser(backbone.unet, positive, negative, config, fps=fps, low_memory=low_memory, taps=job.taps)
    sampler = bound_sampler(sampler, config, seed)
    run = (method or AnyI2V(objective)).start(job, denoiser)
    # drawn on the CPU in float32, so that the noise does not depend on the device
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
    """The `features` of several independent jobs, inverted as one batch.

    A single image leaves a GPU mostly idle, and a CPU takes about twice the time for it alone than for one of eight
    (docs/performance.md). The features equal those of single jobs but for the order of sums.

    Args:
        backbone, config, fps, low_memory, progress: as for `animate`.
        images: condition images of one size.
        prompts: one per image.

    Raises:
        InputError, HookError: before any work, if something about a job is not usable, or the jobs are no batch.
        NumericsError: a value became NaN or infinite.
    """
    config = config or backbone.method()
    fps = backbone.config.fps if fps is None else fps
    if not len(images) == len(prompts) > 0:
        raise InputError(f"{len(images)} images and {len(prompts)} prompts; each image needs its prompt")
    if config.inversion == "noise":
        raise InputError("inversion='noise' inverts nothing: it draws from the seed of each job")
    for number, image in enumerate(images, 1):
        check_job(backbone, image, config, 1, fps)
        if image.shape != images[0].shape:
            size, first = (f"{x.shape[2]}x{x.shape[1]}" for x in (image, images[0]))
            raise InputError(f"image {number} is {size} pixels, image 1 {first}; a batch needs images of one size")
    stages = Stages(progress=progress, device=backbone.device)
    tracks = check_tracks(None, images[0])
    job = Job(backbone, images[0], prompts[0], "", tracks, config, 0, 1, fps, low_memory, stages=stages)
    with torch.no_grad():
        text = backbone.encode_text(list(prompts)).float()
    denoiser = Denoiser(backbone.unet, text, config=config, fps=fps, low_memory=low_memory)
    found = condition_features(job, denoiser, torch.stack([*images]))
    return [{name: x[i : i + 1].clone() for name, x in found.items()} for i in range(len(images))]


def check_job(backbone: Backbone, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0) -> None:
    """Finds out what cannot work before any work is done.

    Raises:
        InputError: the image, its size, the number of frames, the frame rate, the seed or the timesteps.
        HookError: a layer that the backbone does not have, or that cannot be injected or aligned.
    """
    check_general(backbone, image, config, frames, fps, seed)
    check_settings(config, backbone.unet)


def _parts(method: Method | None, sampler: Sampler | None, objective: Objective | None) -> dict[str, str]:
    """The names of the parts that are not the defaults."""
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
    """The sampler for a job: DDIM with the job's eta.

    Raises InputError for eta > 0 with another sampler.
    """
    if sampler is None or sampler is ddim:
        return partial(ddim, eta=config.eta, generator=stream(seed, "eta"))
    if config.eta > 0:
        raise InputError(f"eta={config.eta:g} is a setting of the sampler ddim; with another sampler it must be 0")
    return sampler


def _warn_of_idle_settings(config: MethodConfig, negative_prompt: str, cache: Path | None) -> None:
    """Warns the caller of `animate` of each thing that was asked for and cannot act."""
    found = remarks(config)
    if negative_prompt and config.guidance_scale <= 1:
        found.append(f"negative_prompt={negative_prompt!r} is not used: guidance_scale={config.guidance_scale:g}")
    if cache is not None and config.inversion == "noise":
        found.append("cache is not used: inversion='noise' draws from the seed and takes one pass")
    for text in found:
        warnings.warn(text, AnyI2VWarning, stacklevel=3)


def _text(job: Job) -> tuple[Float[Tensor, "1 l d"], Float[Tensor, "1 l d"]]:
    """States of the negative prompt and of the prompt."""
    with job.stages.stage("text"), torch.no_grad():
        states = job.backbone.encode_text([job.negative_prompt, job.prompt]).float()
    if not all_finite(states):
        raise failure("the states of the prompt", "text", dtype=job.backbone.unet.dtype)
    negative, positive = states.split(1)
    return negative, positive


def _check_latents(z: Float[Tensor, "1 f c h w"], step: Step, denoiser: Denoiser) -> None:
    """Raises NumericsError for latents that are not finite after a step."""
    if not all_finite(z):
        here = Pass("denoising", step.t, step.index)
        raise failure("the latents", here, culprit=denoiser.culprit(), dtype=denoiser.unet.dtype)


@torch.no_grad()
def _decoded(job: Job, z: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "f 3 hh ww"]:
    """The video; checked for NaN before the clamp, which makes ones of infinities."""
    release_memory()  # the decoder's tensors are larger than what is left of the denoising, and would lie beside it
    vae = job.backbone.vae
    with job.stages.stage("decode"):
        video = (vae.decode(z[0], chunk=1 if job.low_memory else 8) / 2 + 0.5).cpu()
    if not all_finite(video):
        bad = frames_text(~video.isfinite().flatten(1).all(-1))
        raise failure("the video", "decode", culprit=bad, dtype=vae.dtype)
    return video.clamp(0, 1)
