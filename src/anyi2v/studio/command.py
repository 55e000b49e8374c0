"""A request as a shell command and as a line of a jobs file; both reproduce the page's run byte for byte."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyi2v.backbone.config import BackboneConfig
from anyi2v.batch.request import Request
from anyi2v.checkpoints.header import SHIPPED
from anyi2v.comparators.settings import Settings, name_of
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe


def changed(method: MethodConfig | Settings, base: MethodConfig | Settings) -> dict[str, Any]:
    """Return the settings of `method` that differ from `base`, as plain data."""
    usual = base.to_dict()
    return {key: value for key, value in method.to_dict().items() if value != usual[key]}


def animate_arguments(
    request: Request, config: BackboneConfig, recipe_name: str = "paper", machine: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the arguments of `anyi2v` for the job of a request with an image.

    Args:
        request: the job.
        config: configuration of its backbone.
        recipe_name: the preset to compare with; settings that differ become flags.
        machine: device, dtype, threads and low_memory, in the format of `anyi2v.batch.work.Machine.asked`.
    """
    source = request.source
    found = ["animate", "--image", str(source.image), "--width", str(source.width), "--height", str(source.height)]
    found += _text("--prompt", request.prompt)
    if request.negative_prompt:
        found += _text("--negative-prompt", request.negative_prompt)
    if request.tracks is not None:
        found += ["--tracks", str(request.tracks)]
    if request.backbone != "micro":
        found += ["--backbone", request.backbone]
    if recipe_name != "paper":
        found += ["--recipe", recipe_name]
    usual = {"seed": 0, "sampler": "ddim", "frames": None, "fps": None}
    for name, value in usual.items():
        if getattr(request, name) != value:
            found += [f"--{name}", str(getattr(request, name))]
    for name, value in changed(request.method, recipe(recipe_name, config.method)).items():
        found += _flag(f"method.{name.replace('_', '-')}", value)
    if request.comparator is not None:
        found += _method(request.comparator)
    for name, value in (machine or {}).items():
        found += _flag(name.replace("_", "-"), value)
    return found


def _method(settings: Settings) -> list[str]:
    """Return the flags of a method other than AnyI2V."""
    method, found = name_of(settings), list[str]()
    for name, value in changed(settings, type(settings)()).items():
        found += _flag(f"{method}.{name.replace('_', '-')}", value)
    return ["--method", method, *found]


def _text(flag: str, value: str) -> list[str]:
    """Return a flag with its text, joined by "=" if the text could be mistaken for a flag."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, dot, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as one line for the shell; newlines in a prompt stay inside its quotes."""
    return shlex.join(["anyi2v", *arguments]) if sys.platform != "win32" else " ".join(["anyi2v", *arguments])


def job_line(request: Request, config: BackboneConfig, folder: Path, recipe_name: str = "paper") -> dict[str, Any]:
    """Return the same job as a line of an `anyi2v batch` file in `folder`, which contains the image and tracks."""
    source = request.source
    assert source.image is not None
    found: dict[str, Any] = {
        "image": source.image.relative_to(folder).as_posix(),
        "width": source.width,
        "height": source.height,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "sampler": request.sampler,
        "recipe": recipe_name,
        "name": folder.name,
    }
    if request.tracks is not None:
        found["tracks"] = request.tracks.relative_to(folder).as_posix()
    found["backbone"] = request.backbone if request.backbone in SHIPPED else str(Path(request.backbone).absolute())
    found |= {name: value for name in ("frames", "fps") if (value := getattr(request, name)) is not None}
    if request.comparator is not None:
        settings = request.comparator
        found["comparator"] = {"name": name_of(settings), **changed(settings, type(settings)())}
    own = recipe(recipe_name, config.method)
    # a list would be read as a sweep, except for settings whose values are lists
    return found | {f"method.{name}": value for name, value in changed(request.method, own).items()}
