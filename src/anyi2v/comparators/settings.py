"""Settings of the comparators as frozen dataclasses. Imports no torch.

A step count of None means the published share of the job's denoising steps, at least one. Each field names the source
of its default; "published code" is the repository named in the class. Each quirk of published code is a field of its
own, whose default follows the paper or, where the paper is silent, the plain behaviour.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from anyi2v.errors import InputError, closest
from anyi2v.method.config import typed

S = TypeVar("S", bound="Settings")
_COUNT = (0, math.inf)
_RANGES: dict[str, tuple[float, float]] = {
    "edit_steps": _COUNT,
    "isolation": (0, 1),
    "strength": (0, 1000),
    "d_s": (1e-3, 10),
    "d_t": (1e-3, 10),
    "spatial_steps": _COUNT,
    "temporal_steps": _COUNT,
    "integration_steps": _COUNT,
    "trailing": (0, 1000),
    "strengthen": (0, 1000),
    "weaken": (0, 1),
    "margin": (0, 0.1),
    "first_step": _COUNT,
    "last_step": _COUNT,
    "iterations": (1, math.inf),
    "lr": (0, 3e37),  # AdamW divides it by 0.1 at first; the result must be finite in float32
    "weight_decay": (0, 1000),
    "sigma": (1e-3, 1000),
    "weak_step": _COUNT,
    "strong_step": _COUNT,
    "scale": (0, 100),
}
"""Smallest and largest allowed values; infinity itself is never allowed."""


@dataclass(frozen=True)
class Settings:
    """Settings common to all comparators.

    Raises:
        InputError: a value is out of range; the message names the field, its value and the allowed range.
    """

    injection: bool = False
    """Inject features of the condition image as AnyI2V does, with the settings of `MethodConfig`. Off: the published
    method alone."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = typed(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            low, high = _RANGES.get(field.name, (-math.inf, math.inf))
            if isinstance(value, int | float) and not (low <= value <= high and math.isfinite(value)):
                allowed = f"between {low:g} and {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
                raise InputError(f"{field.name}={value!r} is not allowed; it must be {allowed}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls: type[S], data: Mapping[str, Any]) -> S:
        """The inverse of `to_dict`; missing fields take their defaults. Raises InputError for an unknown key."""
        hints = typing.get_type_hints(cls)
        for key in data:
            if key not in hints:
                raise InputError(f"{cls.__name__} has no setting {key!r}; the closest are {closest(key, hints)}")
        return cls(**{key: typed(key, value, hints[key]) for key, value in data.items()})


def share(count: int, of: int, steps: int) -> int:
    """Scale `count` of `of` published denoising steps to `steps`; at least 1."""
    return max(1, round(count * steps / of))


@dataclass(frozen=True)
class FreeTrajSettings(Settings):
    """FreeTraj (Qiu et al. 2024, arXiv:2406.16863). Published code: arthur-qiu/FreeTraj at 1e0f64b."""

    subjects: tuple[str, ...] = ()
    """Words of the prompt that describe each object, such as "red circle", in the order of the tracks. Empty: the
    objects' names. The published code takes token positions instead."""
    edit_steps: int | None = None
    """Number of denoising steps with edited attention, from the noisiest. None: 6 of 50, as in the published code."""
    edit_self: bool = True
    """Separate the inside and outside of the boxes in spatial self-attention."""
    edit_cross: bool = True
    """Bind the boxes to the objects' words in text cross-attention."""
    edit_temporal: bool = True
    """Separate the inside and outside of the boxes in temporal attention."""
    isolation: float = 0.01
    """Factor on attention logits between inside and outside. Source: published code."""
    strength: float = 0.25
    """Attention added to an object's words inside its box, divided by the box's share of the frame and by the number of
    tokens. Source: published code."""
    noise: bool = True
    """Start from noise whose low frequencies move with the boxes."""
    d_s: float = 0.25
    """Spatial cut-off of the low frequencies, relative to the highest frequency. Source: published code."""
    d_t: float = 0.1
    """Temporal cut-off of the low frequencies. Source: published code."""
    box_size: Literal["first", "own"] = "first"
    """Size of the boxes in the attention edits: the first box's in all frames, or each frame's own. The noise always
    uses the first one's, because a single patch is copied. Source: published code."""
    wrap: bool = False
    """Wrap boxes that leave the frame at the left or top around to the other side, as in the published code, which
    raises an error for boxes that leave it at the right or bottom. Off: boxes are clipped to the frame."""
    half: bool = False
    """Round the Gaussian and its strength to half precision, as the published code does."""


@dataclass(frozen=True)
class TrailBlazerSettings(Settings):
    """TrailBlazer (Ma et al. 2024, arXiv:2401.00896). Published code: hohonu-vicml/TrailBlazer at de2696e."""

    subjects: tuple[str, ...] = ()
    """Words of the prompt that describe each object, such as "red circle", in the order of the tracks. Empty: the
    objects' names. With several objects, they are also the prompts with which each object is sampled alone."""
    spatial_steps: int | None = None
    """Number of denoising steps with edited text cross-attention, from the noisiest. None: 5 of 40, as published."""
    temporal_steps: int | None = None
    """Number of denoising steps with edited temporal attention, from the noisiest. None: 5 of 40, as published."""
    trailing: int = 15
    """Number of tokens after the prompt, starting with the end token, edited like the subject's. Source: published
    code."""
    strengthen: float = 0.125
    """c_s, factor of the patch added inside a box. Source: published code."""
    weaken: float = 0.05
    """c_w, factor on attention outside a box. Source: published code."""
    integration_steps: int | None = None
    """With several objects: number of denoising steps after which the latents of each object, sampled alone, are
    blended into its box. None: 20 of 40, as published."""
    margin: float = 0.0
    """Amount by which boxes shrink on each side, as a fraction of the frame; 0.01 in the published code, where no box
    reaches the last row and column."""
    thin_boxes: Literal["cell", "nothing"] = "cell"
    """Size of a box thinner than a grid cell: one cell, or nothing, as in the published code, where its words are then
    weakened everywhere."""
    count_words: bool = False
    """Start the trailing tokens at a position given by the number of words before a ";" in the prompt, as in the
    published code. Off: start at the end token."""
    absolute: bool = False
    """Take the absolute value of edited temporal attention, as in the published code; distant frames, which the patch
    repels, then attract each other."""
    temporal_pass: Literal["prompt", "negative"] = "prompt"
    """Guidance pass with edited temporal attention. The published code edits the pass with the negative prompt, and at
    512 x 512 pixels only one layer of it."""
    subject_cells: Literal["box", "published"] = "box"
    """Cells blended with several objects. published: computed for a square frame of the latents' width, with one more
    row above and one more column on the left."""
    half: bool = False
    """Round the Gaussian, the patch and the weakening factor to half precision, as the published code does."""


@dataclass(frozen=True)
class SGI2VSettings(Settings):
    """SG-I2V (Namekata et al. 2024, arXiv:2411.04989). Published code: Kmcode1/SG-I2V at 52977a2."""

    layers: tuple[str, ...] = ("up_blocks.2.attentions.1", "up_blocks.2.attentions.2")
    """Layers whose self-attention output is aligned. Source: published code."""
    first_step: int | None = None
    """First denoising step, from 0, before which the latents are optimised. None: 5 of 50, as published."""
    last_step: int | None = None
    """Last denoising step before which the latents are optimised. None: 20 of 50, as published."""
    iterations: int = 5
    """Updates of the latents per denoising step. Source: published code."""
    lr: float = 0.21
    """Learning rate of AdamW, whose state is reset at each denoising step. Source: published code, for the latents of
    Stable Video Diffusion, which are not scaled to unit variance as those of other backbones are."""
    weight_decay: float = 0.01
    """Weight decay of AdamW on the latents. Source: published code (PyTorch's default)."""
    sigma: float = 0.4
    """Standard deviation of the Gaussian weight, relative to half the box size. Source: published code."""
    d_s: float = 0.5
    """Frequencies, relative to the highest, up to which the optimised latents are kept; higher ones are taken from the
    latents before optimisation. Source: published code."""
    merge: bool = True
    """Keep the high frequencies of the latents before optimisation."""
    stretch_first_box: bool = False
    """Clip a first box that leaves the frame at the right or bottom, then stretch it to the box's size, as in the
    published code. Off: the invisible part is not aligned."""
    half: bool = False
    """Round the latents to half precision after each optimised step, as the published code does."""


@dataclass(frozen=True)
class TimeToMoveSettings(Settings):
    """Time-to-Move (Singer et al. 2025, arXiv:2511.08633). Published code: time-to-move/TTM."""

    weak_step: int | None = None
    """Denoising step, from 0, at which sampling starts from the noised animation: t_weak, for the region outside the
    boxes. None: 14 of 50, the paper's t_weak = 36 for Stable Video Diffusion."""
    strong_step: int | None = None
    """Denoising step until which the boxes are reset to the noised animation: t_strong. None: 25 of 50, the paper's
    value for Stable Video Diffusion."""


@dataclass(frozen=True)
class SparseCtrlSettings(Settings):
    """SparseCtrl (Guo et al. 2023, arXiv:2311.16933). Published code: guoyww/AnimateDiff at e92bd56."""

    control: str | None = None
    """File of a sparse control network written by `anyi2v convert --sparse-control`, or the name of a shipped one.
    None: micro-sparsectrl, which fits the micro backbones."""
    scale: float = 1.0
    """Factor on the residuals that the network adds to the UNet. Source: published code."""
    frames: tuple[int, ...] = (1,)
    """Frames for which the condition image is given, from 1; negative numbers count from the end, -1 is the last
    frame."""


ComparatorName = Literal["freetraj", "trailblazer", "sg-i2v", "time-to-move", "sparsectrl"]
MethodName = Literal["anyi2v", ComparatorName]
"""Names of all methods on the command line."""

SETTINGS: dict[ComparatorName, type[Settings]] = {
    "freetraj": FreeTrajSettings,
    "trailblazer": TrailBlazerSettings,
    "sg-i2v": SGI2VSettings,
    "time-to-move": TimeToMoveSettings,
    "sparsectrl": SparseCtrlSettings,
}


def name_of(settings: Settings) -> ComparatorName:
    """Return the name of the method that these settings belong to."""
    return next(name for name, kind in SETTINGS.items() if isinstance(settings, kind))
