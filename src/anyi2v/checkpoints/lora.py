"""Reading and merging of LoRA files and their variants; `lora_kinds` has the formulas, `lora_alphas` the scales.

Supported layouts are those of kohya and LyCORIS, PEFT, diffusers, and AnimateDiff's motion LoRA and domain adapter.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.checkpoints.embeddings import bundled
from anyi2v.checkpoints.foreign import read_tensors
from anyi2v.checkpoints.header import guess
from anyi2v.checkpoints.lora_alphas import declared_in, scale_of
from anyi2v.checkpoints.lora_family import family
from anyi2v.checkpoints.lora_kinds import (
    MAGNITUDES,
    Parts,
    additive,
    kind_of,
    misfit,
    product,
    scales_rows,
    trained,
)
from anyi2v.checkpoints.lora_names import Grouping, Side, Site, group, is_lora, sites, unsupported
from anyi2v.errors import AnyI2VWarning, CheckpointError, InputError

Lora = tuple[str | Path, float]
"""A LoRA file and its weight; 0 has no effect, 1 is as trained."""


@dataclass(frozen=True, eq=False)
class Delta:
    """An update of a weight, or of some of its rows: W + weight * (W as trained - W)."""

    parts: Parts
    """Tensors of the module, see `lora_kinds`; linear layers and 1x1 convolutions are interchangeable."""
    scale: float
    """Scale of the update, alpha / rank."""
    weight: float
    """Weight of the update; 0 has no effect, 1 is as trained."""
    rows: slice
    """Rows of the weight that are updated."""

    @property
    def factor(self) -> float:
        """Total factor of an update that does not depend on W."""
        return self.weight * self.scale

    def update(self, base: Float[Tensor, "rows *inner"]) -> Float[Tensor, "rows *inner"]:
        """Compute what to add to these rows of the original weight, in its dtype."""
        parts = {side: x.to(base.device, base.dtype) for side, x in self.parts.items()}
        if not additive(parts):
            # the same rounding regardless of the memory format
            base = base.contiguous()
            return self.weight * (trained(parts, self.scale, base) - base)
        if parts.keys() - {"alpha"} == {"down", "up"}:
            # scale the small matrix to avoid another tensor of W's size
            parts["up"] = self.factor * parts["up"]
            return product(parts).view_as(base)
        return (self.factor * product(parts)).view_as(base)

    def added_to(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return a new tensor with only this update, computed as by `added`, in the dtype of `tensor`."""
        return added(tensor, [self]).to(tensor.dtype)


def added(tensor: Float[Tensor, "*shape"], deltas: Iterable[Delta]) -> Float[Tensor, "*shape"]:
    """Add all updates, each of the original weight, to a new tensor; in float32, or the dtype of `tensor` if wider."""
    base = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    total = base.clone()
    for delta in deltas:
        total[delta.rows] += delta.update(base[delta.rows])
    return total


def bake(
    key: str, tensor: Float[Tensor, "*shape"], deltas: Iterable[Delta], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """Add all updates to the weight `key`, and round to `dtype` once at the end.

    Raises CheckpointError if a value does not fit into `dtype`.
    """
    total = added(tensor, deltas)
    baked = total.to(dtype)
    if not baked.isfinite().all():
        raise CheckpointError(
            f"{key} with its LoRAs does not fit into {dtype}: its largest magnitude is {total.abs().max().item():g}; "
            "lower the weights of the LoRAs"
        )
    return baked


def read_loras(
    loras: Sequence[Lora], *, keys: Mapping[str, Sequence[int]], strict: bool = True
) -> dict[str, list[Delta]]:
    """Read the updates of several files, in order; `keys`, `strict` and errors as in `read_lora`."""
    deltas: dict[str, list[Delta]] = {}
    for path, weight in loras:
        for key, more in read_lora(path, weight, keys=keys, strict=strict).items():
            deltas.setdefault(key, []).extend(more)
    return deltas


def read_lora(
    path: str | Path,
    weight: float = 1.0,
    *,
    keys: Mapping[str, Sequence[int]],
    alpha: Literal["file", "ignored"] = "file",
    strict: bool = True,
) -> dict[str, list[Delta]]:
    """Read the updates in a LoRA file, by the key of the weight that they change.

    Args:
        path: .safetensors file, or a file of `torch.save` without code.
        weight: scale of all updates; 0 has no effect, 1 is as trained. Updates that depend on W (DoRA, IA3) are
            interpolated.
        keys: all keys of the backbone's checkpoint with their shapes.
        alpha: "file" scales each module by alpha / rank if an alpha is given as a tensor, in diffusers' metadata, or in
            PEFT's adapter_config.json next to an adapter_model file, else by 1. "ignored" always scales by 1, as
            AnimateDiff's loader does.
        strict: whether a key whose module the backbone does not have is an error or a warning. All keys of modules that
            it has must be supported: a module is applied exactly as trained, or not at all.

    Raises:
        InputError: the file does not exist, or the weight is not finite.
        CheckpointError: the file is not a weights file; keys match nothing (if strict) or are of an unsupported kind;
            modules are incomplete or duplicate; shapes do not fit; or values are not finite.
    """
    if not math.isfinite(weight):
        raise InputError(f"LoRA {path}: the weight is {weight}; it must be a finite number")
    tensors, metadata = read_tensors(path)
    tensors = _without_embeddings(path, tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = group(tensors, sites(keys))
    _refuse_unmatched(path, found, shapes, metadata, strict)
    _check(path, tensors, found, keys, made_for := family(shapes, metadata))
    if made_for not in ("", "SD-1.x") and _context_width(keys) == 768:
        text = f"{path} fits this backbone, but by its names or metadata it was made for {made_for}"
        warnings.warn(text, AnyI2VWarning, stacklevel=2)
    declared = declared_in(path, metadata)
    deltas: dict[str, list[Delta]] = {}
    for site, names in found.modules.items():
        parts = {side: tensors[name] for side, name in names.items()}
        scale = scale_of(path, site, names, parts, declared) if alpha == "file" else 1.0
        deltas.setdefault(site.key, []).append(Delta(parts, scale, weight, site.rows))
    return deltas


def _without_embeddings(path: str | Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the textual inversion embeddings that are bundled with some LoRAs, with a warning."""
    if brought := bundled(tensors):
        text = (
            f"{path} includes the embeddings {', '.join(map(repr, brought))}, which its LoRA was trained with; if the "
            "prompt uses them, give the file as an embedding too (--embedding, embeddings=)"
        )
        warnings.warn(text, AnyI2VWarning, stacklevel=3)
    theirs = {name for names in brought.values() for name in names}
    return {name: tensor for name, tensor in tensors.items() if name not in theirs}


def _refuse_unmatched(
    path: str | Path,
    found: Grouping,
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    strict: bool,
) -> None:
    """Raise CheckpointError for unmatched keys; if not `strict`, only warn about modules that the backbone lacks."""
    strangers = [*found.odd, *found.unmatched]
    if shapes and not strangers:
        return
    made_for = family(shapes, metadata)
    text = (
        f"{path}: {len(strangers)} of {len(shapes)} keys match no weight of this backbone: {', '.join(strangers[:5])}; "
        f"the file looks like {f'a LoRA for {made_for}' if made_for and is_lora(shapes) else guess(shapes)}"
    )
    if kinds := Counter(filter(None, map(unsupported, strangers))):
        text += "; not supported: " + ", ".join(f"{kind} ({count} keys)" for kind, count in kinds.items())
    if found.odd and not strict:
        text += f"; {len(found.odd)} of them belong to modules that the backbone has, which cannot be applied partially"
    if found.odd or strict:
        raise CheckpointError(text)
    warnings.warn(text, AnyI2VWarning, stacklevel=3)


def _check(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    found: Grouping,
    keys: Mapping[str, Sequence[int]],
    made_for: str,
) -> None:
    """Raise CheckpointError unless every module is complete, fits its weight and is finite."""
    whole = {site: names for site, names in found.modules.items() if kind_of(names)}
    broken = [names for site, names in found.modules.items() if site not in whole]
    # for half a plain LoRA, name the alphabetically last side, so that alpha is named only if it is alone
    plain = [names for names in broken if names.keys() <= {"alpha", "down", "mid", "up", *MAGNITUDES}]
    problems = {
        "of the same module and side": found.twice,
        "without its counterpart (down or up)": [names[max(names)] for names in plain],
        "that do not form a complete module": [" + ".join(names.values()) for names in broken if names not in plain],
        "of the wrong shape": [
            line for site, names in whole.items() for line in _misshapen(tensors, site, names, keys)
        ],
        "not finite floating point numbers": [
            name
            for names in found.modules.values()
            for side, name in names.items()
            if not (tensors[name].is_floating_point() or side in ("alpha", "on_input"))
            or not tensors[name].float().isfinite().all()
        ],
    }
    lines = [f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in problems.items() if names]
    if lines:
        expected = made_for == "SD-1.x" and _context_width(keys) == 768
        hint = f"; it was made for {made_for}" if made_for and not expected else ""
        raise CheckpointError(
            f"{path} is not usable as a LoRA of this backbone; of its tensors {'; '.join(lines)}{hint}"
        )


def _misshapen(
    tensors: Mapping[str, Tensor], site: Site, names: Mapping[Side, str], keys: Mapping[str, Sequence[int]]
) -> list[str]:
    """Describe wrong shapes of a complete module; 1x1 convolutions and linear layers are interchangeable."""
    shapes = {side: tuple(tensors[name].shape) for side, name in names.items()}
    lines = []
    if "alpha" in names and tensors[names["alpha"]].numel() != 1:
        lines.append(f"{names['alpha']} {shapes['alpha']} instead of (), for {site.key} {site.shape}")
    parts = {side: tensors[name] for side, name in names.items() if side != "alpha"}
    if parts.keys() == {"down", "up"}:
        rank = len(parts["down"]) if parts["down"].ndim else 0
        wanted = {"down": (rank or "rank", *_bare(site.shape)[1:]), "up": (site.shape[0], rank or "rank")}
        return lines + [
            f"{names[side]} {shapes[side]} instead of {wanted[side]}, for {site.key} {site.shape}"
            for side in parts
            if _bare(shapes[side]) != wanted[side]
        ]
    problem = misfit(parts, site.shape)
    bias = re.sub(r"(in_proj_|\.)weight$", r"\1bias", site.key)
    if not problem and scales_rows(parts) and bias in keys:
        problem = f"it scales {bias} as well, which is not supported"
    listed = ", ".join(f"{names[side]} {shapes[side]}" for side in parts)
    return [*lines, f"{listed} for {site.key} {site.shape} ({problem})"] if problem else lines


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without the last two axes of a 1x1 convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _context_width(keys: Mapping[str, Sequence[int]]) -> int | None:
    """Return the width of the text tokens that the UNet attends to."""
    return next((shape[1] for key, shape in keys.items() if key.endswith(".attn2.to_k.weight")), None)
