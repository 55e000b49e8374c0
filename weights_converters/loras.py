"""LoRA files that are baked into the converted weights for good."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyi2v.backbone.lora import Delta, read_lora
from anyi2v.conversion import Convert
from anyi2v.errors import InputError
from anyi2v.files import expanded
from weights_converters.detect import Kind, read
from weights_converters.sources import Source, open_source


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that the user asked for."""

    path: Path
    weight: float
    source: Source


KINDS: dict[str, tuple[Kind, ...]] = {
    # an adapter's layout is also that of LoRAs from diffusers' attention processors
    "lora": ("lora", "domain_adapter"),
    "motion_lora": ("motion_lora",),
    "adapter": ("domain_adapter",),
}


def read_loras(options: Convert) -> list[LoraFile]:
    """The LoRAs of all three options.

    Raises InputError for a weight that is no number or an absent file, CheckpointError for a file of another kind.
    """
    found = []
    for option, kinds in KINDS.items():
        for text in getattr(options, option):
            name, _, weight = text.rpartition(":") if ":" in text else (text, "", "1")
            try:
                number = float(weight)
            except ValueError as error:
                raise InputError(f"--{option.replace('_', '-')} {text}: {weight!r} is no weight") from error
            if not name or not math.isfinite(number):
                raise InputError(
                    f"--{option.replace('_', '-')} {text}: write FILE, or FILE:WEIGHT with a finite weight"
                )
            source = open_source(expanded(name))
            read(source.path, source.shapes, source.metadata, kinds, f"--{option.replace('_', '-')}")
            found.append(LoraFile(source.path, number, source))
    return found


def lora_deltas(loras: list[LoraFile], shapes: Mapping[str, Sequence[int]], options: Convert) -> dict[str, list[Delta]]:
    """What the LoRAs add to which of our tensors; raises as `read_lora` does."""
    deltas: dict[str, list[Delta]] = {}
    strict = options.lora_unmatched == "error"
    for lora in loras:
        for key, more in read_lora(
            lora.path, lora.weight, keys=shapes, alpha=options.lora_alpha, strict=strict
        ).items():
            deltas.setdefault(key, []).extend(more)
    return deltas
