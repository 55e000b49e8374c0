"""The studio's folder: the working files of each browser tab, and all runs. No path comes from a request.

sessions/<token>/   condition.png and fit.json: the image a tab works on
jobs/0001-.../      condition.png, tracks.json, jobs.jsonl: the inputs of a run
runs/0001-.../      runs, in the format of `anyi2v animate`
"""

import dataclasses
import json
import re
import secrets
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.files import atomic, read_json
from anyi2v.images.fit import Fit
from anyi2v.images.media import load_image, write_image
from anyi2v.reports.folder import CONDITION, RECORD

TOKEN = re.compile(r"[0-9a-f]{32}")
TRACKS, JOBS, FIT = "tracks.json", "jobs.jsonl", "fit.json"


def new_token() -> str:
    """Create an unguessable session token."""
    return secrets.token_hex(16)


def session_folder(root: Path, token: str) -> Path:
    """Return the folder of a session; raises InputError for a malformed token."""
    if not TOKEN.fullmatch(token):
        raise InputError("this session is not known here; reload the page")
    return root / "sessions" / token


def save_condition(folder: Path, image: Float[Tensor, "3 h w"], fit: Fit) -> None:
    """Save a session's condition image and the mapping to its source."""
    write_image(folder / CONDITION, image)
    with atomic(folder / FIT) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(fit)), encoding="utf-8")


def load_condition_of(folder: Path) -> tuple[Float[Tensor, "3 h w"], Fit] | None:
    """Load the result of `save_condition`; None if there is none."""
    if not (folder / FIT).is_file():
        return None
    data = read_json(folder / FIT)
    fit = Fit(tuple(data["source"]), tuple(data["crop"]), data["width"], data["height"], tuple(data["target"]))
    return load_image(folder / CONDITION), fit


def new_job(root: Path, prompt: str, seed: int) -> Path:
    """Create a folder in jobs/, numbered after the existing ones; the run gets the same name."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "prompt"
    jobs = root / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    numbers = (re.match(r"\d{1,9}(?=-)", path.name) for path in jobs.iterdir())
    number = 1 + max((int(found[0]) for found in numbers if found), default=0)
    while True:
        folder = jobs / f"{number:04}-{slug}-s{seed}"
        try:
            folder.mkdir()
        except FileExistsError:  # another tab was faster
            number += 1
        else:
            return folder


def write_job(folder: Path, condition: Float[Tensor, "3 h w"], tracks: str, line: dict[str, Any]) -> None:
    """Write the inputs of a run to its job's folder; `anyi2v batch` reads jobs.jsonl."""
    write_image(folder / CONDITION, condition)
    for name, text in ((TRACKS, tracks), (JOBS, json.dumps(line) + "\n")):
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def run_names(root: Path) -> list[str]:
    """Return the names of all finished runs, the newest first."""
    runs = root / "runs"
    found = [path.name for path in runs.iterdir() if (path / RECORD).is_file()] if runs.is_dir() else []
    return sorted(found, reverse=True)


def run_folder(root: Path, name: str) -> Path:
    """Return the folder of a run in the list; raises InputError for any other name."""
    if name not in run_names(root):
        raise InputError("there is no such run; choose one of the list")
    return root / "runs" / name
