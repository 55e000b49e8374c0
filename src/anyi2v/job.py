"""One job as data, what comes of it, and what a method is.

`anyi2v.animate` checks a job and runs the loop; a `Method` decides how the video is steered.
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
from anyi2v.errors import InputError
from anyi2v.images.media import check_image
from anyi2v.images.video import MAX_FPS, write_video
from anyi2v.method.config import MethodConfig, OperatorKind
from anyi2v.taps import Tap, Taps, no_tap, no_taps
from anyi2v.timing import Stages
from anyi2v.tracks import Tracks
from anyi2v.tracks.checks import MAX_FRAMES


@dataclass(frozen=True)
class Job:
    """Everything that one video is made from."""

    backbone: Backbone
    image: Float[Tensor, "3 h w"]
    """The condition, in [0, 1], at the video's size."""
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
    """Of the condition image, from an earlier job; None: they are computed."""
    cache: Path | None = None
    """Folder where such features are kept."""
    taps: Taps = no_taps
    stages: Stages = field(default_factory=Stages, repr=False)
    """Where seconds and progress are reported."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """Of the latents: one clip, frames, channels, height, width."""
        vae, (height, width) = self.backbone.config.vae, self.image.shape[1:]
        return 1, self.frames, vae.latent_channels, height // vae.factor, width // vae.factor

    @property
    def steps(self) -> list[Step]:
        """The denoising steps, from noise to image."""
        return sampling_pairs(self.backbone.config.schedule, self.config.steps)


@dataclass(frozen=True)
class LossRecord:
    """The objective before one update of the latents."""

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
    operators: OperatorKind = "fast"
    """Those of the backbone; they too decide how the results are rounded."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The parts of the algorithm that were arguments of `animate` - method, sampler, objective - by their names; those
    that this package does not know have the name of their class or function, with a dot."""
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, where it is one of `anyi2v.comparators`."""

    def save(self, path: str | Path) -> None:
        """Writes the video: mp4, GIF or npz by the ending of `path`."""
        write_video(path, self.video, fps=self.fps)


class Run:
    """One job under a method. This one does nothing but sample; a method's overrides what it does otherwise."""

    features: Mapping[str, Tensor] = {}
    """What was recorded of the condition image, for `Result.features`."""
    losses: Sequence[LossRecord] = ()
    """What `guide` has minimised."""
    first_step: int = 0
    """The denoising step to begin with; `initial_latents` have its noise level."""

    def initial_latents(self, noise: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "1 f c h w"]:
        """The latents to begin with, of white noise."""
        return noise

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Moves the latents before a step; called with gradients on."""
        return z

    def tap(self, step: Step) -> Tap:
        """What edits the pass with the prompt in a step."""
        return no_tap

    def negative_tap(self, step: Step) -> Tap:
        """What edits the pass with the negative prompt in a step."""
        return no_tap

    def masks(self) -> list[Float[Tensor, "f h w"]]:
        """Per object its mask in every frame, at the video's size; empty without any."""
        return []


@runtime_checkable
class Method(Protocol):
    """A way to steer a video; holds settings, and nothing of a job."""

    def start(self, job: Job, denoiser: Denoiser, /) -> Run:
        """Prepares a job: checks what it needs, and computes what does not change from step to step."""
        ...


def check_general(
    backbone: Backbone, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0
) -> None:
    """Finds out what cannot work whatever the method is, before any work is done.

    Raises:
        InputError: what `check_asked` finds, torch's default dtype, or weights that no gradient goes through.
    """
    check_asked(backbone.config, backbone.unet, image, config, frames, fps, seed)
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


def check_asked(
    backbone: BackboneConfig, unet: UNet, image: Tensor, config: MethodConfig, frames: int, fps: int, seed: int = 0
) -> None:
    """The part of `check_general` that needs no weights: the UNet may be on the meta device.

    Raises:
        InputError: the image, its size, the number of frames, the frame rate, the seed or the timesteps.
    """
    check_image(image)
    if not 1 <= fps <= MAX_FPS:
        raise InputError(f"{fps} frames per second asked for; it must be 1 to {MAX_FPS}")
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed} is not allowed; it must be a whole number of at most 64 bits")
    backbone.check_size(image.shape[2], image.shape[1])
    _check_frames(unet.design.max_frames, backbone.frames, config, frames)
    inversion_timesteps(backbone.schedule, until=config.inversion_timestep, stride=config.inversion_stride)
    sampling_pairs(backbone.schedule, config.steps)


def _check_frames(limit: int | None, usual: int, config: MethodConfig, frames: int) -> None:
    """Raises InputError for more frames than temporal layers see, `limit`; `usual` is the backbone's own number."""
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"{frames} frames asked for; a video has 1 to {MAX_FRAMES}")
    if limit is not None and config.window is not None and config.window > limit:
        raise InputError(
            f"window={config.window}, but the backbone's temporal layers see at most {limit} frames at once"
        )
    if limit is not None and config.window is None and frames > limit:
        raise InputError(
            f"{frames} frames asked for, but this backbone makes 1 to {limit}; a longer video needs a window, for "
            f"example window={min(limit, usual)}"
        )
