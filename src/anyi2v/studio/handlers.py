"""Actions of the page as functions of plain values; `wiring` connects them to components."""

import base64
import contextlib
import io
import json
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from anyi2v.backbone.text import tokenize
from anyi2v.batch.request import Request
from anyi2v.batch.work import Inputs, check_inputs, memory_mode, read_inputs
from anyi2v.errors import AnyI2VError, InputError
from anyi2v.files import atomic, read_json
from anyi2v.images.conditions import load_condition
from anyi2v.images.fit import Fit, plan
from anyi2v.images.media import load_image, to_bytes, write_image
from anyi2v.images.source import ConditionSource
from anyi2v.method.recipes import remarks
from anyi2v.reports.folder import CONDITION, GALLERY, RECORD
from anyi2v.reports.record import varied
from anyi2v.studio.command import animate_arguments, command_line, job_line
from anyi2v.studio.document import checked, document_of, written
from anyi2v.studio.engine import Engine
from anyi2v.studio.examples import example
from anyi2v.studio.form import Shape, form_of_record, request_of
from anyi2v.studio.workspace import (
    JOBS,
    TRACKS,
    load_condition_of,
    new_job,
    run_folder,
    save_condition,
    session_folder,
    write_job,
)
from anyi2v.tracks import save_anyi2v, tracks_from_dict
from anyi2v.tracks.contents import doubtful

EXAMPLE = "example.png"
"""File of the example's image in a session's folder."""


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to run."""

    job: Inputs
    document: dict[str, Any]
    low_memory: bool
    needs: str
    """Required memory, in words."""
    notes: list[str]
    """Warnings about inputs that are allowed but probably not intended."""


def scene(image: Float[Tensor, "3 h w"], token: str) -> dict[str, Any]:
    """Return the editor's background: the image as a data URL, its size, and the session's token."""
    file = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(file, format="PNG")
    height, width = image.shape[1:]
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"picture": picture, "width": width, "height": height, "token": token}


def use_image(engine: Engine, folder: Path, source: ConditionSource) -> tuple[Float[Tensor, "3 h w"], str]:
    """Create the condition image of a session; return it and a description of how the file was fitted.

    Raises:
        InputError: a file cannot be used; the message names it.
    """
    image, fit = load_condition(**source.condition(engine.config))
    save_condition(folder, image, fit)
    return image, f"condition image: {fit}"


def use_example(engine: Engine, folder: Path, name: str) -> tuple[Float[Tensor, "3 h w"], str, dict[str, Any]]:
    """Use an example's image in a session; return the image, the prompt, and the tracks as a document."""
    chosen = example(name)
    write_image(folder / EXAMPLE, chosen.image)
    image, _ = use_image(engine, folder, ConditionSource(image=folder / EXAMPLE))
    tracks = chosen.tracks.scaled(image.shape[2], image.shape[1])
    return image, chosen.prompt, document_of(tracks, engine.config.frames)


def example_of(folder: Path) -> Path:
    """Return the file of the example that a session uses; raises InputError if there is none."""
    if not (folder / EXAMPLE).is_file():
        raise InputError("the file of the image is not here; upload it, or choose an example")
    return folder / EXAMPLE


def condition_of(folder: Path) -> tuple[Float[Tensor, "3 h w"], Fit]:
    """Return the image of a session; raises InputError if it has none yet."""
    kept = load_condition_of(folder)
    if kept is None:
        raise InputError("there is no image yet; upload one, or choose an example")
    return kept


def prepare(engine: Engine, folder: Path, form: Mapping[str, Any], tracks: str) -> Prepared:
    """Check everything about a job before any work, and predict its memory.

    Raises:
        InputError: `anyi2v animate` would reject the job; the message says why.
    """
    image, _ = condition_of(folder)
    document, _ = checked(tracks)
    with atomic(folder / TRACKS) as temporary:
        temporary.write_text(written(document), encoding="utf-8")
    shape = Shape(image.shape[2], image.shape[1])
    request = request_of(form, engine.config, engine.name, folder, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings are shown as notes
        job = read_inputs(request)
        check_inputs(job, engine.shadow)
        tokenize(engine.config.text, [request.prompt, request.negative_prompt], {})
    low_memory, needs = memory_mode(job, engine.machine, loaded=engine.loaded)
    notes = [*doubtful(job.image.numpy(), job.tracks), *remarks(request.method, optimises=bool(job.tracks.objects))]
    return Prepared(job, document, low_memory, needs, notes)


def start(engine: Engine, root: Path, prepared: Prepared, recipe: str) -> tuple[Inputs, Path]:
    """Write the files of a job to a new folder; return the job that reads them, and the run's folder."""
    request = prepared.job.request
    folder = new_job(root, request.prompt, request.seed)
    source = replace(request.source, image=folder / CONDITION)
    request = replace(request, source=source, tracks=folder / TRACKS)
    write_job(folder, prepared.job.image, written(prepared.document), job_line(request, engine.config, folder, recipe))
    return replace(prepared.job, request=request), root / "runs" / folder.name


def command_of(engine: Engine, request: Request, recipe: str, *, low_memory: bool) -> str:
    """Return the shell command that reproduces a job byte for byte in folder `again`.

    Paths in the folder where the studio was started are relative to it.
    """
    asked: dict[str, Any] = {
        "device": engine.machine.device,
        "dtype": str(engine.machine.dtype).removeprefix("torch."),
        "threads": engine.threads,
    }
    if low_memory:
        asked["low_memory"] = True
    files = {"image": request.source.image, "tracks": request.tracks}
    image, tracks = (None if path is None else _from_here(path) for path in files.values())
    request = replace(request, source=replace(request.source, image=image), tracks=tracks)
    return command_line([*animate_arguments(request, engine.config, recipe, asked), "--out", "again"])


def _from_here(path: Path) -> Path:
    """Return a path relative to the working folder, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def video_of(run: Path, name: str = "video") -> str | None:
    """Return the mp4 of a run, or the GIF if the mp4 could not be written."""
    return next((str(path) for suffix in (".mp4", ".gif") if (path := run / (name + suffix)).is_file()), None)


def pictures_of(run: Path) -> list[tuple[str, str]]:
    """Return the pictures of a run with captions."""
    titles = {
        "masks.png": "masks over time",
        "loss.png": "loss of the optimisation",
        "sheet.png": "all frames",
        "tracks.png": "tracks",
    }
    return [(str(run / name), title) for name, title in titles.items() if (run / name).is_file()]


def features_of(run: Path) -> list[tuple[str, str]]:
    """Return the pictures of an inspected run with their titles."""
    if not (run / GALLERY).is_file():
        return []
    inside = (run / GALLERY).parent
    sections = read_json(run / GALLERY)["sections"]
    return [
        (str(inside / picture["file"]), f"{section['title']}: {picture['title']}")
        for section in sections
        for picture in section["pictures"]
    ]


def files_of(root: Path, name: str) -> list[str]:
    """Return the useful files of a job and its run that exist."""
    wanted = [root / "jobs" / name / file for file in (CONDITION, TRACKS, JOBS)]
    wanted += [root / "runs" / name / file for file in ("report.html", RECORD, "video.mp4", "video.gif")]
    return [str(path) for path in wanted if path.is_file()]


def export(folder: Path, tracks: str) -> list[str]:
    """Write the tracks in both supported output formats; return the files."""
    document, found = checked(tracks)
    own, anyi2v = folder / "export" / TRACKS, folder / "export" / "anyi2v.json"
    with atomic(own) as temporary:
        temporary.write_text(written(document), encoding="utf-8")
    save_anyi2v(anyi2v, found.resample(document.get("frames", 1)))
    return [str(own), str(anyi2v)]


def load_run(root: Path, folder: Path, name: str) -> tuple[Float[Tensor, "3 h w"], dict[str, Any], dict[str, Any]]:
    """Use the image of a run in a session; return the image, the form, and the tracks as a document.

    Raises:
        InputError: the run is not in the list or cannot be read.
    """
    run = run_folder(root, name)
    data = read_json(run / RECORD)
    image = load_image(run / CONDITION)
    height, width = image.shape[1:]
    save_condition(folder, image, plan((width, height), width, height, "crop"))
    drawn = root / "jobs" / name / TRACKS
    document = read_json(drawn) if drawn.is_file() else document_of(tracks_from_dict(data["tracks"]), data["frames"])
    return image, form_of_record(data), document


def compared(root: Path, one: str, other: str) -> str:
    """Describe how the inputs of two runs differ."""
    found = varied([read_json(run_folder(root, name) / RECORD) for name in (one, other)])
    lines = (f"{name}: {first}, not {second}" for name, (first, second) in found.items())
    return "\n".join(lines) or "the inputs are the same"


def restored(root: Path, saved: str, token: str) -> tuple[str, dict[str, Any]]:
    """Restore a reloaded tab: its token, and its saved values as far as they are still valid.

    Args:
        root: the studio's folder.
        saved: state saved by the tab, as JSON text; untrusted.
        token: used if the tab has none.
    """
    try:
        kept = json.loads(saved) if saved else {}
        kept = kept if isinstance(kept, dict) else {}
        former = kept.get("token")
        if isinstance(former, str) and session_folder(root, former).is_dir():
            token = former
    except (ValueError, RecursionError, AnyI2VError):
        kept = {}
    found: dict[str, Any] = {}
    with contextlib.suppress(KeyError, ValueError):  # InputError is a ValueError
        found["document"] = checked(json.dumps(kept["document"]))[0]
    form, plain = kept.get("form"), (str, int, float, bool, type(None))
    items = form.items() if isinstance(form, dict) else ()
    found["form"] = {key: value for key, value in items if isinstance(value, plain)}
    image = load_condition_of(session_folder(root, token))
    found["image"] = None if image is None else image[0]
    return token, found


def steps(engine: Engine, job: Inputs, out: Path, token: str, *, low_memory: bool, inspect: bool) -> Iterator[Any]:
    """Run `Engine.run`; for each update, yield a status text and the finished fraction of the stage."""
    said = ""
    for update in engine.run(job, out, token, low_memory=low_memory, inspect=inspect):
        if update.total:
            said = f"{update.stage}: {update.done} of {update.total}"
            yield said, update.done / update.total, None
        else:
            yield said, None, update.preview


def problem(error: Exception, root: Path) -> dict[str, str]:
    """Return one line for the status; unexpected errors are also printed to the terminal.

    Paths in the studio's folder `root`, and those of uploads, are shortened to what a user of the page knows.
    """
    line = " ".join(str(error).split())
    hidden = "|".join(re.escape(str(folder)) for folder in (root, tempfile.gettempdir()))
    line = re.sub(rf"(?:{hidden})/(?:\S+/)?(?=[^/])", "", line)
    if isinstance(error, AnyI2VError):
        return {"status": line}
    traceback.print_exception(error)
    return {"status": f"unexpected {type(error).__name__}: {line[:300]}; see the terminal"}
