"""Saving and loading of backbones as .safetensors files with the configuration in the metadata.

Keys are `unet.*`, `vae.*`, `text.*`. Loading is strict. Other layouts are handled by the converters.
"""

import contextlib
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.networks import Backbone, build, channels_last, state
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.checkpoints.embeddings import read_embeddings
from anyi2v.checkpoints.header import BASE, FORMAT, guess, parse_config, read_header, resolve, sources
from anyi2v.checkpoints.lora import Lora, bake, read_loras
from anyi2v.errors import CheckpointError, InputError
from anyi2v.files import atomic
from anyi2v.method.config import OperatorKind


def save(
    backbone: Backbone,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save a backbone to a checkpoint, which `load` reads.

    Args:
        backbone: networks on any device.
        path: output file, replaced atomically; missing folders are created.
        dtype: dtype to store; by default each network's own.
        metadata: further entries of the file's metadata, e.g. how the weights were trained.

    Raises CheckpointError, naming tensors, if values do not fit into `dtype`; ResourceError if the file cannot be
    written.
    """
    write(state(backbone), backbone.config, path, dtype=dtype, metadata=metadata)


def save_parts(backbone: Backbone, path: str | Path, base: str | Path, *, dtype: torch.dtype) -> None:
    """Save only the tensors that differ from those of `base`; `load` reads the others from `base`, by its name.

    Args:
        backbone: networks on any device.
        path: as in `save`.
        base: a checkpoint in our layout, or the name of a shipped backbone.
        dtype: dtype to store; tensors that are equal to those of `base` in this dtype are left out.

    Raises CheckpointError if `base` itself has only parts.
    """
    file = resolve(base)
    header = read_header(file)
    if BASE[0] in header.metadata:
        raise CheckpointError(f"{file} has only parts of a backbone; give the complete one that it is based on")
    theirs = load_file(file)
    tensors = {
        key: tensor
        for key, tensor in state(backbone).items()
        if key not in theirs or not torch.equal(theirs[key].to(dtype), tensor.to(dtype))
    }
    entries = dict(zip(BASE, (parse_config(file, header).name, header.metadata["sha256"]), strict=True))
    write(tensors, backbone.config, path, dtype=dtype, metadata=entries)


def write(
    tensors: Mapping[str, Tensor],
    config: BackboneConfig | SparseControlConfig,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Save tensors with the keys of a checkpoint, without networks.

    The safetensors library's writer orders metadata randomly, copies all tensors first and creates files readable only
    by their owner. This writer gives identical bytes for equal content, and the metadata's entry `sha256` is the
    checksum of all tensors' bytes in order.

    Args:
        tensors: tensors by key; each is fetched once if `shapes` is given, otherwise twice.
        config: configuration stored in the metadata.
        path: as in `save`.
        dtype: as in `save`.
        metadata: as in `save`.
        shapes: shapes of the tensors, in the order of writing, if fetching tensors is expensive; requires `dtype`.

    Raises CheckpointError, naming tensors, if values do not fit into `dtype`; ResourceError if the file cannot
    be written.
    """
    layout = (
        _layout(tensors, dtype) if shapes is None or dtype is None else {key: (dtype, shapes[key]) for key in shapes}
    )
    entries = {**(metadata or {}), "anyi2v": config.to_json(), "format": FORMAT, "sha256": _UNKNOWN}
    header = _header(entries, layout)
    digest, unfit = hashlib.sha256(), {}
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for key, (kind, shape) in layout.items():
            tensor = tensors[key].detach()
            assert tuple(tensor.shape) == tuple(shape), f"{key} has shape {tuple(tensor.shape)}, not {tuple(shape)}"
            for piece in tensor.flatten().split(_PIECE):
                cast = piece.to(kind)
                if dtype is not None and not cast.isfinite().all():
                    unfit[key] = tensor.abs().max().item()
                elif not unfit:
                    digest.update(raw := _raw(cast))
                    file.write(raw)
        if unfit:
            names = [f"{key} (largest magnitude {value:g})" for key, value in unfit.items()]
            raise CheckpointError(
                f"{len(unfit)} tensors do not fit into {dtype}: {', '.join(names[:5])}; "
                "store another dtype or fix the weights"
            )
        file.seek(header.index(_UNKNOWN.encode()))
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}

_PIECE = 2**22
"""Number of elements that are converted, checked and written at a time, to avoid copies of large tensors."""

_UNKNOWN = "?" * 64
"""Placeholder of the checksum, which is only known when all tensors are written."""

Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


def _layout(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Layout:
    return {key: (dtype or tensor.dtype, tensor.shape) for key, tensor in tensors.items()}


def _header(entries: Mapping[str, str], layout: Layout) -> bytes:
    """Build the header of a .safetensors file, with the checksum as its first entry."""
    table: dict[str, Any] = {"__metadata__": {"sha256": entries["sha256"], **entries}}
    end = 0
    for key, (kind, shape) in layout.items():
        start, end = end, end + math.prod(shape) * kind.itemsize
        table[key] = {"dtype": _DTYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, viewed as uint8 because NumPy has no bfloat16."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data


@torch.inference_mode(False)  # autograd cannot save inference tensors as weights
def load(
    path_or_name: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    operators: OperatorKind = "fast",
    loras: Sequence[Lora] = (),
    lora_unmatched: Literal["error", "warning"] = "error",
    embeddings: Sequence[str | Path] = (),
) -> Backbone:
    """Load a backbone from a checkpoint for inference, in `eval()` mode and with frozen parameters.

    Args:
        path_or_name: a checkpoint in our layout, or the name of a shipped backbone.
        device: device of the networks.
        dtype: dtype of the UNet and the text tower; the autoencoder is always float32.
        operators: "fast" uses the fastest implementations; "reference" only the formulas of
            `anyi2v.operators.formulas`, which are slower and round differently.
        loras: LoRA files and their weights, merged permanently; `loras_applied` applies them temporarily.
        lora_unmatched: how to treat LoRA keys whose modules the backbone does not have.
        embeddings: textual inversion files, whose names can then be used as words in prompts.

    Raises:
        InputError: there is neither such a file nor such a shipped backbone, the dtype is no `torch.dtype`, or the
            operators are unknown; also as `read_lora` and `read_embeddings`.
        CheckpointError: the file is not a checkpoint in our layout, is damaged, or its tensors do not match its
            configuration; also as `read_lora` and `read_embeddings`.
    """
    if not isinstance(dtype, torch.dtype):
        example = dtype if dtype in ("float32", "bfloat16", "float16") else "float16"
        raise InputError(f"dtype is {dtype!r}; pass a torch.dtype, for example torch.{example}")
    path = resolve(path_or_name)
    headers = sources(path)
    with torch.device("meta"):
        backbone = build(parse_config(path, headers[path]))
    backbone.operators = operators
    wanted = {key: tuple(tensor.shape) for key, tensor in state(backbone).items()}
    owners = {key: path for key in headers[path].shapes}
    for other, header in headers.items():
        owners |= {key: other for key in header.shapes if key in wanted and key not in owners}
    check_tensors(path, {key: headers[owner].shapes[key] for key, owner in owners.items()}, wanted)
    backbone.embeddings = read_embeddings(embeddings, backbone.config.text)
    deltas = read_loras(loras, keys=wanted, strict=lora_unmatched == "error")
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(safe_open(name, framework="pt", device=str(device))) for name in headers}
        for prefix, network in backbone.networks.items():
            kind = torch.float32 if prefix == "vae" else dtype
            tensors = {}
            for name in network.state_dict():
                key = f"{prefix}.{name}"
                tensor = files[owners[key]].get_tensor(key)
                if key in deltas:
                    tensor = bake(key, tensor, deltas[key], kind)
                # copied to memory aligned by torch: kernels may round differently for other alignments
                tensors[name] = tensor.to(kind, copy=True)
            network.load_state_dict(tensors, assign=True)
            channels_last(network)
            network.to(device).eval().requires_grad_(False)
    return backbone


@contextlib.contextmanager
def loras_applied(
    backbone: Backbone, loras: Sequence[Lora], *, lora_unmatched: Literal["error", "warning"] = "error"
) -> Iterator[None]:
    """Apply LoRAs to the weights of `backbone` in place, and restore the weights exactly at the end of the block.

    Copies of the affected weights are kept meanwhile. The backbone may be moved inside the block.

    Args:
        backbone: networks on any device, in any dtype.
        loras: LoRA files and their weights; several for the same weight add up.
        lora_unmatched: as in `load`.

    Raises InputError and CheckpointError as `read_lora` does; the weights are then unchanged.
    """
    tensors = state(backbone)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    deltas = read_loras(loras, keys=shapes, strict=lora_unmatched == "error")
    originals = {key: tensors[key].clone() for key in deltas}
    try:
        for key, original in originals.items():
            tensors[key].copy_(bake(key, original, deltas[key], original.dtype))
        yield
    finally:
        # looked up again, because a move replaces the tensors
        current = state(backbone)
        for key, original in originals.items():
            current[key].copy_(original)


def check_tensors(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless both have the same keys with the same shapes."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if key in found and found[key] != wanted[key]
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of the wrong shape": misshapen}
    if any(problems.values()):
        lines = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
        raise CheckpointError(
            f"{path} does not have the tensors of its configuration (of {len(wanted)}, {'; '.join(lines)}); "
            f"it looks like {guess(found)}"
        )
