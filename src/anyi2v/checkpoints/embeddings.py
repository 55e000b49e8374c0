"""Textual inversion (Gal et al. 2022, arXiv:2208.01618), trained vectors that represent a word of the prompt.

Supported files are those of the AUTOMATIC1111 web UI (`string_to_param`, `emb_params`) and of diffusers (`{token:
tensor}`), and embeddings bundled with LoRAs (`bundle_emb.*`). Pickles never run code.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import TextConfig
from anyi2v.checkpoints.foreign import open_file, read_pickle
from anyi2v.checkpoints.header import guess
from anyi2v.checkpoints.lora_names import is_lora
from anyi2v.errors import CheckpointError, InputError

_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.([^.]+(?:\.\*)?)")
_FIRST = ("emb_params", "string_to_param", "clip_l")
"""Keys of the vectors for the first text tower, other than the embedding's name."""
_MOST = 100
"""Maximum number of embeddings in one file; a file with more tensors is a network."""
_TOWERS = {768: "SD-1.x", 1024: "SD-2.x", 1280: "SDXL", 4096: "a model with a T5 text tower"}
"""Base models by the width of their (largest) text tower."""


def read_embeddings(paths: Iterable[str | Path], config: TextConfig) -> dict[str, Float[Tensor, "n d"]]:
    """Read the embeddings of several files, by their name in prompts, in float32 on the CPU.

    The name is the one in the file if there is one (diffusers' token, a bundle's name), else the file's name without
    suffix. It is matched in prompts case-insensitively, as a separate word.

    Args:
        paths: .safetensors files, or files of `torch.save` (.pt, .bin) without code.
        config: configuration of the text tower.

    Raises:
        InputError: a file does not exist, or two embeddings have the same name.
        CheckpointError: a file has no embeddings or is for another text tower, or vectors are not finite.
    """
    found: dict[str, Tensor] = {}
    homes: dict[str, str | Path] = {}
    for path in paths:
        for name, vectors in _read(Path(path)).items():
            if (former := homes.setdefault(name.lower(), path)) is not path or name in found:
                raise InputError(f"two embeddings are named {name!r}: in {former} and in {path}; remove one of them")
            found[name] = _checked(path, name, vectors, config)
    return found


def _read(path: Path) -> dict[str, Any]:
    """Read the unchecked values of the embeddings in a file, by name."""
    file = open_file(path)
    if bundles := bundled(file.shapes):
        return {name: file.read(_of_first_tower(path, keys)) for name, keys in bundles.items()}
    shapes = {key: shape for key, shape in file.shapes.items() if not key.startswith("string_to_")}
    if len(shapes) > _MOST or not all(len(shape) in (1, 2) for shape in shapes.values()) or is_lora(shapes):
        raise CheckpointError(f"{path} has no textual inversion embeddings; it looks like {guess(file.shapes)}")
    if path.suffix == ".safetensors":
        data: Any = {key: file.read(key) for key in file.shapes}
    else:
        data = read_pickle(path)
    if isinstance(inner := data.get("string_to_param"), Mapping):
        return {path.stem if name == "*" else str(name): vectors for name, vectors in inner.items()}
    if any(_end(key) in (*_FIRST, "clip_g") for key in data):
        return {path.stem: data[_of_first_tower(path, data)]}
    tensors = {key: data[key] for key in shapes if key in data}
    if not tensors:
        raise CheckpointError(f"{path} has no textual inversion embeddings, nor tensors that could be embeddings")
    return tensors


def _end(key: str) -> str:
    return key.removesuffix(".*").rpartition(".")[2]


def _of_first_tower(path: Path, keys: Iterable[str]) -> str:
    """Return the key of SD-1.x's vectors of one embedding; raises CheckpointError if it is for other text towers."""
    ends = {_end(key): key for key in keys}
    other = [end for end in ends if end in ("clip_g", "t5", "t5xxl") or end.endswith("_out")]
    key = next((ends[end] for end in _FIRST if end in ends), None)
    if key is None or other:
        family = "SDXL" if other == ["clip_g"] else "another base model"
        raise CheckpointError(
            f"{path} is an embedding for {family} (it has {', '.join(sorted(ends))}); use one for SD-1.x"
        )
    return key


def _checked(path: str | Path, name: str, vectors: Any, config: TextConfig) -> Float[Tensor, "n d"]:
    """Check the vectors of an embedding; raises CheckpointError if the text tower cannot use them."""
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.is_floating_point():
        what = f"a tensor {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else f"a {type(vectors).__name__}"
        raise CheckpointError(f"{path}: embedding {name!r} is {what}, not a set of vectors")
    vectors = torch.atleast_2d(vectors.detach()).to(torch.float32, copy=True)
    count, width = vectors.shape
    if width != config.width:
        made_for = f"; it was made for {_TOWERS[width]}" if width in _TOWERS else ""
        raise CheckpointError(
            f"{path}: embedding {name!r} has vectors of width {width}, but this backbone's text tower needs "
            f"{config.width}{made_for}"
        )
    if not name.strip() or not 1 <= count <= config.length - 2:
        raise CheckpointError(
            f"{path}: embedding {name!r} has {count} vectors; a prompt has room for 1 to {config.length - 2}, and the "
            "name must not be blank"
        )
    if not vectors.isfinite().all():
        raise CheckpointError(f"{path}: embedding {name!r} has values that are not finite")
    return vectors


def bundled(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of bundled embeddings in a file, by the embeddings' names."""
    found: dict[str, list[str]] = {}
    for key in names:
        if match := _BUNDLED.fullmatch(key):
            found.setdefault(match[1], []).append(key)
    return found
