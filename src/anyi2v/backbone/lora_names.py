"""Which of our weights a LoRA module of a foreign file belongs to.

Foreign names are not taken apart: an underscore may stand for a dot or for itself. Instead every name that
one of our weights can have in a file is written down, dots as underscores, and looked up.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["down", "up", "alpha"]


@dataclass(frozen=True)
class Site:
    """A weight of ours, or rows of it, that is one weight in foreign files."""

    key: str
    """As in a checkpoint of ours."""
    shape: tuple[int, ...]
    """Of the rows."""
    first: int = 0

    @property
    def rows(self) -> slice:
        """Where the site lies along the first axis of the weight."""
        return slice(self.first, self.first + self.shape[0])


# kohya .lora_down / .lora_up; PEFT .lora_A / .lora_B; diffusers .lora.down and, in attention processors, to_q_lora.down
_WEIGHT = re.compile(r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)[._](down|up|A|B)(?:\.default)?\.weight")
_SIDES: dict[str, Side] = {"down": "down", "A": "down", "up": "up", "B": "up"}


def parse(key: str) -> tuple[str, Side] | None:
    """Module and side of a file's key; None if it is no part of a plain LoRA."""
    if match := _WEIGHT.fullmatch(key):
        return match[1], _SIDES[match[2]]
    return (key.removesuffix(".alpha"), "alpha") if key.endswith(".alpha") else None


def flatten(module: str) -> str:
    """The form in which modules are looked up: no wrappers, underscores for dots."""
    module = module.removeprefix("module.").removeprefix("base_model.model.")
    return module.replace(".processor.", ".").replace(".", "_")


def sites(keys: Mapping[str, Sequence[int]]) -> dict[str, Site]:
    """All sites of a backbone by their flattened names, each with and without the network's prefix.

    Args:
        keys: all keys of the backbone's checkpoint with their shapes.
    """
    table = {}
    for key, shape in keys.items():
        network, _, path = key.partition(".")
        if network == "unet" and path.endswith(".weight") and len(shape) in (2, 4):
            named = [(name, Site(key, tuple(shape))) for name in _unet_names(path.removesuffix(".weight"))]
            prefixes = ("", "unet.", "lora_unet_")
        elif network == "text":
            named = list(_text_sites(key, path, shape))
            prefixes = ("", "text_encoder.", "lora_te_")
        else:
            continue
        table |= {flatten(prefix + name): site for prefix in prefixes for name, site in named}
    return table


def _unet_names(path: str) -> Iterator[str]:
    """Our name, AnimateDiff's and a MotionAdapter's; each also as attention processors call it."""
    names = {path, re.sub(r"\.temporals\.(\d+)", r".motion_modules.\1.temporal_transformer", path)}
    adapter = re.sub(r"\.attention_blocks\.(\d+)", lambda match: f".attn{int(match[1]) + 1}", path)
    names.add(adapter.replace(".temporals.", ".motion_modules."))
    for name in names:
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")


_TEXT = {
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}
"""Weights of a layer of our text tower, and the transformers modules that they are joined from."""


def _text_sites(key: str, path: str, shape: Sequence[int]) -> Iterator[tuple[str, Site]]:
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", path)
    parts = _TEXT.get(match[2], ()) if match else ()
    for i, part in enumerate(parts):
        height = shape[0] // len(parts)
        for prefix in ("text_model.", ""):
            name = f"{prefix}encoder.layers.{match[1] if match else ''}.{part}"
            yield name, Site(key, (height, *shape[1:]), i * height)
