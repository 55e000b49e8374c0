"""Hyper-parameters of the method as one frozen dataclass; does not import torch.

The paper and the published code (FudanCVL/AnyI2V, commit 029c901) differ in several points. Each of them is one field
here, so a recipe is a set of values and never a separate code path. Each field documents the source of its values.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anyi2v.errors import InputError, closest
from anyi2v.hook_points import Point

Mask = Literal["dynamic", "static", "none"]
Clustering = Literal["per_frame", "joint"]
ClusterBy = Literal["similarity", "features"]
FirstFrameMask = Literal["per_object", "shared"]
Anchors = Literal["attached", "box_index"]
Normalise = Literal["per_object", "all_objects"]
FirstBox = Literal["clip", "stretch"]
PcaSolver = Literal["exact", "lowrank"]
SamplerName = Literal["ddim", "dpm-solver-2m"]
"""Names of the samplers in `anyi2v.samplers`."""

OperatorKind = Literal["fast", "reference"]
"""Implementation of the networks' operators: the fastest, or only the formulas in `anyi2v.operators.formulas`."""


@dataclass(frozen=True)
class MethodConfig:
    """All settings of the method. The defaults are the recipe "paper".

    Each field ends with the source of its default, and of its other values where they have one: the paper (section,
    equation, figure or table; A. is its appendix), the published code where the paper is silent, or neither, for a
    choice of this project. Notes on the published code's values: with `clustering="joint"` each layer has its own mask
    from one common 2-means; `first_frame_mask="shared"` is resampled in place, and thus softened, whenever a box has
    another shape; `anchors="box_index"` misses the object if a box was clipped or has grown; `normalise="all_objects"`
    lets large objects outweigh small ones; with `optimiser_state="iteration"` every update is lr times the sign of the
    gradient; `first_box="stretch"` distorts the visible part of the box.

    Raises InputError naming the field, its value and what is allowed.
    """

    steps: int = 25
    """Number of denoising steps. Source: Section 4."""
    guidance_scale: float = 8.0
    """Scale of classifier-free guidance; at 1 or below the unconditional pass is skipped. Source: published code."""
    guidance_steps: int | None = None
    """Number of denoising steps with guidance, counted from the noisiest; None: all. Later steps use the conditional
    prediction alone, in half the time. Source: neither."""
    deep_every: int = 1
    """After the injection, recompute the levels below the finest every N steps and reuse their features in between
    (DeepCache, arXiv:2312.00858); 1: recompute them in every step. Source: neither."""
    eta: float = 0.0
    """Amount of noise added per step, from 0 (DDIM, deterministic) to 1 (DDPM). Source: Section 4 (DDIM); more:
    neither."""
    window: int | None = None
    """Number of frames that temporal layers see at once, in windows that overlap by half; for videos longer than their
    positional encoding or their training clips. None: all frames. Source: neither."""
    initial_noise: Literal["independent", "carried"] = "independent"
    """Initial noise: independent in every frame, or carried along with the boxes (FreeTraj, arXiv:2406.16863). Source:
    Section 3.2 (random noise); carried: neither."""
    inversion: Literal["ddim", "noise"] = "ddim"
    """How the condition's latent reaches t_alpha: by DDIM inversion, or by adding random noise, which takes a single
    pass. Source: Section 3.2; noise: neither."""
    inversion_timestep: int = 201
    """Timestep t_alpha at which the condition image's features are recorded. Source: Section 4; others: Fig. 9."""
    inversion_stride: int = 1
    """Timesteps per inversion step, from t=1 upwards; 1 visits every timestep. Source: Section 4 (1000 steps); larger:
    neither."""

    inject_hidden: tuple[str, ...] = (
        "up_blocks.1.resnets.0.hidden",
        "up_blocks.1.resnets.1.hidden",
        "up_blocks.2.resnets.0.hidden",
        "up_blocks.2.resnets.1.hidden",
    )
    """Residual hidden states of frame 1 to replace by the condition's. Source: Sections 3.2 and 4."""
    inject_query: tuple[str, ...] = (
        "up_blocks.1.attentions.0.query",
        "up_blocks.1.attentions.1.query",
        "up_blocks.2.attentions.0.query",
        "up_blocks.2.attentions.1.query",
    )
    """Self-attention queries of frame 1 to replace by the condition's. Source: Sections 3.2 and 4."""
    share_kv: tuple[str, ...] = (
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.1",
    )
    """Layers whose self-attention uses frame 1's keys and values in every frame, in the passes with injection. Source:
    Section 3.2, the layers: published code; none: Table 2."""
    debias: bool = True
    """Adapt the injected hidden states to frame 1's own patch statistics (AdaIN); off: inject them unchanged. Source:
    Eq. 1 and 2; off: Fig. 10."""
    patch: int = 4
    """Side of the AdaIN patches, in feature cells; 0: the whole map is one patch. Source: Section 4; 0: Fig. 10."""
    inject_steps: int = 4
    """Number of denoising steps with injection, counted from the noisiest; every pass of the optimisation injects.
    Source: published code; the paper says only that they are early (A.2)."""

    align: tuple[str, ...] = ("up_blocks.1.attentions.1.query", "up_blocks.2.attentions.0.query")
    """Features to align along the tracks. Source: Section 4; others: Fig. 8 and Table 2."""
    optimise_steps: int = 6
    """Number of denoising steps before which the latents are optimised, counted from the noisiest. Source: published
    code, for t' >= 20 in Section 4 and t' <= 5 in A.2."""
    iterations: int = 5
    """Number of latent updates per optimised step. Source: published code, for "every 5 steps" in Section 4."""
    lr: float = 0.01
    """Learning rate of AdamW on the latents. Source: Section 4 and A.1."""
    weight_decay: float = 0.01
    """AdamW's weight decay. Source: published code (PyTorch's default)."""
    pca_dim: int | None = 64
    """Number of principal components to project the aligned features onto; None: no projection. A layer with fewer
    channels keeps all of them. Source: Eq. 4 and Section 4; others: Fig. 8 and Table 2."""
    pca_solver: PcaSolver = "lowrank"
    """PCA by the randomised `torch.pca_lowrank`, which is equal up to rounding, or by a full decomposition. Source:
    neither; exact: published code."""

    mask: Mask = "dynamic"
    """Masks from every frame's own features, from frame 1's only, or the whole box. A mask given with a track is used
    for that object in frame 1; "static" and "none" carry it to the other frames. Source: Eq. 5 to 8; static, none:
    Table 2; given masks: neither."""
    mask_margin: int = 0
    """Dilate each object's mask of frame 1, clustered or given, by this many cells before it is carried to the other
    frames. It stays inside its box; cells are those of the working lattice, two per latent cell along each axis.
    Source: Eq. 8 (no margin); more: neither."""
    clustering: Clustering = "per_frame"
    """Cluster each frame's mean similarity map of the layers, or all layers' maps of a frame jointly. Source: Eq. 7 for
    a mask per object and frame, neither for the mean of the layers; joint: published code."""
    clusters: int = 2
    """Number of K-Means clusters in each box; the one most similar to the salient points is the object. Two clusters of
    similarities are solved exactly, all else by Lloyd's algorithm. Source: Eq. 7 (2); more: neither."""
    cluster_by: ClusterBy = "similarity"
    """Input of K-Means: each cell's similarity to the salient points, or its reduced features. Source: Eq. 7; features:
    neither."""
    first_frame_mask: FirstFrameMask = "per_object"
    """Use each object's own mask of frame 1, or object 1's for all objects. Source: Eq. 8; shared: published code."""
    anchors: Anchors = "attached"
    """Salient points follow their object, or stay cells of the first box, clamped. Source: Eq. 5; box_index: published
    code."""
    normalise: Normalise = "per_object"
    """Divide differences by each object's own mask overlap, or their sum by the overlap of all objects. Source:
    neither, as Eq. 3 and 8 sum without dividing; all_objects: published code."""
    optimiser_state: Literal["step", "iteration"] = "step"
    """Keep AdamW's moments for a denoising step, or reset them in every iteration, which gives sign descent. Source:
    neither, as A.1 names AdamW alone; iteration: published code."""
    first_box: FirstBox = "clip"
    """Treatment of a first box that extends beyond the frame: clip it like any other, or stretch its visible part.
    Source: neither; stretch: published code."""
    remove_update_mean: bool = False
    """Subtract the mean per frame and channel from each update, which stabilises colours. Source: neither."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = typed(field.name, getattr(self, field.name), _HINTS[field.name])
            object.__setattr__(self, field.name, value)
            if field.name in _RANGES:
                _check_range(field.name, value, *_RANGES[field.name])
            if isinstance(value, tuple) and len(set(value)) < len(value):
                raise InputError(f"{field.name}={value!r} names a layer twice")
        if self.optimise_steps and self.iterations and not self.align:
            raise InputError("align=() leaves nothing to optimise; list a layer, or set optimise_steps=0")

    @classmethod
    def paper(cls) -> "MethodConfig":
        """Return the settings of the paper; where it is silent, those of the source named at each field."""
        return cls()

    @classmethod
    def official(cls) -> "MethodConfig":
        """Return the settings of the published code, oddities included, for numerical parity."""
        return cls(
            clustering="joint",
            first_frame_mask="shared",
            anchors="box_index",
            normalise="all_objects",
            optimiser_state="iteration",
            first_box="stretch",
            pca_solver="exact",
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MethodConfig":
        """Build a config from `to_dict` data; absent fields take their defaults.

        Older records store `share_kv` as a boolean, which means the layers of `inject_query`.

        Raises InputError for an unknown key, with the closest names, and for unusable values.
        """
        for key in data:
            if key not in _HINTS:
                raise InputError(f"the method has no setting {key!r}; the closest are {closest(key, _HINTS)}")
        if isinstance(data.get("share_kv"), bool):
            data = {**data, "share_kv": _layers_of_queries(data) if data["share_kv"] else ()}
        return cls(**{key: typed(key, value, _HINTS[key]) for key, value in data.items()})


@dataclass(frozen=True)
class AlignmentOptions:
    """The settings of `MethodConfig` that control how aligned features become a loss; documented there."""

    mask: Mask = "dynamic"
    mask_margin: int = 0
    clustering: Clustering = "per_frame"
    clusters: int = 2
    cluster_by: ClusterBy = "similarity"
    first_frame_mask: FirstFrameMask = "per_object"
    anchors: Anchors = "attached"
    normalise: Normalise = "per_object"

    @classmethod
    def of(cls, config: MethodConfig) -> "AlignmentOptions":
        """Extract the options from a method's settings."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


def _layers_of_queries(data: Mapping[str, Any]) -> tuple[str, ...]:
    names = typed("inject_query", data.get("inject_query", MethodConfig.inject_query), tuple[str, ...])
    return tuple(Point(name).layer for name in names)


_HINTS = typing.get_type_hints(MethodConfig)

_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "guidance_scale": (0, math.inf),
    "guidance_steps": (0, math.inf),
    "deep_every": (1, math.inf),
    "window": (1, math.inf),
    "eta": (0, 1),
    "inversion_timestep": (1, math.inf),
    "inversion_stride": (1, math.inf),
    "patch": (0, math.inf),
    "mask_margin": (0, math.inf),
    "clusters": (2, math.inf),
    "inject_steps": (0, math.inf),
    "optimise_steps": (0, math.inf),
    "iterations": (0, math.inf),
    "lr": (0, 3e37),  # AdamW first divides it by 0.1, which must stay finite in float32
    "weight_decay": (0, math.inf),
    "pca_dim": (1, math.inf),
}
"""Smallest and largest allowed value per field; infinity itself is never allowed."""


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is None or (low <= value <= high and math.isfinite(value)):
        return
    allowed = f"between {low:g} and {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
    raise InputError(f"{name}={value!r} is not allowed; it must be {allowed}")


def typed(name: str, value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint`: integers to floats, lists to tuples.

    Raises InputError naming `name`, the value, and what is allowed.
    """
    if typing.get_origin(hint) is Literal:
        ok, wish = value in typing.get_args(hint), " or ".join(map(repr, typing.get_args(hint)))
    elif typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        return typed(name, value, typing.get_args(hint)[0])
    elif typing.get_origin(hint) is tuple and float in typing.get_args(hint):
        length = len(typing.get_args(hint))
        ok, wish = isinstance(value, list | tuple) and len(value) == length, f"a list of {length} numbers"
        value = tuple(typed(name, item, float) for item in value) if ok else value
    elif typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        ok = isinstance(value, list | tuple) and all(type(item) is kind for item in value)
        wish = {str: "a list of layer names", int: "a list of whole numbers"}[kind]
        value = tuple(value) if ok else value
    elif hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        value, wish = float(value) if ok else value, "a number"
    else:
        ok = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
        wish = {int: "a whole number", bool: "true or false", str: "text"}[hint]
    if not ok:
        raise InputError(f"{name}={value!r} is not allowed; it must be {wish}")
    return value
