"""LoRA: low-rank updates of weights, W + factor * up @ down (Hu et al. 2021, arXiv:2106.09685), from foreign files.

Read are the layouts of kohya (with LoCon's convolutions), PEFT, diffusers, and AnimateDiff's motion LoRA and
domain adapter.
"""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.foreign import read_tensors
from anyi2v.backbone.header import guess
from anyi2v.backbone.lora_names import Side, Site, flatten, parse, sites
from anyi2v.errors import AnyI2VWarning, CheckpointError, InputError

Lora = tuple[str | Path, float]
"""A LoRA file and its weight: 0 is without, 1 as trained."""


@dataclass(frozen=True, eq=False)
class Delta:
    """One low-rank update of a weight, or of some of its rows."""

    down: Float[Tensor, "rank *inner"]
    """Of a linear layer `rank in`, of a convolution `rank in kh kw`."""
    up: Float[Tensor, "out rank *ones"]
    factor: float
    rows: slice
    """Which rows of the weight are meant."""

    def added_to(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A new tensor: W + factor * up @ down, computed in float32 (or W's dtype, if wider), in W's dtype."""
        wide = torch.promote_types(tensor.dtype, torch.float32)
        down, up = (side.to(tensor.device, wide).flatten(1) for side in (self.down, self.up))
        total = tensor.to(wide, copy=True)
        # the factor on the small matrix: no further tensor of W's size
        part = total[self.rows]
        part += ((self.factor * up) @ down).view_as(part)
        return total.to(tensor.dtype)


def bake(
    key: str, tensor: Float[Tensor, "*shape"], deltas: Iterable[Delta], dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """The weight `key` with all updates, rounded to `dtype` once at the end.

    Raises CheckpointError if a value does not fit into `dtype`.
    """
    total = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    for delta in deltas:
        total = delta.added_to(total)
    baked = total.to(dtype)
    if not baked.isfinite().all():
        raise CheckpointError(
            f"{key} with its LoRAs does not fit into {dtype}: its largest magnitude is {total.abs().max().item():g}; "
            "lower the weights of the LoRAs"
        )
    return baked


def read_loras(loras: Sequence[Lora], *, keys: Mapping[str, Sequence[int]]) -> dict[str, list[Delta]]:
    """The updates of several files together, in their order; `keys` and errors as in `read_lora`."""
    deltas: dict[str, list[Delta]] = {}
    for path, weight in loras:
        for key, more in read_lora(path, weight, keys=keys).items():
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
    """The updates in a LoRA file, by the key of the weight that they change.

    Args:
        path: .safetensors, or what `torch.save` wrote, as long as there is no code in it.
        weight: scales all updates; 0 is without, 1 as trained.
        keys: all keys of the backbone's checkpoint with their shapes.
        alpha: "file" scales each module by alpha / rank where the file gives an alpha, as its own tensor or in
            diffusers' metadata, else by 1. The alpha of a PEFT adapter is not in the weights file but in its
            adapter_config.json: put it into `weight`. "ignored" scales by 1 throughout, as AnimateDiff's loader does.
        strict: whether a key that matches no weight is an error or a warning.

    Raises:
        InputError: no such file, or a weight that is not finite.
        CheckpointError: not a weights file; keys that match nothing (strict), down without up or the reverse,
            the same module twice, shapes that do not fit, values that are not finite.
    """
    if not math.isfinite(weight):
        raise InputError(f"LoRA {path}: the weight is {weight}; it must be a finite number")
    tensors, metadata = read_tensors(path)
    modules, unmatched, twice = _group(tensors, sites(keys))
    if unmatched or not tensors:
        text = (
            f"{path}: {len(unmatched)} of {len(tensors)} keys match no weight of this backbone: "
            f"{', '.join(unmatched[:5])}; the file looks like {guess(tensors)}"
        )
        if strict:
            raise CheckpointError(text)
        warnings.warn(text, AnyI2VWarning, stacklevel=2)
    _check(path, tensors, modules, twice)
    declared = _declared(path, metadata)
    deltas: dict[str, list[Delta]] = {}
    for site, names in modules.items():
        down, up = tensors[names["down"]], tensors[names["up"]]
        module, _ = parse(names["down"]) or ("", "")
        alphas = [a for begin, pattern, a in declared if site.key.startswith(begin) and pattern.fullmatch(module)]
        if "alpha" in names:
            alphas = [tensors[names["alpha"]].item()]
        scale = alphas[0] / len(down) if alphas and alpha == "file" else 1.0
        deltas.setdefault(site.key, []).append(Delta(down, up, weight * scale, site.rows))
    return deltas


Modules = dict[Site, dict[Side, str]]
"""The file's keys of each module by their side."""


def _group(names: Iterable[str], table: Mapping[str, Site]) -> tuple[Modules, list[str], list[str]]:
    """The modules of a file, the keys that match nothing, and those whose place is taken."""
    modules: Modules = {}
    unmatched, twice = [], []
    for name in names:
        module, side = parse(name) or ("", "alpha")
        site = table.get(flatten(module))
        if site is None:
            unmatched.append(name)
        elif side in modules.setdefault(site, {}):
            twice.append(f"{name} and {modules[site][side]}")
        else:
            modules[site][side] = name
    return modules, unmatched, twice


def _check(path: str | Path, tensors: Mapping[str, Tensor], modules: Modules, twice: list[str]) -> None:
    """Raises CheckpointError unless every module has both sides, and both fit the weight and are finite."""
    # the last of its sides in the alphabet: an alpha is named only if it is alone
    halves = [names[max(names)] for names in modules.values() if not {"down", "up"} <= names.keys()]
    whole = {site: names for site, names in modules.items() if {"down", "up"} <= names.keys()}
    problems = {
        "of the same module and side": twice,
        "without its counterpart (down or up)": halves,
        "of the wrong shape": [line for site, names in whole.items() for line in _misshapen(tensors, site, names)],
        "not finite floating point numbers": [
            name
            for names in modules.values()
            for side, name in names.items()
            if not (tensors[name].is_floating_point() or side == "alpha") or not tensors[name].float().isfinite().all()
        ],
    }
    lines = [f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{path} is not usable as a LoRA of this backbone; of its tensors {'; '.join(lines)}")


def _misshapen(tensors: Mapping[str, Tensor], site: Site, names: Mapping[Side, str]) -> list[str]:
    """What is wrong with the shapes of a module; 1x1 convolutions and linear layers may stand for each other."""
    rank = len(tensors[names["down"]]) if tensors[names["down"]].ndim else 0
    wanted: dict[Side, tuple[int | str, ...]] = {
        "down": (rank or "rank", *_bare(site.shape)[1:]),
        "up": (site.shape[0], rank or "rank"),
        "alpha": (),
    }
    return [
        f"{name} {shape} instead of {wanted[side]}, for {site.key} {site.shape}"
        for side, name in names.items()
        if _bare(shape := tuple(tensors[name].shape)) != wanted[side] and (side, shape) != ("alpha", (1,))
    ]


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the last two axes of a 1x1 convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _declared(path: str | Path, metadata: Mapping[str, str]) -> list[tuple[str, re.Pattern[str], float]]:
    """Alphas in the metadata that diffusers writes, e.g. {"unet.lora_alpha": 8}, the most special first.

    Each holds for the weights whose keys begin with its first entry, and whose modules match its second one.
    """
    alphas = []
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        unsupported = [name for name, value in config.items() if value and name.endswith(("use_rslora", "use_dora"))]
        for theirs, ours in {"unet.": "unet.", "text_encoder.": "text.", "": ""}.items():
            patterns = [
                *(config.get(f"{theirs}alpha_pattern") or {}).items(),
                (".*", config.get(f"{theirs}lora_alpha")),
            ]
            # PEFT's rule: a pattern may leave out the beginning of a module's name
            alphas += [(ours, re.compile(rf"(?:.*\.)?(?:{x})"), float(a)) for x, a in patterns if a is not None]
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(f"{path}: its metadata 'lora_adapter_metadata' cannot be read ({error})") from error
    if unsupported:
        raise CheckpointError(f"{path}: {', '.join(unsupported)} is set, but only plain LoRA is supported")
    return alphas
