"""LoRA files to merge permanently into the converted weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyi2v.checkpoints.lora import Delta, read_lora
from anyi2v.cli.convert import Convert
from anyi2v.errors import InputError
from anyi2v.files import expanded
from weights_converters.detect import Kind, read
from weights_converters.sources import Source, open_source


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file given by the user, with its weight."""

    path: Path
    weight: float
    source: Source


KINDS: dict[str, tuple[Kind, ...]] = {
    # LoRAs of diffusers' attention processors have the same layout as adapters
    "lora": ("lora", "domain_adapter"),
    "motion_lora": ("motion_lora",),
    "adapter": ("domain_adapter",),
}


def read_loras(options: Convert) -> list[LoraFile]:
    """Open the LoRAs of all three options.

    Raises InputError for an invalid weight or a missing file, CheckpointError for a file of another kind.
    """
    found = []
    for option, kinds in KINDS.items():
        for text in getattr(options, option):
            path, number = file_and_weight(text, f"--{option.replace('_', '-')}")
            source = open_source(path)
            read(source.path, source.shapes, source.metadata, kinds, f"--{option.replace('_', '-')}")
            found.append(LoraFile(source.files[0].path, number, source))
    return found


def file_and_weight(text: str, option: str) -> tuple[Path, float]:
    """Parse FILE or FILE:WEIGHT, where the file's name may contain colons.

    The whole text is the file's name if such a file exists. A single letter before the colon is rejected as a drive:
    C:0.7 is not a file C with weight 0.7.

    Raises InputError, naming the option, if there is neither such a file nor a finite weight.
    """
    name, colon, weight = text.rpartition(":")
    whole = expanded(text)
    if not colon or whole.exists():
        return whole, 1.0
    try:
        number = float(weight)
    except ValueError as error:
        raise InputError(f"{option} {text}: there is no such file, and {weight!r} is not a weight") from error
    if not name or (len(name) == 1 and name.isalpha()) or not math.isfinite(number):
        raise InputError(f"{option} {text}: write FILE, or FILE:WEIGHT with a finite weight")
    return expanded(name), number


def weights_by_name(loras: list[LoraFile]) -> dict[str, float]:
    """Return the weights of all LoRAs by file name, or by full path for files with the same name."""
    names = [lora.path.name for lora in loras]
    found: dict[str, float] = {}
    for lora in loras:
        name = lora.path.name if names.count(lora.path.name) == 1 else str(lora.path)
        found[name] = found.get(name, 0.0) + lora.weight  # a file given twice adds up
    return found


def lora_deltas(loras: list[LoraFile], shapes: Mapping[str, Sequence[int]], options: Convert) -> dict[str, list[Delta]]:
    """Return the updates of all LoRAs by our keys; raises as `read_lora` does."""
    deltas: dict[str, list[Delta]] = {}
    strict = options.lora_unmatched == "error"
    for lora in loras:
        for key, more in read_lora(
            lora.path, lora.weight, keys=shapes, alpha=options.lora_alpha, strict=strict
        ).items():
            deltas.setdefault(key, []).extend(more)
    return deltas
