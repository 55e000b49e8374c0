"""Alpha / rank of the modules in a LoRA file, from its tensors, its metadata, or PEFT's file next to it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyi2v.checkpoints.lora_kinds import MAGNITUDES, Parts, rank_of
from anyi2v.checkpoints.lora_names import Side, Site, parse
from anyi2v.errors import CheckpointError
from anyi2v.files import read_json


@dataclass(frozen=True)
class Declared:
    """An alpha given in metadata, and the modules that it applies to."""

    begin: str
    """Prefix of our keys."""
    module: re.Pattern[str]
    """Pattern of the file's module names."""
    alpha: float | None
    rank: float | None
    """Rank to divide alpha by, if the tensors do not determine it."""
    root: bool
    """Whether alpha is divided by the square root of the rank (rsLoRA, arXiv:2312.03732)."""
    dora: bool
    """Whether the modules are DoRA."""


def scale_of(
    path: str | Path, site: Site, names: Mapping[Side, str], parts: Parts, declared: Sequence[Declared]
) -> float:
    """Return alpha / rank of a module, or 1; raises CheckpointError if it is declared DoRA but has no magnitudes."""
    rank = rank_of(parts)
    module = next((found[0] for name in names.values() if (found := parse(name))), "")
    entry = next((x for x in declared if site.key.startswith(x.begin) and x.module.fullmatch(module)), None)
    if entry and entry.dora and not parts.keys() & {*MAGNITUDES}:
        raise CheckpointError(f"{path}: {module} is declared as DoRA (use_dora), but the file lacks its magnitudes")
    if "alpha" in parts:
        return parts["alpha"].item() / rank if rank else 1.0
    below = rank or (entry and entry.rank)
    if entry is None or entry.alpha is None or not below:
        return 1.0
    return entry.alpha / (math.sqrt(below) if entry.root else below)


def declared_in(path: str | Path, metadata: Mapping[str, str]) -> list[Declared]:
    """Read the alphas in diffusers' metadata, or in PEFT's file next to the weights, the most specific first.

    For example {"unet.lora_alpha": 8} in the metadata's lora_adapter_metadata.
    """
    beside = Path(path).with_name("adapter_config.json")
    config: dict[str, Any] = {}
    if Path(path).stem == "adapter_model" and beside.is_file():
        config = read_json(beside)
    found = []
    try:
        config |= json.loads(metadata.get("lora_adapter_metadata", "{}"))
        for theirs, ours in {"unet.": "unet.", "text_encoder.": "text.", "": ""}.items():
            own = {
                name: config.get(f"{theirs}{name}") for name in ("use_rslora", "use_dora", "r", "lora_alpha", "alpha")
            }
            alpha = own["alpha"] if own["lora_alpha"] is None else own["lora_alpha"]
            patterns = [*(config.get(f"{theirs}alpha_pattern") or {}).items(), (".*", alpha)]
            found += [
                # PEFT's rule: a pattern may omit the beginning of a module's name
                Declared(
                    ours,
                    re.compile(rf"(?:.*\.)?(?:{pattern})"),
                    None if value is None else float(value),
                    own["r"],
                    bool(own["use_rslora"]),
                    bool(own["use_dora"]),
                )
                for pattern, value in patterns
                if value is not None or own["use_dora"]
            ]
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(f"{path}: its metadata 'lora_adapter_metadata' cannot be read ({error})") from error
    return found
