"""The page's form as a request, the same as `anyi2v animate` and `anyi2v batch` build from flags and lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from anyi2v.backbone.config import BackboneConfig
from anyi2v.batch.request import Request
from anyi2v.comparators.settings import SETTINGS, MethodName, Settings
from anyi2v.errors import InputError
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, SamplerName, typed
from anyi2v.method.recipes import RECIPES, recipe
from anyi2v.studio.fields import Setting, parsed, parsed_all, settings_of, shown

METHOD = "method."
"""Prefix of the settings of `MethodConfig` in a form; those of other methods have the method's name, as flags do."""
FILES = ("control",)
"""Settings that name files; a page opens only uploaded files, so they are not offered."""
MAX_PROMPT = 4000
"""Maximum number of characters; the text tower accepts far fewer."""


@dataclass(frozen=True)
class Shape:
    """The condition image's geometry, independent of its files."""

    width: int
    height: int


def usual_form(config: BackboneConfig, recipe_name: str = "paper") -> dict[str, Any]:
    """Return the form's initial values: a recipe's settings, overridden by the backbone's own, and its frames."""
    return {
        "prompt": "",
        "negative_prompt": "",
        "seed": 0,
        "frames": config.frames,
        "fps": config.fps,
        "sampler": "ddim",
        "recipe": recipe_name,
        **method_form(recipe(recipe_name, config.method)),
        **comparator_form(None),
    }


def method_form(method: MethodConfig) -> dict[str, Any]:
    """Return the settings of AnyI2V as form values."""
    return {
        METHOD + setting.name: shown(setting, getattr(method, setting.name)) for setting in settings_of(MethodConfig)
    }


def offered(kind: type[Settings]) -> list[Setting]:
    """Return the settings of another method that are form fields."""
    return [setting for setting in settings_of(kind) if setting.name not in FILES]


def comparator_form(used: Settings | None) -> dict[str, Any]:
    """Return the method's name and the settings of all other methods as form values.

    Args:
        used: settings of the method to use; the other methods have their defaults. None: AnyI2V is used.

    Raises:
        InputError: a setting that is not offered is not at its default.
    """
    found: dict[str, Any] = {"method": "anyi2v"}
    for name, kind in SETTINGS.items():
        settings = used if isinstance(used, kind) else kind()
        if settings is used:
            found["method"] = name
        for setting in settings_of(kind):
            value = getattr(settings, setting.name)
            if setting.name not in FILES:
                found[f"{name}.{setting.name}"] = shown(setting, value)
            elif value != getattr(kind(), setting.name):
                raise InputError(f"{name}.{setting.name} is a file; only the command line opens it")
    return found


def request_of(form: Mapping[str, Any], config: BackboneConfig, backbone: str, folder: Path, shape: Shape) -> Request:
    """Return the job described by a form, with image and tracks in `folder`.

    Raises:
        InputError: a field is invalid; the message names it.
    """
    prompt, negative = (_text(key, form[key]) for key in ("prompt", "negative_prompt"))
    if not prompt.strip():
        raise InputError("the prompt is empty; say what the video shows")
    if form["recipe"] not in RECIPES:
        raise InputError(f"recipe {form['recipe']!r:.40} is not known; there are {', '.join(RECIPES)}")
    frames, fps = (_whole(key, form[key]) for key in ("frames", "fps"))
    return Request(
        source=ConditionSource(image=folder / "condition.png", width=shape.width, height=shape.height),
        prompt=prompt,
        negative_prompt=negative,
        tracks=folder / "tracks.json",
        backbone=backbone,
        method=MethodConfig(**parsed_all(MethodConfig, form, METHOD)),
        comparator=_comparator(form),
        sampler=typed("sampler", form["sampler"], SamplerName),
        seed=_whole("seed", form["seed"]),
        # the backbone's value is the command's default and needs no flag
        frames=None if frames == config.frames else frames,
        fps=None if fps == config.fps else fps,
    )


def _comparator(form: Mapping[str, Any]) -> Settings | None:
    name = typed("method", form["method"], MethodName)
    if name not in SETTINGS:
        return None
    kind = SETTINGS[name]
    return kind(**{setting.name: parsed(setting, form[f"{name}.{setting.name}"]) for setting in offered(kind)})


def _text(key: str, value: Any) -> str:
    text = typed(key, value or "", str)
    if len(text) > MAX_PROMPT or "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(
            f"the {key.replace('_', ' ')} is longer than {MAX_PROMPT} letters, or holds no letters of text"
        )
    return text


def _whole(key: str, value: Any) -> int:
    if value is None:
        raise InputError(f"{key} is empty; give a whole number")
    return typed(key, int(value) if isinstance(value, float) and value.is_integer() else value, int)


def form_of_record(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the form that reproduces the run of a run.json; raises InputError if the record cannot be read."""
    try:
        plain = {key: data[key] for key in ("prompt", "negative_prompt", "seed", "frames", "fps")}
        method = MethodConfig.from_dict(data["method"])
        parts = data.get("parts", {})
        kind = SETTINGS.get(parts.get("method"))
        used = None if kind is None else kind.from_dict(data["method_settings"])
    except (KeyError, TypeError) as error:
        raise InputError(f"this is not the record of a run: {error!r}") from error
    sampler = parts.get("sampler", get_args(SamplerName)[0])
    return {**plain, "sampler": sampler, "recipe": "paper", **method_form(method), **comparator_form(used)}
