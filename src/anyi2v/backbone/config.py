"""Architectures as frozen dataclasses, stored as JSON in the metadata of every checkpoint.

Does not import torch, so that `anyi2v --help` and `anyi2v inspect` start quickly.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from anyi2v.errors import CheckpointError, InputError

NormOver = Literal["frame", "clip"]
T = TypeVar("T")
SPARSE_CONTROL: Literal["sparse_control"] = "sparse_control"
"""Kind of a configuration that is no backbone's, see `anyi2v.backbone.sparse_config`."""


@dataclass(frozen=True)
class MotionConfig:
    """AnimateDiff motion modules (checkpoints v1, v2 with a mid block, v3)."""

    heads: int = 8
    groups: int = 32
    """Groups of the module's own GroupNorm; AnimateDiff has 32 regardless of the UNet."""
    max_frames: int = 32
    """Rows of the sinusoidal position table: 24 for v1, 32 for v2 and v3."""
    mid: bool = False
    """Whether the mid block has a module (v2 only)."""
    attentions: int = 2
    norm_over: NormOver = "frame"
    """GroupNorm statistics per frame (AnimateDiff) or over all frames together."""
    kind: Literal["motion_modules"] = "motion_modules"


@dataclass(frozen=True)
class RotaryConfig:
    """LaVie's temporal attention inside each spatial transformer, with rotary and bucketed relative positions."""

    heads: int = 8
    rotary_dims: int = 32
    """Number of leading channels of each head that are rotated."""
    buckets: int = 32
    """Rows of the learned bias over frame distances."""
    max_distance: int = 32
    """Distance in frames from which all distances share a bucket."""
    kind: Literal["rotary"] = "rotary"


@dataclass(frozen=True)
class FactorisedConfig:
    """VideoCrafter2's temporal convolutions in ResBlocks and temporal transformers after spatial ones and the stem."""

    head_dim: int = 64
    """Head width of the temporal transformers."""
    groups: int = 32
    stem_heads: int = 8
    """Heads of the transformer after the first convolution; its width is this times `stem_head_dim`."""
    stem_head_dim: int = 64
    kind: Literal["factorised"] = "factorised"


@runtime_checkable
class TemporalConfig(Protocol):
    """Description of a UNet's temporal layers: a frozen dataclass of plain values with the name of its family."""

    @property
    def kind(self) -> str:
        """Name of the family, by which the class is looked up when a checkpoint is loaded."""
        ...


TEMPORAL_KINDS: dict[str, type] = {config.kind: config for config in (MotionConfig, RotaryConfig, FactorisedConfig)}
"""Families of temporal layers by name; `designs.register_family` adds one."""


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of an SD-1.x UNet and its temporal layers."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    """Whether each level, from the finest, has spatial transformers."""
    layers: int = 2
    """ResBlocks per down block; an up block has one more."""
    latent_channels: int = 4
    context_dim: int = 768
    """Width of the text tokens."""
    heads: int = 8
    head_dim: int | None = None
    """Width of every attention head; None: every layer has `heads` heads."""
    linear_projection: bool = False
    """Project into and out of spatial transformers with linear layers instead of 1x1 convolutions."""
    groups: int = 32
    norm_over: NormOver = "frame"
    """GroupNorm statistics of ResBlocks and output per frame, or over all frames (AnimateDiff v1, LaVie)."""
    temporal: TemporalConfig | None = field(default_factory=MotionConfig)
    fps_embedding: bool = False
    """Embed the frame rate like the timestep and add both embeddings."""
    even_grids: bool = False
    """Require latent sizes divisible by `downscale`; otherwise odd grids are rounded up when downsampling."""

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.attention):
            raise InputError(
                f"UNetConfig: {len(self.channels)} channel widths but {len(self.attention)} attention flags; "
                "give one flag per level"
            )
        for width in self.channels:
            parts = self.head_dim or self.heads
            if width % self.groups or width % parts:
                raise InputError(
                    f"UNetConfig: channel width {width} is not a multiple of groups={self.groups} and of "
                    + (f"head_dim={parts}" if self.head_dim else f"heads={parts}")
                )

    def heads_of(self, channels: int) -> int:
        """Return the number of attention heads of a layer with `channels` channels."""
        return channels // self.head_dim if self.head_dim else self.heads

    @property
    def downscale(self) -> int:
        """Ratio of the finest to the coarsest grid."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class VAEConfig:
    """Architecture of the autoencoder (AutoencoderKL)."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32
    scale: float = 0.18215
    """Latents of the UNet = scale * latents of the VAE."""

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each axis."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """Architecture of a CLIP text tower; the defaults are SD-1.x's ViT-L/14."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    length: int = 77
    """Tokens per prompt."""
    vocab_size: int = 49408
    quick_gelu: bool = True
    penultimate: bool = False
    """Use the normed states before the last layer (SD-2.x, VideoCrafter2) instead of those after it."""
    pad_zero: bool = False
    """Pad prompts with token 0 (SD-2.x, VideoCrafter2) instead of the end token (SD-1.x)."""
    words: tuple[str, ...] | None = None
    """Vocabulary of whole words, the first three <pad>, <bos>, <eos>; None: CLIP's byte-pair tokens."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Noise schedule."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    curve: Literal["linear", "scaled_linear"] = "linear"
    steps_offset: int = 1
    final_alpha_one: bool = True
    """The level before the first timestep has alphas_cumprod 1 (else alphas_cumprod[0])."""
    spacing: Literal["leading", "uniform"] = "leading"
    """Spacing of the sampler's timesteps; see `anyi2v.diffusion.sampling_timesteps`."""
    x0_scale: float = 1.0
    """The signal is multiplied by a factor that falls from 1 to this over the first `x0_scale_steps` timesteps."""
    x0_scale_steps: int = 400
    prediction: Literal["epsilon", "v"] = "epsilon"
    """Output of the UNet: the noise, or v = signal * noise - noise level * latents (Salimans & Ho 2022, app. D)."""


@dataclass(frozen=True)
class BackboneConfig:
    """The complete configuration of a backbone, stored in its checkpoint."""

    name: str
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    height: int = 512
    width: int = 512
    frames: int = 16
    fps: int = 8
    method: dict[str, Any] = field(default_factory=dict)
    """Fields of MethodConfig with other defaults on this backbone."""

    @property
    def multiple(self) -> int:
        """Number of pixels that width and height of a video must be multiples of."""
        return self.vae.factor * (self.unet.downscale if self.unet.even_grids else 1)

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError, naming the nearest valid sizes, if this backbone cannot generate this size."""
        n = self.multiple
        if width > 0 and height > 0 and not (width % n or height % n):
            return
        below, above = (f"{max(width + rest, n) // n * n}x{max(height + rest, n) // n * n}" for rest in (0, n - 1))
        near = below if below == above else f"{below} and {above}"
        raise InputError(
            f"the video's size is {width}x{height} px; both must be multiples of {n} on this backbone; nearest: {near}"
        )

    def to_json(self) -> str:
        """Convert this configuration to JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "BackboneConfig":
        """Parse JSON from `to_json`; raises CheckpointError on unknown fields."""
        return from_dict(BackboneConfig, json.loads(text))


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """Build dataclass `cls` from plain JSON data, including nested dataclasses; lists become tuples.

    Raises CheckpointError naming fields that `cls` does not have.
    """
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise CheckpointError(
            f"{cls.__name__} has no field {', '.join(sorted(unknown))}; was the file written by a newer version?"
        )
    return cls(**{key: _value(hints[key], value) for key, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [o for o in typing.get_args(hint) if o is not type(None)]
        if value is not None and TemporalConfig in options:
            _check_object("temporal layers", value)
            kind = value.get("kind", MotionConfig.kind)
            if kind not in TEMPORAL_KINDS:
                raise CheckpointError(
                    f"temporal layers of the unknown kind {kind!r}; call register_family for a custom family before "
                    "reading its files, or the file needs a newer version"
                )
            return from_dict(TEMPORAL_KINDS[kind], value)
        return None if value is None else _value(options[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _check_object(hint.__name__, value)
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, item) for item in value)
    return value


def _check_object(what: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise CheckpointError(f"the configuration cannot be read: {what} must be an object, but is {value!r}")
