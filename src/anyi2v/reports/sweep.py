"""Sweeps over several prompts, with a run in a folder for each and a picture of all."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.files import expanded, read_json
from anyi2v.images.media import from_bytes, write_image
from anyi2v.reports.folder import RECORD, check_out, recover
from anyi2v.reports.overview import check_overview, write_overview
from anyi2v.reports.plots import contact_sheet
from anyi2v.reports.record import differences

SHEET = "prompts.png"
"""Name of the picture of all runs, in the sweep's folder."""

GENERATOR = "anyi2v animate"
"""Mark of the page of all runs."""


def sweep_folders(out: Path, prompts: Sequence[str]) -> dict[Path, str]:
    """Return a folder per prompt, named by number and words.

    Raises InputError for a duplicate prompt.
    """
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if list(prompts).count(prompt) > 1)
        raise InputError(f"prompt {twice!r} is given twice; each prompt has its own folder")
    slugs = (re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "prompt" for prompt in prompts)
    return {out / f"{i:02}-{slug}": prompt for i, (slug, prompt) in enumerate(zip(slugs, prompts, strict=True), 1)}


def check_sweep(out: Path, wanted: Mapping[Path, Mapping[str, Any]], *, overwrite: bool) -> list[Path]:
    """Return the folders of the missing runs, or all folders with `overwrite`.

    Args:
        out: the sweep's folder.
        wanted: for each run's folder, the values that its record must have to match (`RunInputs`).
        overwrite: rerun everything.

    Raises InputError for a folder with a run of other inputs, naming them; as `check_out` for a folder with other
    files; and if the picture or the page of all runs would replace an unrelated file.
    """
    out = expanded(out)
    if out.is_file() or (out / RECORD).exists():
        raise InputError(f"{out} is a file or a run; several prompts need a folder for their runs")
    missing = []
    for folder, values in wanted.items():
        recover(folder)
        if overwrite or not (folder / RECORD).is_file():
            check_out(folder, overwrite=overwrite)
            missing.append(folder)
            continue
        found = differences(read_json(folder / RECORD), values)
        if found:
            raise InputError(
                f"folder {folder} has a run with other inputs ({'; '.join(found)}); use --overwrite to rerun all, "
                "or give another folder"
            )
    if (out / SHEET).exists() and not any((folder / RECORD).is_file() for folder in wanted):
        raise InputError(f"{out / SHEET} exists, but none of the runs; move it away, or give another folder")
    check_overview(out, GENERATOR)
    return missing


def write_sweep(out: Path, prompts: Sequence[str]) -> Path:
    """Write a picture with the videos of all prompts as rows, and a page of all runs; return the page's path."""
    folders = sweep_folders(out, prompts)
    sheet = contact_sheet({prompt: run_video(folder) for folder, prompt in folders.items()})
    write_image(out / SHEET, sheet)
    runs = {folder.name: _facts(folder) for folder in folders}
    text = f"{len(prompts)} prompts on the same image and tracks, with the same seed and settings."
    return write_overview(
        out, runs, sheet, generator=GENERATOR, title=f"Prompts in {expanded(out).resolve().name}", text=text
    )


def _facts(folder: Path) -> list[str]:
    data = read_json(folder / RECORD)
    facts = [f"{sum(data['timings'].values()):.1f} s"]
    return [*facts, f"last alignment loss {data['losses'][-1]['loss']:.4g}"] if data["losses"] else facts


def run_video(folder: Path) -> Float[Tensor, "f 3 h w"]:
    """Read the video of a run from its mp4, or from its GIF if there is no mp4.

    Raises InputError naming the file if the video is missing or cannot be read.
    """
    path = next((path for name in ("video.mp4", "video.gif") if (path := folder / name).is_file()), None)
    if path is None:
        raise InputError(f"folder {folder} has no video: video.mp4 and video.gif are missing")
    try:
        if path.suffix == ".mp4":
            frames = iter(iio.imread(path, plugin="FFMPEG"))
        else:
            frames = _gif_frames(path, read_json(folder / RECORD)["fps"])
        return torch.stack([from_bytes(frame) for frame in frames])
    except Exception as error:  # decoders fail in many ways
        raise InputError(f"cannot read {path}: {error}") from error


def _gif_frames(path: Path, fps: int) -> Iterator[np.ndarray]:
    """Yield frames of equal duration, repeating those that were merged into a longer one."""
    with Image.open(path) as file, contextlib.suppress(EOFError):
        while True:
            pixels = np.asarray(file.convert("RGB"))
            for _ in range(max(1, round(file.info["duration"] * fps / 1000))):
                yield pixels
            file.seek(file.tell() + 1)
