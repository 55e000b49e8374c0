"""What a checkpoint says of itself, read without torch: the header of a .safetensors file.

Layout of such a file: 8 bytes (little-endian) with the length of the header, the header (JSON), the tensors.
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
"""Version of our own layout."""

SHIPPED = {name: f"micro/{name}.safetensors" for name in ("micro", "micro-lavie", "micro-vc2")}
"""Backbones that come with the package, by name; paths are relative to it."""

SHIPPED_CONTROLS = {"micro-sparsectrl": "micro/micro-sparsectrl.safetensors"}
"""Sparse control networks that come with the package, in the same way."""

BASE: tuple[str, str] = ("base", "base_sha256")
"""Metadata of a file that holds only a part of a backbone: the name of the backbone that holds the rest, and the
checksum of its tensors."""


@dataclass(frozen=True)
class Header:
    """The header of a .safetensors file."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    """As the format spells them: F16, BF16, F32, ..."""


def resolve(path_or_name: str | Path) -> Path:
    """The file of a shipped backbone's name, or the path of an existing file.

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
    if not os.path.isfile(path):  # which no name is too long for
        raise InputError(
            f"no {what} {str(path_or_name)!r}: there is no such file, and the shipped {what}s are {', '.join(known)}"
        )
    return path


def read_config(path_or_name: str | Path) -> BackboneConfig:
    """The configuration in a checkpoint of ours; the tensors are not read.

    Raises InputError as `resolve` does, CheckpointError if the file is no checkpoint of ours.
    """
    path = resolve(path_or_name)
    return parse_config(path, read_header(path))


def sources(path: Path) -> dict[Path, Header]:
    """The files with the tensors of the checkpoint `path`: itself and, if it holds only parts, the file of the rest.

    Where both have a tensor, that of the first file holds. The other file lies beside `path` under its name, or is a
    shipped backbone.

    Raises CheckpointError if a file is damaged, or if the rest is not there or is not what the parts were made for.
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
            f"{path} holds parts of a backbone, the rest is in {name!r}; put {beside.name} beside it"
        ) from error
    found = read_header(rest)
    if found.metadata.get("sha256") != checksum:
        raise CheckpointError(f"{path} was made for another {name!r} than {rest} (the checksums differ)")
    return {path: header, rest: found}


def parse_config(path: Path, header: Header) -> BackboneConfig:
    """The configuration in the header of `path`; raises CheckpointError if there is none that we can read."""
    return parsed(path, header, BackboneConfig.from_json, control=False)


def parsed(path: Path, header: Header, from_json: Callable[[str], T], *, control: bool) -> T:
    """The configuration in the header of `path`: a sparse control network's, or a backbone's.

    Raises CheckpointError if there is none that we can read, or if it is the other's.
    """
    text, version = header.metadata.get("anyi2v"), header.metadata.get("format")
    if text is None:
        raise CheckpointError(
            f"{path} is not a checkpoint of anyi2v: its metadata has no entry 'anyi2v'. It looks like "
            f"{guess(header.shapes)}; python -m weights_converters converts foreign files"
        )
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}, but this version reads {FORMAT!r} only")
    if is_control(header.metadata) != control:
        raise CheckpointError(
            f"{path} is a backbone, not a sparse control network"
            if control
            else f"{path} is a sparse control network, not a backbone; it is for animate --sparsectrl.control"
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
    """The header of any .safetensors file.

    Raises CheckpointError if the file is something else, or if it ends before its last tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{path} ({size} bytes) is not a .safetensors file, or its beginning only")
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
        raise CheckpointError(f"{path} is not a .safetensors file: its header is no JSON table") from error
    if size != announced:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header announces {announced}; "
            "it is damaged or was not copied whole: get it again"
        )
    return header


# the first row with a matching part of a key wins
_GUESSES = (
    (("condition_embedding.", "skip_outs."), "a sparse control network of ours"),
    (("controlnet_cond_embedding.",), "a SparseCtrl or ControlNet encoder"),
    (("unet.conv_in.", "vae.encoder.", "text.token_embedding."), "a checkpoint of ours"),
    (("lora_down.", "lora_A.", "_lora.down.", ".lora.down."), "a LoRA"),
    ((".hada_w1_a",), "a LoHa"),
    ((".lokr_w",), "a LoKr"),
    ((".on_input", ".ia3_l"), "an IA3"),
    (("bundle_emb.", "string_to_param", "emb_params", "clip_g"), "an embedding of textual inversion"),
    (("model.diffusion_model.",), "a Stable Diffusion single file (LDM layout)"),
    (("temporal_transformer.",), "AnimateDiff weights"),
    (("motion_modules.",), "a diffusers MotionAdapter"),
    (("encoder.down_blocks.", "decoder.up_blocks."), "a diffusers AutoencoderKL"),
    (("encoder.layers.", "text_model."), "a CLIPTextModel of transformers"),
    (("transformer.resblocks.",), "an open_clip text tower"),
    (("down_blocks.", "up_blocks."), "a diffusers UNet"),
)


def guess(keys: Iterable[str]) -> str:
    """What a weights file with these keys probably is, in words."""
    keys = list(keys)
    for parts, kind in _GUESSES:
        if any(part in key for key in keys for part in parts):
            return kind
    return f"no kind that we know ({len(keys)} tensors, the first is {min(keys, default='none')})"
