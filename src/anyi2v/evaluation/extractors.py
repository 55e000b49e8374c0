"""Feature extractors from local TorchScript files, and their features of a folder of videos."""

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.errors import InputError
from anyi2v.evaluation.conventions import Convention, prepare
from anyi2v.evaluation.features import Features
from anyi2v.files import expanded

BATCH = 16
"""Number of frames per call of a frame extractor."""


def load_extractor(path: str | Path) -> nn.Module:
    """Load a network from a TorchScript file (`torch.jit.save`) on the CPU, in evaluation mode.

    TorchScript files contain programs: load only files that you trust.

    Raises:
        InputError: the file is not a TorchScript file; the message names it.
    """
    path = expanded(path)
    try:
        with path.open("rb"):  # a missing file keeps the system's message
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's advice to authors of such files
            return torch.jit.load(path, map_location="cpu").eval()
    except OSError as error:
        raise InputError(f"cannot read extractor {path}: {error.strerror or error}") from error
    except Exception as error:  # TorchScript raises errors of any class, with long messages
        raise InputError(
            f"{path} is no TorchScript file; write one with torch.jit.trace(network, example).save(path)"
        ) from error


def checksum(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with expanded(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def frame_features(
    extractor: nn.Module, videos: Iterable[tuple[str, Float[Tensor, "f 3 h w"]]], convention: Convention
) -> Features:
    """Compute the features of every frame of all videos; the extractor maps `[n 3 h w]` to `[n d]`.

    Raises:
        InputError: a video has too few frames, or the extractor fails or returns something else; the message names the
            video.
    """
    found = Features()
    for name, video in videos:
        try:
            batches = prepare(video, convention).split(BATCH)
            found.append(torch.cat([_call(extractor, batch, convention.options) for batch in batches]))
        except InputError as error:
            raise InputError(f"video {name!r}: {error}") from error
    return found


@torch.no_grad()
def video_features(
    extractor: nn.Module, videos: Iterable[tuple[str, Float[Tensor, "f 3 h w"]]], convention: Convention
) -> Features:
    """Compute the features of all videos; the extractor maps `[1 3 f h w]` to `[1 d]`. Raises as `frame_features`."""
    found = Features()
    for name, video in videos:
        try:
            found.append(_call(extractor, prepare(video, convention).movedim(0, 1)[None], convention.options))
        except InputError as error:
            raise InputError(f"video {name!r}: {error}") from error
    return found


def _call(extractor: nn.Module, x: Tensor, options: dict[str, bool]) -> Float[Tensor, "n d"]:
    try:
        output: Any = extractor(x, **options)
    except Exception as error:  # the user's network may raise anything
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the extractor refuses {x.dtype} {list(x.shape)}{f' with {options}' if options else ''}: {said[-1]:.200}"
        ) from error
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"the extractor gives a {type(output).__name__}; it must give a tensor [n, features]")
    if output.ndim < 2 or len(output) != len(x) or output[0].numel() != output.shape[1] or not output.numel():
        raise InputError(f"the extractor gives {list(output.shape)} for {list(x.shape)}; it must give [n, features]")
    return output.flatten(1)
