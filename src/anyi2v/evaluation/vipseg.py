"""File layout of VIPSeg (Miao et al. 2022): lists of videos, frames, and panoptic masks.

`imgs/VIDEO/FRAME.jpg`, `panomasks/VIDEO/FRAME.png`, lists of videos such as `val.txt`, and, for class names,
`panoVIPSeg_categories.json`. Mask values: 0 is void; values below 125 are classes of stuff; values from 125 are things
of class `value // 100` with the number `value % 100`. Class numbers are one more than the ids in the categories file.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from anyi2v.errors import InputError

FIRST_THING = 125
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Clip:
    """A video of VIPSeg."""

    name: str
    frames: tuple[Path, ...]
    """Frames in order of their numbers."""
    mask: Path
    """Panoptic mask of the first frame."""


def read_split(data: Path, split: str) -> list[str]:
    """Return the names of the videos in a list; raises InputError if the list is missing or empty."""
    path = data / f"{split}.txt"
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}: {getattr(error, 'strerror', None) or error}") from error
    if not names:
        raise InputError(f"{path} lists no video")
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} lists {doubled[0]!r} more than once")
    return names


def find_clip(data: Path, name: str) -> Clip:
    """Find the frames and the first mask of a video; raises InputError naming what is missing."""
    frames = _numbered(data / "imgs" / name, FRAME_SUFFIXES)
    masks = {path.stem: path for path in _numbered(data / "panomasks" / name, (".png",))}
    if frames[0].stem not in masks:
        raise InputError(f"frame {frames[0]} has no mask: {data / 'panomasks' / name} has no {frames[0].stem}.png")
    return Clip(name, tuple(frames), masks[frames[0].stem])


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; VIPSeg has one for every video")
    found = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    if not found:
        raise InputError(f"{folder} holds no file of {', '.join(suffixes)}")
    for path in found:
        if not path.stem.isascii() or not path.stem.isdigit():
            raise InputError(f"{path}: the names of VIPSeg's frames are their numbers")
    return sorted(found, key=lambda path: int(path.stem))


def read_panoptic(path: Path) -> Int[np.ndarray, "h w"]:
    """Read the values of a panoptic mask; raises InputError naming the file if it is not one."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except Exception as error:  # decoders of untrusted files fail in many ways
        raise InputError(f"cannot read mask {path}: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise InputError(f"{path} is {values.dtype} {values.shape}; a panoptic mask has one whole number per pixel")
    return values.astype(np.int64)


def category_names(data: Path) -> dict[int, str]:
    """Return class names by their numbers in masks; empty without `panoVIPSeg_categories.json`."""
    path = data / "panoVIPSeg_categories.json"
    if not path.is_file():
        return {}
    try:
        return {int(item["id"]) + 1: str(item["name"]).replace("_", " ") for item in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no list of objects with id and name: {error!r}") from error


def things(values: Int[np.ndarray, "h w"], names: dict[int, str]) -> dict[str, Bool[np.ndarray, "h w"]]:
    """Return the masks of the things in a panoptic mask, the largest first, by names such as "person 1"."""
    ids, areas = np.unique(values[values >= FIRST_THING], return_counts=True)
    order = sorted(zip(ids.tolist(), areas.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    counts: Counter[str] = Counter()
    found = {}
    for value, _ in order:
        name = names.get(value // 100, f"class {value // 100}")
        counts[name] += 1
        found[f"{name} {counts[name]}"] = values == value
    return found
