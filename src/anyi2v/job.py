"""The data classes of a job and its result, and the protocol of a method.

`anyi2v.animate` checks a job and runs the denoising loop; a `Method` controls how the video is steered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import UNet
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step, inversion_timesteps, sampling_pairs
from anyi2v.errors import InputError, plural
from anyi2v.images.media import check_image
from anyi2v.images.video import MAX_FPS, write_video
from anyi2v.method.config import MethodConfig, OperatorKind
from anyi2v.taps import Tap, Taps, no_tap, no_taps
from anyi2v.timing import Stages
from anyi2v.tracks import Tracks
from anyi2v.tracks.checks import MAX_FRAMES, shown


@dataclass(frozen=True)
class Job:
    """All inputs of one video."""

    backbone: Backbone
    image: Float[Tensor, "3 h w"]
    """Condition image in [0, 1], at the size of the video."""
    prompt: str
    negative_prompt: str
    tracks: Tracks
    """In pixels of the video, one box per frame."""
    config: MethodConfig
    seed: int
    frames: int
    fps: int
    low_memory: bool = False
    features: Mapping[str, Tensor] | None = None
    """Features of the condition image from an earlier job; None: compute them."""
    cache: Path | None = None
    """Folder that caches such features."""
    taps: Taps = no_taps
    stages: Stages = field(default_factory=Stages, repr=False)
    """Collects timings and reports progress."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the latents: one clip, frames, channels, height, width."""
        vae, (height, width) = self.backbone.config.vae, self.image.shape[1:]
        return 1, self.frames, vae.latent_channels, height // vae.factor, width // vae.factor

    @property
    def steps(self) -> list[Step]:
        """The denoising steps, from noise to image."""
        return sampling_pairs(self.backbone.config.schedule, self.config.steps)


@dataclass(frozen=True)
class LossRecord:
    """Value of the objective before one update of the latents."""

    step: int
    """Denoising step, from 0."""
    timestep: int
    iteration: int
    loss: float


@dataclass(frozen=True)
class Result:
    """A finished video together with the settings and intermediate results behind it."""

    video: Float[Tensor, "f 3 h w"]
    """Frames with values in [0, 1]."""
    masks: list[Float[Tensor, "f h w"]]
    """Per object, the semantic masks of the last optimisation step, at the size of the video; empty if none were
    computed."""
    losses: list[LossRecord]
    timings: dict[str, float]
    """Seconds per stage."""
    prompt: str
    negative_prompt: str
    tracks: Tracks
    """The tracks as used: in pixels of the video, one box per frame."""
    config: MethodConfig
    seed: int
    fps: int
    features: dict[str, Tensor]
    """Features recorded by the inversion, by hook point; can be passed to `animate` again."""
    features_given: bool = False
    """Whether `features` was an argument of `animate`."""
    low_memory: bool = False
    """The argument of `animate`; affects rounding."""
    operators: OperatorKind = "fast"
    """Operators of the backbone; they affect rounding as well."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Names of the method, sampler and objective that were passed to `animate` in place of the defaults. A custom part
    has the qualified name of its class or function."""
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method if it is one of `anyi2v.comparators`, else empty."""

    def __repr__(self) -> str:
        """Describe the result on one line, without its tensors."""
        frames, _, height, width = self.video.shape
        video = f"{plural(frames, 'frame')} of {width}x{height} px"
        objects = plural(len(self.tracks.objects), "object")
        return f"<Result: {video}, {self.prompt!r}, {objects}, seed {self.seed}>"

    def save(self, path: str | Path) -> None:
        """Write the video as mp4, GIF or npz, chosen by the suffix of `path`."""
        write_video(path, self.video, fps=self.fps)


class Run:
    """One job under a method. This base class only samples; methods override what they change."""

    features: Mapping[str, Tensor] = {}
    """Features recorded from the condition image, for `Result.features`."""
    losses: Sequence[LossRecord] = ()
    """Losses minimised by `guide`, one per update."""
    first_step: int = 0
    """The denoising step to start from; `initial_latents` returns latents at its noise level."""

    def initial_latents(self, noise: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "1 f c h w"]:
        """Return the initial latents, given white noise."""
        return noise

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Update the latents before a step; called with gradients enabled."""
        return z

    def tap(self, step: Step) -> Tap:
        """Return the tap that edits the pass with the prompt in a step."""
        return no_tap

    def negative_tap(self, step: Step) -> Tap:
        """Return the tap that edits the pass with the negative prompt in a step."""
        return no_tap

    def masks(self) -> list[Float[Tensor, "f h w"]]:
        """Return each object's mask per frame, at the size of the video; empty if there are none."""
        return []


@runtime_checkable
class Method(Protocol):
    """A way to steer a video; holds settings but no state of a job."""

    def start(self, job: Job, denoiser: Denoiser, /) -> Run:
        """Prepare a job: check its requirements and compute what is constant over the steps."""
        ...


def check_kinds(config: object, method: object = None, sampler: object = None, objective: object = None) -> None:
    """Raise InputError for an argument of the wrong kind, such as a part's name or class in place of an object."""
    if not isinstance(config, MethodConfig):
        raise InputError(
            f"config is a {type(config).__name__}; it must be a MethodConfig, for example backbone.method(steps=12)"
        )
    for name, part, usable, example in (
        ("method", method, isinstance(method, Method), "anyi2v.comparators.SGI2V()"),
        ("sampler", sampler, callable(sampler), "anyi2v.samplers.DPMSolver2M()"),
        ("objective", objective, callable(objective), "anyi2v.method.objective.FeatureAlignment(config)"),
    ):
        if part is not None and (isinstance(part, type) or not usable):
            given = f"the class {part.__name__}" if isinstance(part, type) else shown(part)
            raise InputError(f"{name} is {given}; it must be an object, for example {example}")


def check_general(
    backbone: Backbone, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0
) -> None:
    """Check the job's requirements that do not depend on the method, before any work is done.

    Raises:
        InputError: see `check_asked`; also if torch's default dtype is not float32, or if the weights were created in
            inference mode.
    """
    check_asked(backbone.config, backbone.unet, image, config, frames, fps, seed)
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default dtype is {torch.get_default_dtype()}, but a job's own tensors are float32; call "
            "torch.set_default_dtype(torch.float32) first (load(dtype=...) sets the dtype of the networks)"
        )
    if any(x.is_inference() for network in backbone.networks.values() for x in network.parameters()):
        raise InputError(
            "the backbone's weights were created inside torch.inference_mode(), so no gradient can be computed through "
            "them; load or move the backbone outside of that mode"
        )


def check_asked(
    backbone: BackboneConfig, unet: UNet, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0
) -> None:
    """Run the checks of `check_general` that need no weights; the UNet may be on the meta device.

    Raises:
        InputError: the image, its size, the number of frames, the frame rate, the seed or the timesteps are not usable.
    """
    check_image(image)
    if not 1 <= fps <= MAX_FPS:
        raise InputError(f"{fps} frames per second requested; it must be 1 to {MAX_FPS}")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} is not allowed; it must be an integer of at most 64 bits")
    backbone.check_size(image.shape[2], image.shape[1])
    _check_frames(unet.design.max_frames, backbone.frames, config, frames)
    inversion_timesteps(backbone.schedule, until=config.inversion_timestep, stride=config.inversion_stride)
    sampling_pairs(backbone.schedule, config.steps)


def _check_frames(limit: int | None, usual: int, config: MethodConfig, frames: int) -> None:
    """Raise InputError for more than `limit` frames, the maximum of the temporal layers, without a window.

    `usual` is the backbone's default number of frames, suggested as the window.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"{frames} frames requested; a video has 1 to {MAX_FRAMES}")
    if limit is not None and config.window is not None and config.window > limit:
        raise InputError(
            f"window={config.window}, but the backbone's temporal layers see at most {limit} frames at once"
        )
    if limit is not None and config.window is None and frames > limit:
        raise InputError(
            f"{frames} frames requested, but this backbone generates 1 to {limit}; a longer video needs a window, for "
            f"example window={min(limit, usual)}"
        )
