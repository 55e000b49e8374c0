"""One job from start to video: encode, invert, optimise and denoise, decode."""

import gc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.checkpoint import Backbone
from anyi2v.backbone.graphs import graphed
from anyi2v.backbone.unet import points
from anyi2v.condition_features import condition_features, injects
from anyi2v.config import MethodConfig, remarks
from anyi2v.diffusion import ddim_step, inversion_timesteps, sampling_pairs
from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.grad_modes import own_modes
from anyi2v.machine import give_back
from anyi2v.media import MAX_FPS, check_image, check_tracks, write_video
from anyi2v.method.alignment import feature_map
from anyi2v.method.crops import Crops, make_crops, paste
from anyi2v.method.denoising import predict_noise
from anyi2v.method.guard import all_finite, bad_layer, failure, first_bad_layer, frames_text
from anyi2v.method.injection import Injection, check_injectable
from anyi2v.method.noise import carried, stream
from anyi2v.method.optimisation import GRAPH_FROM, graphed_reader, optimise_latents
from anyi2v.taps import Pass, Tap, Taps, check_names, no_tap, no_taps, whole
from anyi2v.timing import Stages
from anyi2v.tracks import Tracks
from anyi2v.tracks.checks import MAX_FRAMES


@dataclass(frozen=True)
class LossRecord:
    """The alignment loss before one update of the latents."""

    step: int
    """Denoising step, from 0."""
    timestep: int
    iteration: int
    loss: float


@dataclass(frozen=True)
class Result:
    """A finished video and how it came about."""

    video: Float[Tensor, "f 3 h w"]
    """In [0, 1]."""
    masks: list[Float[Tensor, "f h w"]]
    """Per object, the semantic masks of the last optimisation step, enlarged to the image; empty without any."""
    losses: list[LossRecord]
    timings: dict[str, float]
    """Seconds per stage."""
    prompt: str
    negative_prompt: str
    tracks: Tracks
    """As used: in pixels of the video, one box per frame."""
    config: MethodConfig
    seed: int
    fps: int
    features: dict[str, Tensor]
    """What the inversion recorded by hook point; `animate` can take it again."""
    features_given: bool = False
    """Whether they were an argument of `animate`."""
    low_memory: bool = False
    """As `animate` was asked; it decides how the results are rounded."""

    def save(self, path: str | Path) -> None:
        """Writes the video: mp4, GIF or npz by the ending of `path`."""
        write_video(path, self.video, fps=self.fps)


@dataclass
class _Optimisation:
    """What the optimisation leaves behind for the result."""

    losses: list[LossRecord] = field(default_factory=list)
    masks: Tensor | None = None


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
    progress: bool = False,
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
            `anyi2v.inversion_cache`. Not used while `taps` watch.
        low_memory: layers are recomputed in the optimisation's backward pass, the two passes of the guidance run one
            after the other, and frames are decoded one by one: about half the memory for a third more time. The
            inversion keeps the weights once. The results differ by rounding. See `anyi2v.memory.predict`.
        taps: gives a tap for each pass of the UNet, to watch or change any tensor of the job. It acts after the
            injection; in denoising it sees the unconditional pass too, see `predict_noise`. A tap that returns the
            tensors it was given changes no bit of the result.
        progress: show a bar per stage.

    Raises:
        InputError, HookError: before any work, if something about the job is not usable; HookError also before the
            first pass of a tap that names a point which does not exist, and if a tap raises Stop.
        NumericsError: a value became NaN or infinite; the message names stage, step, layer, object and frame.
    """
    config = config or backbone.method()
    frames = backbone.config.frames if frames is None else frames
    fps = backbone.config.fps if fps is None else fps
    check_job(backbone, image, config, frames, fps, seed)
    _warn_of_idle_settings(config, negative_prompt, cache)
    height, width = image.shape[1:]
    tracks = check_tracks(tracks, image).scaled(width, height).resample(frames)
    factor = backbone.config.vae.factor
    shape = (1, frames, backbone.config.vae.latent_channels, height // factor, width // factor)
    crops, taps = None, whole(taps)
    if tracks.objects and config.optimise_steps > 0:
        crops = job_crops(backbone, tracks, config)
    stages = Stages(progress=progress, device=backbone.device)

    with stages.stage("text"), torch.no_grad():
        states = backbone.encode_text([negative_prompt, prompt]).float()
    if not all_finite(states):
        raise failure("the states of the prompt", "text", dtype=backbone.unet.dtype)
    negative, positive = states.split(1)
    given = features is not None
    # drawn on the CPU in float32, so that the noise does not depend on the device
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    z = (carried(z, tracks) if config.initial_noise == "carried" else z).to(backbone.device)
    if features is None:
        noise = stream(seed, "inversion")
        features = condition_features(
            backbone, image[None], positive, config, fps, stages, noise, taps, cache, low_memory
        )
    elif not all_finite(*features.values()):
        raise failure("a feature that was passed in", "inversion", culprit=bad_layer(features))
    injection = _injection(features, config)
    z, done = _denoise(backbone, z, negative, positive, injection, crops, config, fps, stages, seed, taps, low_memory)
    video = _decoded(backbone, z, stages, low_memory)
    return Result(
        video=video,
        masks=video_masks(done.masks, crops, (height, width)) if crops and done.masks is not None else [],
        losses=done.losses,
        timings=stages.seconds,
        prompt=prompt,
        negative_prompt=negative_prompt,
        tracks=tracks,
        config=config,
        seed=seed,
        fps=fps,
        features=dict(features),
        features_given=given,
        low_memory=low_memory,
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
    progress: bool = False,
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
    with torch.no_grad():
        text = backbone.encode_text(list(prompts)).float()
    found = condition_features(
        backbone,
        torch.stack([*images]),
        text,
        config,
        fps,
        Stages(progress=progress, device=backbone.device),
        torch.Generator(),
        no_taps,
        None,
        low_memory,
    )
    return [{name: x[i : i + 1].clone() for name, x in found.items()} for i in range(len(images))]


def check_job(backbone: Backbone, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0) -> None:
    """Finds out what cannot work before any work is done.

    Raises:
        InputError: the image, its size, the number of frames, the frame rate, the seed or the timesteps.
        HookError: a layer that the backbone does not have, or that cannot be injected or aligned.
    """
    check_image(image)
    if not 1 <= fps <= MAX_FPS:
        raise InputError(f"{fps} frames per second asked for; it must be 1 to {MAX_FPS}")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} is not allowed; it must be a whole number of at most 64 bits")
    backbone.config.check_size(image.shape[2], image.shape[1])
    limit = backbone.unet.design.max_frames
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"{frames} frames asked for; a video has 1 to {MAX_FRAMES}")
    if limit is not None and config.window is not None and config.window > limit:
        raise InputError(
            f"window={config.window}, but the backbone's temporal layers see at most {limit} frames at once"
        )
    if limit is not None and config.window is None and frames > limit:
        raise InputError(
            f"{frames} frames asked for, but this backbone makes 1 to {limit}; a longer video needs a window, for "
            f"example window={min(limit, backbone.config.frames)}"
        )
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default dtype is {torch.get_default_dtype()}, but a job's own tensors are float32; call "
            "torch.set_default_dtype(torch.float32) first (load(dtype=...) sets the dtype of the networks)"
        )
    if any(x.is_inference() for network in backbone.networks.values() for x in network.parameters()):
        raise InputError(
            "the backbone's weights were made inside torch.inference_mode(), so no gradient can be computed through "
            "them; load it, or move it, outside of that mode"
        )
    known = points(backbone.unet)
    for setting in ("inject_hidden", "inject_query", "share_kv", "align"):
        check_names(getattr(config, setting), known, setting)
    check_injectable(config.inject_hidden, config.inject_query, config.share_kv)
    for name in config.align:
        feature_map(name, torch.empty(known[name]))
    inversion_timesteps(backbone.config.schedule, until=config.inversion_timestep, stride=config.inversion_stride)
    sampling_pairs(backbone.config.schedule, config.steps)


def _warn_of_idle_settings(config: MethodConfig, negative_prompt: str, cache: Path | None) -> None:
    """Warns the caller of `animate` of each thing that was asked for and cannot act."""
    found = remarks(config)
    if negative_prompt and config.guidance_scale <= 1:
        found.append(f"negative_prompt={negative_prompt!r} is not used: guidance_scale={config.guidance_scale:g}")
    if cache is not None and config.inversion == "noise":
        found.append("cache is not used: inversion='noise' draws from the seed and takes one pass")
    for text in found:
        warnings.warn(text, AnyI2VWarning, stacklevel=3)


def _injection(features: Mapping[str, Tensor], config: MethodConfig) -> Tap:
    if not (injects(config) or config.share_kv):
        return no_tap
    points = {"hiddens": config.inject_hidden, "queries": config.inject_query, "share_kv": config.share_kv}
    return Injection(features, **points, debias=config.debias, patch=config.patch)


def _denoise(
    backbone: Backbone,
    z: Float[Tensor, "1 f c h w"],
    negative: Float[Tensor, "1 l d"],
    positive: Float[Tensor, "1 l d"],
    injection: Tap,
    crops: Crops | None,
    config: MethodConfig,
    fps: int,
    stages: Stages,
    seed: int,
    taps: Taps,
    low_memory: bool,
) -> tuple[Float[Tensor, "1 f c h w"], _Optimisation]:
    unet, done, deep, reader = backbone.unet, _Optimisation(), dict[str, Tensor](), None
    pca, fresh = stream(seed, "pca"), stream(seed, "eta")
    steps = min(config.optimise_steps, config.steps) if crops and config.iterations else 0
    iterations = steps * config.iterations
    if iterations >= GRAPH_FROM and not low_memory and taps is no_taps:
        with stages.stage("optimisation"):
            reader = graphed_reader(unet, z, positive, injection, config, fps)
    with stages.bar("optimisation", iterations) as inner, stages.bar("denoising", config.steps) as outer:
        for i, (t, at, to) in enumerate(sampling_pairs(backbone.config.schedule, config.steps)):
            if i == steps:
                unet = graphed(unet)
                if reader is not None:
                    reader = None
                    gc.collect()  # cycles hold it, and gigabytes
            if crops and i < steps:
                give_back()  # gaps that the guided pass before has left are too small for this one's tensors
                with stages.stage("optimisation"):
                    z, losses, done.masks = optimise_latents(
                        unet,
                        z,
                        t,
                        positive,
                        injection,
                        crops,
                        config,
                        generator=pca,
                        fps=fps,
                        step=i,
                        taps=taps,
                        checkpoint=low_memory,
                        reader=reader,
                        report=inner.update,
                    )
                done.losses += [LossRecord(i, t, k, loss) for k, loss in enumerate(losses)]
            with stages.stage("denoising"):
                here, edit = Pass("denoising", t, i), injection if i < config.inject_steps else no_tap
                options: dict[str, Any] = {"fps": fps, "window": config.window, "together": not low_memory}
                if i >= config.inject_steps and config.deep_every > 1:
                    if (i - config.inject_steps) % config.deep_every == 0:
                        deep = {}
                    options["deep"] = deep
                guides = config.guidance_steps is None or i < config.guidance_steps
                scale, watch = config.guidance_scale if guides else 1.0, taps(here)
                noise = partial(predict_noise, unet, z, t, negative, positive, scale, edit, **options)
                z = ddim_step(z, noise(tap=watch), at, to, eta=config.eta, generator=fresh)
                if not all_finite(z):
                    raise failure("the latents", here, culprit=first_bad_layer(noise, watch), dtype=unet.dtype)
            outer.update()
    return z, done


@torch.no_grad()
def _decoded(
    backbone: Backbone, z: Float[Tensor, "1 f c h w"], stages: Stages, low_memory: bool
) -> Float[Tensor, "f 3 hh ww"]:
    """The video; asked for NaN before the clamp, which makes ones of infinities."""
    give_back()  # the decoder's tensors are larger than what is left of the denoising, and would lie beside it
    with stages.stage("decode"):
        video = (backbone.vae.decode(z[0], chunk=1 if low_memory else 8) / 2 + 0.5).cpu()
    if not all_finite(video):
        bad = frames_text(~video.isfinite().flatten(1).all(-1))
        raise failure("the video", "decode", culprit=bad, dtype=backbone.vae.dtype)
    return video.clamp(0, 1)


def job_crops(backbone: Backbone, tracks: Tracks, config: MethodConfig) -> Crops:
    """Where the boxes lie on the working lattice, on the backbone's device.

    `tracks` are in pixels of the video, with one box per frame, as in `Result.tracks`.
    """
    factor, frames = backbone.config.vae.factor, len(tracks.objects[0].boxes)
    lattice = (2 * (tracks.height // factor), 2 * (tracks.width // factor))
    return make_crops(tracks, lattice, frames, first_box=config.first_box).to(backbone.device)


def video_masks(masks: Float[Tensor, "l o f y x"], crops: Crops, size: tuple[int, int]) -> list[Float[Tensor, "f h w"]]:
    """Per object the mean over the layers, put back on the frame and enlarged to `size` (height, width)."""
    canvas = paste(masks.mean(0), crops)
    return list(torch.nn.functional.interpolate(canvas, size=size, mode="nearest").cpu())
