"""The comparison of several runs: a page of their results, frames and differing settings, and a picture of all frames.

Only the folders of the runs are read. The page is a self-contained file without scripts, like that of a run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from anyi2v.errors import InputError
from anyi2v.files import atomic, expanded, read_json, replaceable
from anyi2v.images.media import write_image
from anyi2v.reports.folder import PAGE, RECORD, recover
from anyi2v.reports.following import recorded
from anyi2v.reports.plots import contact_sheet
from anyi2v.reports.record import varied
from anyi2v.reports.sweep import run_video
from anyi2v.reports.template import jpeg_uri, load_template

INDEX, PICTURE = "index.html", "comparison.png"
MARK = '<meta name="generator" content="anyi2v compare">'


def write_comparison(out: Path, folders: Sequence[Path]) -> Path:
    """Write index.html and comparison.png into folder `out`, each atomically; return the page's path.

    Args:
        out: output folder; an earlier comparison in it is replaced.
        folders: folders of at least two runs.

    Raises:
        InputError: a folder has no run, or a file of it is missing or cannot be read; a run is given twice; or files
            that are not a comparison would be replaced. Raised before anything is written.
        ResourceError: a file cannot be written.
    """
    out, folders = expanded(out), [expanded(folder) for folder in folders]
    _check(out, folders)
    records = [_record(folder) for folder in folders]
    labels = [f"{number} {folder.resolve().name}" for number, folder in enumerate(folders, 1)]
    runs = [_run(label, folder, data, out) for label, folder, data in zip(labels, folders, records, strict=True)]
    settings = varied(records)
    text = load_template(Path(__file__).with_name("comparison.html")).render(
        title=f"{len(runs)} runs", runs=runs, settings=settings
    )
    picture = contact_sheet({label: run_video(folder) for label, folder in zip(labels, folders, strict=True)})
    with atomic(out / INDEX) as temporary:  # first: a picture without a page is not known as ours
        temporary.write_text(text, encoding="utf-8")
    write_image(out / PICTURE, picture)
    return out / INDEX


def _check(out: Path, folders: Sequence[Path]) -> None:
    """Check that there are several runs, and that their comparison replaces nothing else."""
    if len(folders) < 2:
        raise InputError("a comparison needs at least two runs; give their folders")
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            what = "is a file; give the folder of a run" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}")
        recover(folder)
        if not (folder / RECORD).is_file():
            raise InputError(f"folder {folder} has no run: {RECORD} is missing")
        if folder.resolve() in (former.resolve() for former in folders[:number]):
            raise InputError(f"run {folder} is given twice")
    if out.is_file() or (out / RECORD).exists():
        raise InputError(f"{out} is a file or a run; give a folder for the comparison")
    if not replaceable(out / INDEX, MARK) or ((out / PICTURE).exists() and not (out / INDEX).exists()):
        raise InputError(f"{out} has files that are not a comparison; give another --out")


def _record(folder: Path) -> dict[str, Any]:
    """Read the record of a run; raises InputError if entries of it are missing."""
    data = read_json(folder / RECORD)
    if missing := [name for name in ("prompt", "timings", "losses") if name not in data]:
        raise InputError(f"{folder / RECORD} is not the record of a run: {missing[0]!r} is missing")
    return data


def _run(label: str, folder: Path, data: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return what the page shows of a run."""
    try:
        return {
            "label": label,
            "folder": str(folder),
            "link": quote(os.path.relpath(folder / PAGE, out)) if (folder / PAGE).is_file() else None,
            "prompt": data["prompt"],
            "seconds": f"{sum(data['timings'].values()):.1f} s",
            "loss": f"{data['losses'][-1]['loss']:.4g}" if data["losses"] else "none",
            "following": recorded(data),
            "sheet": _sheet(folder / "sheet.png"),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{folder / RECORD} is not the record of a run: {error!r}") from error


def _sheet(path: Path) -> str | None:
    """Return the picture of a run's frames as a data URI; None if the run could not write it."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return jpeg_uri(image.convert("RGB"))
    except Exception:  # decoders fail in many ways, and the frames are also in the comparison's picture
        return None
