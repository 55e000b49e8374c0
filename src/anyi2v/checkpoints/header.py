"""The header of .safetensors files and the configuration in it, read without torch.

File layout: 8 bytes (little-endian) with the length of the header, the header (JSON), the tensors.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from anyi2v.backbone.config import SPARSE_CONTROL, BackboneConfig
from anyi2v.errors import CheckpointError, InputError
from anyi2v.files import expanded

T = TypeVar("T")

FORMAT = "1"
"""Version of our checkpoint layout."""

SHIPPED = {name: f"micro/{name}.safetensors" for name in ("micro", "micro-lavie", "micro-vc2")}
"""Backbones shipped with the package, by name, with paths relative to it."""

SHIPPED_CONTROLS = {"micro-sparsectrl": "micro/micro-sparsectrl.safetensors"}
"""Sparse control networks that come with the package, in the same way."""

(DEFAULT_CONTROL,) = SHIPPED_CONTROLS

BASE: tuple[str, str] = ("base", "base_sha256")
"""Metadata keys of a file with only a part of a backbone: the name of the backbone with the rest, and the checksum of
its tensors."""


@dataclass(frozen=True)
class Header:
    """The header of a .safetensors file."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """Dtypes in the format's spelling: F16, BF16, F32, ..."""


def resolve(path_or_name: str | Path) -> Path:
    """Return the file of a shipped backbone by its name, or the path of an existing file.

    Raises InputError, listing the shipped names, if it is neither.
    """
    return _resolved(path_or_name, SHIPPED, "backbone")


def resolve_control(path_or_name: str | Path) -> Path:
    """`resolve` for sparse control networks."""
    return _resolved(path_or_name, SHIPPED_CONTROLS, "sparse control network")


def sparse_control(path_or_name: str | Path) -> Path | None:
    """The file of a shipped sparse control network's name, or the path if it is a file of one; None for others."""
    if str(path_or_name) in SHIPPED_CONTROLS:
        return resolve_control(path_or_name)
    path = expanded(path_or_name)
    known = path.suffix == ".safetensors" and os.path.isfile(path) and is_control(read_header(path).metadata)
    return path if known else None


def _resolved(path_or_name: str | Path, known: Mapping[str, str], what: str) -> Path:
    shipped = known.get(str(path_or_name))
    path = expanded(path_or_name) if shipped is None else Path(str(files("anyi2v") / shipped))
    if not os.path.isfile(path):  # handles names that are too long
        raise InputError(
            f"no {what} {str(path_or_name)!r}: there is no such file, and the shipped {what}s are {', '.join(known)}"
        )
    return path


def read_config(path_or_name: str | Path) -> BackboneConfig:
    """Read the configuration in a checkpoint, without its tensors.

    Raises InputError as `resolve` does, CheckpointError if the file is not a checkpoint in our layout.
    """
    path = resolve(path_or_name)
    return parse_config(path, read_header(path))


def sources(path: Path) -> dict[Path, Header]:
    """Return the files with the tensors of the checkpoint `path`: itself and, if it has only parts, the base file.

    If both have a tensor, that of the first file is used. The base file is in the folder of `path` under its name, or a
    shipped backbone.

    Raises CheckpointError if a file is damaged, or if the base file is missing or not the one the parts were made for.
    """
    header = read_header(path)
    name, checksum = (header.metadata.get(key) for key in BASE)
    if name is None:
        return {path: header}
    beside = path.with_name(f"{name}.safetensors")
    try:
        rest = beside if beside.is_file() else resolve(name)
    except InputError as error:
        raise CheckpointError(
            f"{path} has parts of a backbone, the rest is in {name!r}; put {beside.name} next to it"
        ) from error
    found = read_header(rest)
    if found.metadata.get("sha256") != checksum:
        raise CheckpointError(f"{path} was made for a different {name!r} than {rest} (the checksums differ)")
    return {path: header, rest: found}


def parse_config(path: Path, header: Header) -> BackboneConfig:
    """Parse the configuration of a backbone; raises CheckpointError if there is none that is readable."""
    return parsed(path, header, BackboneConfig.from_json, control=False)


def parsed(path: Path, header: Header, from_json: Callable[[str], T], *, control: bool) -> T:
    """Parse the configuration in the header of `path`, of a sparse control network (`control`) or of a backbone.

    Raises CheckpointError if there is none that is readable, or if the file is of the other kind.
    """
    text, version = header.metadata.get("anyi2v"), header.metadata.get("format")
    if text is None:
        raise CheckpointError(
            f"{path} is not a checkpoint of anyi2v: its metadata has no entry 'anyi2v'. It looks like "
            f"{guess(header.shapes)}; anyi2v convert converts other formats"
        )
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}, but this version only reads {FORMAT!r}")
    if is_control(header.metadata) != control:
        raise CheckpointError(
            f"{path} is a backbone, not a sparse control network"
            if control
            else f"{path} is a sparse control network, not a backbone; use it as animate --sparsectrl.control"
        )
    try:
        return from_json(text)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its configuration cannot be read ({error})") from error


def is_control(metadata: Mapping[str, str]) -> bool:
    """Whether a file says in its metadata that it is a sparse control network."""
    try:
        config = json.loads(metadata.get("anyi2v", ""))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("kind") == SPARSE_CONTROL


def read_header(path: Path) -> Header:
    """Read the header of any .safetensors file.

    Raises CheckpointError if the file has another format, or ends before its last tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{path} ({size} bytes) is not a .safetensors file, or is truncated")
        raw = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        header = Header(
            metadata=dict(metadata),
            shapes={key: tuple(entry["shape"]) for key, entry in entries.items()},
            dtypes={key: str(entry["dtype"]) for key, entry in entries.items()},
        )
        announced = 8 + length + end
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a .safetensors file: its header is not a JSON object") from error
    if size != announced:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header declares {announced}; "
            "it is damaged or incomplete: download it again"
        )
    return header


# the first row with a part of a key wins
_GUESSES = (
    (("condition_embedding.", "skip_outs."), "an anyi2v sparse control network"),
    (("controlnet_cond_embedding.",), "a SparseCtrl or ControlNet encoder"),
    (("unet.conv_in.", "vae.encoder.", "text.token_embedding."), "an anyi2v checkpoint"),
    (("lora_down.", "lora_A.", "_lora.down.", ".lora.down."), "a LoRA"),
    ((".hada_w1_a",), "a LoHa"),
    ((".lokr_w",), "a LoKr"),
    ((".on_input", ".ia3_l"), "an IA3"),
    (("bundle_emb.", "string_to_param", "emb_params", "clip_g"), "a textual inversion embedding"),
    (("model.diffusion_model.",), "a Stable Diffusion single file (LDM layout)"),
    (("temporal_transformer.",), "AnimateDiff weights"),
    (("motion_modules.",), "a diffusers MotionAdapter"),
    (("encoder.down_blocks.", "decoder.up_blocks."), "a diffusers AutoencoderKL"),
    (("encoder.layers.", "text_model."), "a CLIPTextModel of transformers"),
    (("transformer.resblocks.",), "an open_clip text tower"),
    (("down_blocks.", "up_blocks."), "a diffusers UNet"),
)


def guess(keys: Iterable[str]) -> str:
    """Describe what a weights file with these keys probably is."""
    keys = list(keys)
    for parts, kind in _GUESSES:
        if any(part in key for key in keys for part in parts):
            return kind
    return f"an unknown format ({len(keys)} tensors, the first is {min(keys, default='none')})"
