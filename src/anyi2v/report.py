"""A run's folder: the video, pictures of it, and the record from which it can be repeated."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.header import SHIPPED, resolve
from anyi2v.errors import InputError
from anyi2v.files import atomic, check_place, read_json
from anyi2v.media import from_bytes, write_image, write_video
from anyi2v.pipeline import Result
from anyi2v.plots import (
    contact_sheet,
    draw_tracks,
    loss_curve,
    magnification,
    overlay_boxes,
    overlay_masks,
    side_by_side,
)
from anyi2v.report_page import CONDITION, RECORD, write_page


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises InputError if a run may not be written to folder `out`, ResourceError if it cannot; asked before any work.

    `overwrite` allows to replace a former run, but no other folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder")
    check_place(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RECORD).is_file():
        raise InputError(f"folder {out} holds other things than a run; give a new or empty one")
    if not overwrite:
        raise InputError(f"folder {out} holds a run; use --overwrite to replace it, or give another")


def check_sweep(out: Path, prompts: Sequence[str], *, overwrite: bool) -> dict[Path, str]:
    """The folders below `out` that are still to be made, and their prompts.

    Raises InputError for a prompt that is there twice, and as `check_out` for a folder that holds something else
    than a finished run of its prompt.
    """
    if len(set(prompts)) < len(prompts):
        twice = next(prompt for prompt in prompts if list(prompts).count(prompt) > 1)
        raise InputError(f"prompt {twice!r} is there twice; each prompt has a folder of its own")
    if out.is_file() or (out / RECORD).exists():
        raise InputError(f"{out} is a file or a run; several prompts need a folder for their runs")
    missing = {}
    for folder, prompt in sweep_folders(out, prompts).items():
        finished = (folder / RECORD).is_file() and read_json(folder / RECORD).get("prompt") == prompt
        if overwrite or not finished:
            check_out(folder, overwrite=overwrite)
            missing[folder] = prompt
    return missing


def sweep_folders(out: Path, prompts: Sequence[str]) -> dict[Path, str]:
    """A folder per prompt, named by number and words."""
    slugs = (re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "prompt" for prompt in prompts)
    return {out / f"{i:02}-{slug}": prompt for i, (slug, prompt) in enumerate(zip(slugs, prompts, strict=True), 1)}


def write_sweep(out: Path, prompts: Sequence[str]) -> Path:
    """The videos of all prompts below each other in one picture; returns its path."""
    rows = {}
    for folder, prompt in sweep_folders(out, prompts).items():
        frames = iio.imread(folder / "video.mp4", plugin="FFMPEG")
        rows[prompt] = torch.stack([from_bytes(frame) for frame in frames])
    write_image(out / "prompts.png", contact_sheet(rows))
    return out / "prompts.png"


def write_run(
    out: Path,
    result: Result,
    condition: Float[Tensor, "3 h w"],
    *,
    backbone: str,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes folder `out`, whole or not at all.

    video.mp4 and .gif, side_by_side.mp4 and .gif, sheet.png, tracks.png (the condition with boxes and paths,
    if there are objects), masks.png (if there are masks), loss.png,
    condition.png (8 bit: give an image of `from_bytes(to_bytes(x))` to be able to repeat the run exactly),
    run.json (`record`), and report.html, which shows all of it on one page.

    Args:
        out: the folder; see `check_out`, whose errors are raised.
        result: of `animate`.
        condition: the image that `animate` was given.
        backbone: name or path that the backbone was loaded from.
        device: the run's, for the record.
        dtype: of the networks, for the record.
        overwrite: replace a former run.
        more: further inputs of the run for the record, as plain data.
    """
    out = out.resolve()
    check_out(out, overwrite=overwrite)
    with atomic(out) as folder:
        folder.mkdir()
        write_image(folder / CONDITION, condition)
        _write_videos(folder, result, condition)
        _write_pictures(folder, result, condition)
        data = record(result, backbone=backbone, device=device, dtype=dtype, more=more)
        (folder / RECORD).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        write_page(folder)
        former = folder.with_name(folder.name + ".former")
        if out.exists():
            os.replace(out, former)
    shutil.rmtree(former, ignore_errors=True)


def record(
    result: Result, *, backbone: str, device: str, dtype: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything about a run as plain data: inputs, settings, versions, seconds per stage, losses.

    Shipped backbones are named; others are given by their full path. Both have the file's SHA-256.
    """
    frames, _, height, width = result.video.shape
    path = resolve(backbone)
    return {
        "versions": {"anyi2v": version("anyi2v"), "torch": torch.__version__},
        "backbone": {
            "name": backbone if backbone in SHIPPED else str(path.resolve()),
            "sha256": sha256(path),
        },
        **(more or {}),
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "prompt": result.prompt,
        "negative_prompt": result.negative_prompt,
        "seed": result.seed,
        "frames": frames,
        "width": width,
        "height": height,
        "fps": result.fps,
        "tracks": result.tracks.to_dict(),
        "method": result.config.to_dict(),
        "timings": result.timings,
        "losses": [dataclasses.asdict(loss) for loss in result.losses],
    }


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_videos(folder: Path, result: Result, condition: Tensor) -> None:
    factor = magnification(*result.video.shape[-2:])
    compared = side_by_side(condition, result.video, result.tracks)
    for suffix in ("mp4", "gif"):
        write_video(folder / f"video.{suffix}", result.video, fps=result.fps, enlarge=factor)
        write_video(folder / f"side_by_side.{suffix}", compared, fps=result.fps)


def _write_pictures(folder: Path, result: Result, condition: Tensor) -> None:
    rows = {"condition": condition[None], "video": result.video}
    if result.tracks.objects:
        write_image(folder / "tracks.png", draw_tracks(condition, result.tracks))
        rows["tracks"] = overlay_boxes(result.video, result.tracks)
    if result.masks:
        rows["masks"] = overlay_masks(result.video, result.masks)
        write_image(folder / "masks.png", contact_sheet({"masks": rows["masks"]}))
    write_image(folder / "sheet.png", contact_sheet(rows))
    loss_curve([(loss.step, loss.iteration, loss.loss) for loss in result.losses], folder / "loss.png")
