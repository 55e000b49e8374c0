"""The settings of the comparators as frozen dataclasses. Free of torch.

A number of steps that is None is the published share of the job's denoising steps, at least one. Fields name the source
of their default; "published code" is the repository that each class names. Each quirk of published code is a field of
its own, whose default is what the method's paper says, or else the plain way.
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
    "lr": (0, 3e37),  # AdamW divides it by 0.1 at first, which must stay a number in float32
    "weight_decay": (0, 1000),
    "sigma": (1e-3, 1000),
    "weak_step": _COUNT,
    "strong_step": _COUNT,
    "scale": (0, 100),
}
"""Smallest and largest allowed value; infinity itself is never allowed."""


@dataclass(frozen=True)
class Settings:
    """What all comparators have.

    Raises InputError naming the field, its value and what is allowed.
    """

    injection: bool = False
    """Inject the condition image's features as AnyI2V does, with the settings of `MethodConfig`; off: the published
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
        """Plain data for JSON."""
        data = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls: type[S], data: Mapping[str, Any]) -> S:
        """The inverse of `to_dict`; absent fields take their defaults. Raises InputError for an unknown key."""
        hints = typing.get_type_hints(cls)
        for key in data:
            if key not in hints:
                raise InputError(f"{cls.__name__} has no setting {key!r}; the closest are {closest(key, hints)}")
        return cls(**{key: typed(key, value, hints[key]) for key, value in data.items()})


def share(count: int, of: int, steps: int) -> int:
    """The published `count` of `of` denoising steps, of `steps`; at least 1."""
    return max(1, round(count * steps / of))


@dataclass(frozen=True)
class FreeTrajSettings(Settings):
    """FreeTraj (Qiu et al. 2024, arXiv:2406.16863). Published code: arthur-qiu/FreeTraj at 1e0f64b."""

    subjects: tuple[str, ...] = ()
    """Words of the prompt that each object is, in the order of the tracks, as in "red circle"; none: the objects'
    names. The published code asks for positions of tokens."""
    edit_steps: int | None = None
    """Denoising steps with edited attention, from the noisiest. None: 6 of 50, as in the published code."""
    edit_self: bool = True
    """Isolate inside from outside in spatial self-attention."""
    edit_cross: bool = True
    """Bind the boxes to the objects' words in attention to the text."""
    edit_temporal: bool = True
    """Isolate inside from outside in attention over frames."""
    isolation: float = 0.01
    """What logits between inside and outside are multiplied by. Source: published code."""
    strength: float = 0.25
    """Attention that an object's words gain inside its box, divided by the box's share of the frame and by the number
    of tokens. Source: published code."""
    noise: bool = True
    """Begin with noise whose low frequencies move along with the boxes."""
    d_s: float = 0.25
    """Cut-off of the low frequencies in space, in units of the highest frequency. Source: published code."""
    d_t: float = 0.1
    """Cut-off in time. Source: published code."""
    box_size: Literal["first", "own"] = "first"
    """Boxes keep the first one's size in all grids, or each frame has its own in the edits of attention; the noise is
    one patch that is copied, so always the first one's. Source: published code."""
    wrap: bool = False
    """Boxes that leave the frame to the left or at the top come in again on the other side, as in the published code,
    which raises an error for those to the right or below; off: they are cut at the frame."""
    half: bool = False
    """Round the Gaussian and its strength to half precision, as the published code does."""


@dataclass(frozen=True)
class TrailBlazerSettings(Settings):
    """TrailBlazer (Ma et al. 2024, arXiv:2401.00896). Published code: hohonu-vicml/TrailBlazer at de2696e."""

    subjects: tuple[str, ...] = ()
    """Words of the prompt that each object is, in the order of the tracks, as in "red circle"; none: the objects'
    names. With several objects they are also the prompts by which each is sampled alone."""
    spatial_steps: int | None = None
    """Denoising steps with edited attention to the text, from the noisiest. None: 5 of 40, as published."""
    temporal_steps: int | None = None
    """Denoising steps with edited attention over frames, from the noisiest. None: 5 of 40, as published."""
    trailing: int = 15
    """Tokens behind the prompt, the end token first, that are edited like the subject's. Source: published code."""
    strengthen: float = 0.125
    """c_s, of the patch that is added inside a box. Source: published code."""
    weaken: float = 0.05
    """c_w, by which attention outside of a box is multiplied. Source: published code."""
    integration_steps: int | None = None
    """With several objects: denoising steps after which each one's box is blended with its own latents. None: 20 of
    40, as published."""
    margin: float = 0.0
    """What boxes lose on each side, in fractions of the frame; 0.01 in the published code, where no box reaches the
    last row and column."""
    thin_boxes: Literal["cell", "nothing"] = "cell"
    """A box thinner than a cell of a grid takes one cell there, or none, as in the published code, so that its words
    are weakened everywhere."""
    count_words: bool = False
    """Trailing tokens begin behind as many tokens as the prompt has words before a ";", as in the published code; off:
    at the end token."""
    absolute: bool = False
    """Take the absolute value of edited attention over frames, so that frames far apart, which the patch repels,
    attract each other, as in the published code."""
    temporal_pass: Literal["prompt", "negative"] = "prompt"
    """Which pass of the guidance has edited attention over frames: that of the negative prompt in the published code,
    and there at 512 x 512 pixels in one layer only."""
    subject_cells: Literal["box", "published"] = "box"
    """With several objects: cells that are blended; published: as of a square frame of the latents' width, with one
    more row above and column to the left."""
    half: bool = False
    """Round Gaussian, patch and weakening to half precision, as the published code does."""


@dataclass(frozen=True)
class SGI2VSettings(Settings):
    """SG-I2V (Namekata et al. 2024, arXiv:2411.04989). Published code: Kmcode1/SG-I2V at 52977a2."""

    layers: tuple[str, ...] = ("up_blocks.2.attentions.1", "up_blocks.2.attentions.2")
    """Layers whose self-attention is aligned. Source: published code."""
    first_step: int | None = None
    """First denoising step before which latents are optimised, from 0. None: 5 of 50, as published."""
    last_step: int | None = None
    """Last denoising step before which latents are optimised. None: 20 of 50, as published."""
    iterations: int = 5
    """Updates of the latents per step. Source: published code."""
    lr: float = 0.21
    """Learning rate of AdamW, whose state lasts one denoising step. Source: published code, for the latents of Stable
    Video Diffusion, which are not scaled to unit variance as those of other backbones are."""
    weight_decay: float = 0.01
    """AdamW's, on the latents. Source: published code (PyTorch's default)."""
    sigma: float = 0.4
    """Standard deviation of the Gaussian weight in halves of the box. Source: published code."""
    d_s: float = 0.5
    """Frequencies up to which the optimised latents are kept, in units of the highest; those above are the former
    ones'. Source: published code."""
    merge: bool = True
    """Keep the former latents' high frequencies."""
    stretch_first_box: bool = False
    """A first box that leaves the frame to the right or below is cut and then stretched to the box's size, as in the
    published code; off: what is not seen of it is not aligned."""
    half: bool = False
    """Round the latents to half precision after each optimised step, as the published code does."""


@dataclass(frozen=True)
class TimeToMoveSettings(Settings):
    """Time-to-Move (Singer et al. 2025, arXiv:2511.08633). Published code: time-to-move/TTM."""

    weak_step: int | None = None
    """Denoising step to begin with, from 0, on the noised animation: t_weak, for what lies outside the boxes. None: 14
    of 50, the paper's t_weak = 36 for Stable Video Diffusion."""
    strong_step: int | None = None
    """Denoising step up to whose beginning the boxes are held at the noised animation: t_strong. None: 25 of 50, the
    paper's for Stable Video Diffusion."""


@dataclass(frozen=True)
class SparseCtrlSettings(Settings):
    """SparseCtrl (Guo et al. 2023, arXiv:2311.16933). Published code: guoyww/AnimateDiff at e92bd56."""

    control: str | None = None
    """File of a sparse control network that `anyi2v convert --sparse-control` wrote, or the name of a shipped one.
    None: micro-sparsectrl, which is for the micro backbones."""
    scale: float = 1.0
    """Factor on what the network adds to the UNet. Source: published code."""
    frames: tuple[int, ...] = (1,)
    """Frames that the condition image is given for, from 1; negative ones count from the end, -1 is the last."""


ComparatorName = Literal["freetraj", "trailblazer", "sg-i2v", "time-to-move", "sparsectrl"]
MethodName = Literal["anyi2v", ComparatorName]
"""The methods that the command line knows."""

SETTINGS: dict[ComparatorName, type[Settings]] = {
    "freetraj": FreeTrajSettings,
    "trailblazer": TrailBlazerSettings,
    "sg-i2v": SGI2VSettings,
    "time-to-move": TimeToMoveSettings,
    "sparsectrl": SparseCtrlSettings,
}


def name_of(settings: Settings) -> ComparatorName:
    """The name of a method, by its settings."""
    return next(name for name, kind in SETTINGS.items() if isinstance(settings, kind))
