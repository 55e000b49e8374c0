"""The page that joins several runs, index.html: condition, video and results of each, with links to their reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anyi2v.files import atomic, expanded, read_json
from anyi2v.reports.folder import CONDITION, PAGE, RECORD
from anyi2v.reports.page import clip
from anyi2v.reports.template import check_written_by, file_uri, jpeg_uri, load_template

INDEX = "index.html"


def check_overview(out: Path, generator: str) -> None:
    """Raise InputError if the page would replace a file that was not written by the command `generator`."""
    check_written_by(out / INDEX, f'<meta name="generator" content="{generator}">', generator)


def write_overview(
    out: Path,
    runs: Mapping[str, Sequence[str]],
    frames: UInt8[np.ndarray, "h w 3"],
    *,
    generator: str,
    title: str,
    text: str,
    table: Sequence[Sequence[str]] = (),
) -> Path:
    """Write index.html into folder `out` atomically; return its path.

    Args:
        out: folder that contains the folders of the runs.
        runs: the names of these folders, and facts about each run in words.
        frames: contact sheet of all runs.
        generator: the command, by which `check_overview` recognises the page.
        title: title of the page.
        text: a sentence below the title.
        table: rows of a table of scores, the head first.

    Raises InputError if a file of a run is not readable, ResourceError if the page cannot be written.
    """
    out = expanded(out)
    sheet = {"uri": jpeg_uri(Image.fromarray(frames)), "width": frames.shape[1]}
    cards = [_card(out / name, facts) for name, facts in runs.items()]
    page = load_template(Path(__file__).with_name("overview.html")).render(
        generator=generator, title=title, text=text, runs=cards, frames=sheet, table=table
    )
    with atomic(out / INDEX) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / INDEX


def _card(folder: Path, facts: Sequence[str]) -> dict[str, Any]:
    data = read_json(folder / RECORD)
    return {
        "folder": folder.name,
        "prompt": data["prompt"],
        "condition": file_uri(folder / CONDITION),
        "video": clip(folder, "video", data),
        "facts": facts,
        "link": f"{quote(folder.name)}/{PAGE}" if (folder / PAGE).is_file() else None,
    }
