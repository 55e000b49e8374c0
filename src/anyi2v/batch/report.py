"""The page and the table of a batch, generated from the folders of its jobs."""

import csv
import io
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imageio.v3 as iio
from PIL import Image

from anyi2v.batch.check import Task
from anyi2v.errors import AnyI2VError
from anyi2v.files import atomic, expanded, read_json
from anyi2v.reports.folder import ERROR, PAGE, RECORD
from anyi2v.reports.following import mean_error, problems, recorded
from anyi2v.reports.template import check_written_by, jpeg_uri, load_template

INDEX, TABLE = "index.html", "jobs.csv"
COLUMNS = ("line", "folder", "status", "prompt", "negative_prompt", "seed", "backbone", "width", "height", "frames")
RESULTS = ("seconds", "last_loss", "trajectory_error", "not_followed", "error")
MARK = '<meta name="generator" content="anyi2v batch">'
SIDE = 256
"""Longer side of a picture on the page, in pixels."""


def check_report(out: Path) -> None:
    """Raise InputError if the page or the table of a batch would replace an unrelated file."""
    out = expanded(out)
    for name, sign in ((INDEX, MARK), (TABLE, ",".join(COLUMNS))):
        check_written_by(out / name, sign, "a batch")


def write_report(out: Path, tasks: Sequence[Task], *, title: str) -> Path:
    """Write index.html and jobs.csv into folder `out`, each atomically; return the page's path.

    Args:
        out: folder of the batch.
        tasks: all its jobs; their states are read from their folders.
        title: title of the page.

    Raises ResourceError if a file cannot be written.
    """
    out = expanded(out)
    rows = [_row(task) for task in tasks]
    settings = sorted({name for task in tasks for name in task.job.settings})
    with atomic(out / TABLE) as temporary:
        temporary.write_text(_table(rows, tasks, settings), encoding="utf-8")
    counts = {status: sum(row["status"] == status for row in rows) for status in ("done", "failed", "missing")}
    cards = [row | _card(task, row["status"]) for task, row in zip(tasks, rows, strict=True)]
    text = load_template(Path(__file__).with_name("index.html")).render(
        title=title, counts=counts, jobs=cards, table=TABLE
    )
    with atomic(out / INDEX) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / INDEX


def _row(task: Task) -> dict[str, Any]:
    """Return a job's row of the table; a job with status "missing" may be in progress in another process."""
    request = task.job.request
    row: dict[str, Any] = {"line": task.job.line, "folder": task.job.name, "status": "missing"}
    row |= {key: getattr(request, key) for key in ("prompt", "negative_prompt", "seed", "backbone")}
    row |= {key: task.wanted[key] for key in ("width", "height", "frames")}
    row |= dict.fromkeys(RESULTS, "")
    try:
        if task.done:
            data = read_json(task.folder / RECORD)
            seconds = f"{sum(data['timings'].values()):.2f}"
            loss = f"{data['losses'][-1]['loss']:.6g}" if data["losses"] else ""
            found = recorded(data)
            error = "" if (mean := mean_error(found)) is None else f"{mean:.2f}"
            measured = {"trajectory_error": error, "not_followed": "; ".join(problems(found))}
            return row | {"status": "done", "seconds": seconds, "last_loss": loss} | measured
        if (task.folder / ERROR).is_file():
            message = str(read_json(task.folder / ERROR).get("message", ""))
            return row | {"status": "failed", "error": " ".join(message.split())}
    except (AnyI2VError, OSError, KeyError, TypeError, ValueError) as error:  # a file that was modified
        return row | {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row


def _table(rows: Sequence[dict[str, Any]], tasks: Sequence[Task], settings: Sequence[str]) -> str:
    """Format the rows as CSV, with a column for each setting of the method given in any line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"method.{name}" for name in settings), *RESULTS])
    for row, task in zip(rows, tasks, strict=True):
        values = task.job.request.method.to_dict()
        given = [json.dumps(x) if isinstance(x := values[name], list | types.NoneType) else x for name in settings]
        writer.writerow([*(row[key] for key in COLUMNS), *given, *(row[key] for key in RESULTS)])
    return text.getvalue()


def _card(task: Task, status: str) -> dict[str, Any]:
    """Return a job's picture, the link to its page, and its settings as text."""
    page = (task.folder / PAGE).is_file() and status == "done"
    swept = {name: task.job.request.method.to_dict()[name] for name in task.job.settings}
    return {
        "picture": _picture(task.folder) if status == "done" else None,
        "link": f"{quote(task.job.name)}/{PAGE}" if page else None,
        "settings": ", ".join(f"{name} {json.dumps(value)}" for name, value in swept.items()),
    }


def _picture(folder: Path) -> str | None:
    """Return the middle frame of a run's video as a data URI; None if the video is not readable."""
    try:
        image = _middle(folder)
    except Exception:  # decoders fail in many ways, which must not affect the page
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return jpeg_uri(image)


def _middle(folder: Path) -> Image.Image:
    """Return the middle frame by time, because equal frames of a GIF are merged into a longer one."""
    if not (folder / "video.gif").is_file():
        frames = list(iio.imiter(folder / "video.mp4", plugin="FFMPEG"))
        return Image.fromarray(frames[len(frames) // 2])
    with Image.open(folder / "video.gif") as file:
        lengths = list(_lengths(file))
        left = sum(lengths) / 2
        for number, length in enumerate(lengths):
            left -= length
            if left < 0 or number == len(lengths) - 1:
                file.seek(number)
                break
        return file.convert("RGB")


def _lengths(file: Image.Image) -> Iterator[float]:
    for number in range(getattr(file, "n_frames", 1)):
        file.seek(number)
        yield file.info.get("duration", 0)
