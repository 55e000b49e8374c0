"""Files matched to videos by name: track files, condition images, prompts."""

import json
from pathlib import Path
from typing import Any

from anyi2v.errors import InputError
from anyi2v.files import OURS, expanded, read_json
from anyi2v.reports.folder import CONDITION, RECORD

TRACK_SUFFIXES = (".json", ".txt", ".npy", ".npz", ".pt", ".pth", ".yaml", ".yml")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def find_tracks(folder: str | Path) -> dict[str, Path]:
    """Find track files in a folder, by name without suffix; if it contains run folders, only their records.

    Raises:
        InputError: the folder is missing or has no track files, or two have the same name.
    """
    return _find(folder, RECORD, TRACK_SUFFIXES, "track file")


def find_images(folder: str | Path) -> dict[str, Path]:
    """Find images in a folder, by name without suffix; if it contains run folders, only their condition images.

    Raises:
        InputError: see `find_tracks`.
    """
    return _find(folder, CONDITION, IMAGE_SUFFIXES, "image")


def _find(folder: str | Path, of_runs: str, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    folder = expanded(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the {what}s")
    records = [path.parent for path in sorted(folder.glob(f"*/{RECORD}"))]
    if records:
        return {run.name: run / of_runs for run in records}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith((".", OURS)):
            if path.stem in found:
                raise InputError(f"{folder}: {found[path.stem].name} and {path.name} are of one name; keep one")
            found[path.stem] = path
    if not found:
        raise InputError(f"{folder} holds no {what}: none of {', '.join(suffixes)}, no run")
    return found


def find_prompts(source: str | Path) -> dict[str, str]:
    """Return prompts by video name, from a JSON file with an object or from the records of runs in a folder.

    Raises:
        InputError: the source cannot be read or contains something other than prompts; the message names the file.
    """
    source = expanded(source)
    if not source.is_dir():
        prompts: dict[str, Any] = read_json(source)
    else:
        runs = sorted(source.glob(f"*/{RECORD}"))
        if not runs:
            raise InputError(f"{source} holds no run; give a folder of runs, or a JSON file of prompts by video")
        prompts = {path.parent.name: read_json(path).get("prompt") for path in runs}
    for name, prompt in prompts.items():
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{source}: the prompt of {name!r} is {json.dumps(prompt):.60}; it must be a text")
    return prompts
