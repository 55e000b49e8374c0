"""Detection of a LoRA file's base model from names, shapes and metadata, to explain why it does not fit."""

import math
import re
from collections.abc import Mapping, Sequence

from anyi2v.checkpoints.lora_names import flatten, parse

_CONTEXT = {768: "SD-1.x", 1024: "SD-2.x", 2048: "SDXL"}
"""Base models by the width of the text tokens in the UNet's cross-attention."""
_TEXT = {1024: "SD-2.x", 1280: "SDXL"}
"""Base models by the width of the text tower; SDXL's first tower is that of SD-1.x."""
_TRANSFORMER = "a diffusion transformer (Flux, SD-3 or another one)"
_NAMES = {
    r".*(double_blocks|single_blocks|joint_blocks|single_transformer_blocks)[._].*": _TRANSFORMER,
    r"(transformer[._]|lora_transformer_).*": _TRANSFORMER,
    r"(lora_te2_|text_encoder_2\.).*": "SDXL",
}
_METADATA = {
    r".*(sdxl|stable-diffusion-xl).*": "SDXL",
    r".*(sd_v2|stable-diffusion-v2).*": "SD-2.x",
    r".*(flux|sd3|stable-diffusion-3).*": _TRANSFORMER,
    r".*(sd_v1|sd1|stable-diffusion-v1).*": "SD-1.x",
}


def family(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> str:
    """Return the base model of a LoRA: SD-1.x, SD-2.x, SDXL or a transformer; empty if unknown.

    Args:
        shapes: shapes of the file's tensors by key.
        metadata: metadata of the file, where kohya's scripts and the "modelspec" standard name the base model.
    """
    for pattern, name in _NAMES.items():
        if any(re.fullmatch(pattern, key) for key in shapes):
            return name
    modules: dict[str, dict[str, Sequence[int]]] = {}
    for key, shape in shapes.items():
        if found := parse(key):
            modules.setdefault(flatten(found[0]), {})[found[1]] = shape
    for module, sides in modules.items():
        table = _CONTEXT if re.fullmatch(r".*_attn2_to_[kv]", module) and "motion_modules" not in module else {}
        if re.fullmatch(r".*encoder_layers_\d+_self_attn_\w+", module):
            table = _TEXT
        if (width := _inputs(sides)) in table:
            return table[width]
    said = " ".join(metadata.get(key, "").lower() for key in ("ss_base_model_version", "modelspec.architecture"))
    return next((name for pattern, name in _METADATA.items() if re.fullmatch(pattern, said)), "")


def _inputs(sides: Mapping[str, Sequence[int]]) -> int:
    """Return the number of inputs of a module's linear layer; 0 if its tensors do not determine it."""
    if shape := sides.get("down") or sides.get("hada_w1_b"):
        return shape[1] if len(shape) > 1 else 0
    pairs = (("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b"))
    factors = [next((sides[side] for side in pair if side in sides), ()) for pair in pairs]
    return math.prod(shape[1] if len(shape) > 1 else 0 for shape in factors)
