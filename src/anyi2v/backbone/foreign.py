"""Tensors from weights files of others, without ever running code that a file brings along."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyi2v.backbone.header import read_header
from anyi2v.errors import CheckpointError, InputError

PICKLES = (".ckpt", ".pt", ".bin", ".pth")
"""Suffixes of what `torch.save` writes."""


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a weights file, on the CPU and in their own dtype, and the file's metadata.

    A pickled file may hold its tensors under `state_dict`; numbers under `*.alpha` become tensors, whatever
    else is not a tensor (a configuration, a step count) is left out. Pickles have no metadata.

    Raises:
        InputError: there is no such file.
        CheckpointError: another suffix than .safetensors and `PICKLES`, a damaged file, or one with code in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file {path}: there is no such file")
    if path.suffix in PICKLES:
        return _read_pickle(path), {}
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: the suffix must be .safetensors, {', '.join(PICKLES[:-1])} or {PICKLES[-1]}")
    metadata = read_header(path).metadata
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118, it is no dict
    except (SafetensorError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is damaged: get it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    # a damaged pickle can make the unpickler raise almost anything
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than tensors, or is damaged, and was not read, because such a file can run any "
            f"code ({reason}); get it as .safetensors"
        ) from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise CheckpointError(f"{path} holds a {type(data).__name__}; a dictionary of tensors by name is needed")
    return {
        key: torch.as_tensor(value)
        for key, value in data.items()
        if isinstance(value, Tensor) or (isinstance(value, int | float) and key.endswith(".alpha"))
    }
