"""Detection of the kind of a weights file from its keys and shapes."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyi2v.checkpoints.header import is_control
from anyi2v.checkpoints.lora_names import is_lora
from anyi2v.errors import CheckpointError
from weights_converters import animatediff, relatives

Kind = Literal[
    "ours",
    "ldm",
    "unet",
    "vae",
    "vae_ldm",
    "text",
    "motion_module",
    "motion_adapter",
    "animatediff_unet",
    "lavie_unet",
    "videocrafter",
    "motion_lora",
    "domain_adapter",
    "lora",
    "sparsectrl",
    "relative",
    "embedding",
    "unknown",
]

WORDS: dict[Kind, str] = {
    "ours": "anyi2v checkpoint",
    "ldm": "Stable Diffusion single file (LDM layout)",
    "unet": "UNet of Stable Diffusion 1.x (diffusers layout)",
    "vae": "autoencoder (diffusers layout)",
    "vae_ldm": "autoencoder (LDM layout)",
    "text": "CLIP text tower (transformers layout)",
    "motion_module": "AnimateDiff motion module",
    "motion_adapter": "diffusers MotionAdapter",
    "animatediff_unet": "whole UNet of AnimateDiff",
    "lavie_unet": "whole UNet of LaVie",
    "videocrafter": "single file of VideoCrafter",
    "motion_lora": "AnimateDiff motion LoRA",
    "domain_adapter": "AnimateDiff domain adapter, or LoRA of attention processors in the same layout",
    "lora": "LoRA",
    "sparsectrl": "SparseCtrl encoder",
    "relative": "file of a related project",
    "embedding": "textual inversion embedding",
    "unknown": "unknown kind",
}


@dataclass(frozen=True)
class Finding:
    """The detected kind of a file."""

    kind: Kind
    variant: str = ""
    """Version or naming, if the kind has several; for motion modules also the reason if it cannot be determined."""

    def __str__(self) -> str:
        if self.kind == "relative":
            return self.variant
        return WORDS[self.kind] + (f", {self.variant}" if self.variant else "")


Shapes = Mapping[str, tuple[int, ...]]

_LORA = r".*(\.lora_[AB]\.|\.lora_(down|up)\.|_lora\.(down|up)\.|\.lora\.(down|up)\.).*"


def detect(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Finding:
    """Detect the kind of a file from its keys (without wrappers) and shapes; never raises.

    Args:
        shapes: shapes of all tensors.
        metadata: metadata of a .safetensors file, which identifies our own files.
    """
    if metadata and "anyi2v" in metadata:
        network = "sparse control network, " if is_control(metadata) else ""
        return Finding("ours", f"{network}format {metadata.get('format')}")
    for kind, belongs, variant in _KINDS:
        if belongs(shapes):
            return Finding(kind, variant(shapes))
    return Finding("unknown", f"{len(shapes)} tensors, the first is {min(shapes, default='none')}")


def read(path: Path, shapes: Shapes, metadata: Mapping[str, str], allowed: Iterable[Kind], option: str) -> Finding:
    """Detect a file's kind and raise CheckpointError, naming the kind, if it is not one of `allowed`."""
    finding = detect(shapes, metadata)
    if finding.kind not in allowed:
        wish = " or ".join(WORDS[kind] for kind in allowed)
        raise CheckpointError(f"{path} looks like: {finding}; {option} takes: {wish}")
    return finding


def _any(pattern: str) -> Callable[[Shapes], bool]:
    compiled = re.compile(pattern)
    return lambda shapes: any(compiled.fullmatch(key) for key in shapes)


def _all(*patterns: str) -> Callable[[Shapes], bool]:
    tests = [_any(pattern) for pattern in patterns]
    return lambda shapes: all(test(shapes) for test in tests)


def _plain(shapes: Shapes) -> str:
    return ""


def _lora_naming(shapes: Shapes) -> str:
    if not any(key.startswith(("lora_unet_", "lora_te")) for key in shapes):
        return "PEFT or diffusers naming"
    large = any(len(shape) == 4 and shape[-1] > 1 for key, shape in shapes.items() if "lora_down" in key)
    return "LoCon (kohya naming with convolutions)" if large else "kohya naming"


def _sparsectrl_kind(shapes: Shapes) -> str:
    return "rgb" if _any(r"(controlnet\.)?controlnet_cond_embedding\.weight")(shapes) else "scribble"


def _single_file_family(shapes: Shapes) -> str:
    family = "2.x (not supported)" if _any(r"cond_stage_model\.model\..*")(shapes) else "1.x"
    return f"{family}, with moving average" if _any(r"model_ema\..*")(shapes) else family


def _videocrafter_version(shapes: Shapes) -> str:
    return "version 1 (not supported)" if _any(r".*\.relative_position_[kv]\..*")(shapes) else "version 2"


def _attention_names(shapes: Shapes) -> str:
    return "old attention names" if _any(r".*\.proj_attn\.weight")(shapes) else "new attention names"


def _motion_version(shapes: Shapes) -> str:
    try:
        return animatediff.version(animatediff.has_mid(shapes), animatediff.position_rows(shapes))
    except CheckpointError as error:
        return str(error)


_KINDS: tuple[tuple[Kind, Callable[[Shapes], bool], Callable[[Shapes], str]], ...] = (
    ("motion_lora", _all(_LORA, r".*motion_modules\..*"), _plain),
    ("domain_adapter", _all(r"(?!unet\.|text_encoder\.).*\.processor\.to_\w+_lora\.(down|up)\.weight"), _plain),
    ("lora", is_lora, _lora_naming),
    ("sparsectrl", _all(r"(controlnet\.)?controlnet_cond_embedding\..*", r".*\.motion_modules\..*"), _sparsectrl_kind),
    ("relative", lambda shapes: relatives.name_of(shapes) is not None, lambda shapes: relatives.name_of(shapes) or ""),
    ("videocrafter", _any(r"model\.diffusion_model\..*\.temopral_conv\..*"), _videocrafter_version),
    ("ldm", _any(r"(model\.diffusion_model|cond_stage_model|first_stage_model)\..*"), _single_file_family),
    ("lavie_unet", _all(r".*\.attn_temp\..*", r"conv_in\.weight"), _plain),
    ("animatediff_unet", _all(r".*\.temporal_transformer\..*", r"conv_in\.weight"), _motion_version),
    ("motion_module", _any(r".*\.temporal_transformer\..*"), _motion_version),
    ("motion_adapter", _any(r".*\.motion_modules\..*\.attn1\..*"), _motion_version),
    ("vae", _all(r"encoder\.down_blocks\..*", r"decoder\.up_blocks\..*"), _attention_names),
    ("vae_ldm", _all(r"encoder\.down\..*", r"decoder\.up\..*"), _plain),
    (
        "text",
        _all(r"(text_model\.)?encoder\.layers\..*", r"(text_model\.)?embeddings\.token_embedding\.weight"),
        _plain,
    ),
    ("unet", _all(r"conv_in\.weight", r"down_blocks\..*", r"up_blocks\..*", r"time_embedding\..*"), _plain),
    ("embedding", relatives.is_embedding, _plain),
)
"""Kinds with their tests; the first match is used, so specific kinds come before general ones."""
