"""Defaults of `anyi2v animate` from the backbone, a recipe or an earlier run; does not import torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.animate import Animate
from anyi2v.comparators.settings import SETTINGS
from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.examples import FOLDER, example
from anyi2v.files import read_json
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import overridden, recipe


@dataclass(frozen=True)
class _Base:
    """Flags that determine the defaults of other flags."""

    backbone: str | None = None
    recipe: str | None = None
    backbone_settings: bool = True
    repeat: Path | None = None
    example: str | None = None
    method_name: Annotated[str | None, tyro.conf.arg(name="method")] = None
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    embedding: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()


def animate_defaults(args: Sequence[str]) -> Animate:
    """Return the defaults of `anyi2v animate`, given the flags of `_Base` among `args`.

    With --repeat, the run's values are the defaults; with --example, its files and prompt. The method's settings are
    replaced if a recipe, --no-backbone-settings or another backbone is given. Warns if the backbone's own settings
    override those of an explicitly given recipe.

    Raises InputError for an unknown backbone or example, an unusable run.json, or --repeat with --example;
    CheckpointError for a broken backbone.
    """
    base, _ = tyro.cli(_Base, args=args, return_unknown_args=True, add_help=False)
    if base.repeat is not None and base.example is not None:
        raise InputError("--repeat and --example cannot be combined; remove one of them")
    default = _started(base.example) if base.repeat is None else repeated(base.repeat)
    if base.method_name not in (None, default.method_name):
        default = replace(default, **{name.replace("-", "_"): kind() for name, kind in SETTINGS.items()})
    backbone = base.backbone or default.backbone
    name = base.recipe or default.recipe
    asked = base.recipe is not None or not base.backbone_settings
    if base.repeat is None or asked or backbone != default.backbone:
        own = read_config(backbone).method if base.backbone_settings else {}
        default = replace(default, method=recipe(name, own))
        helps = {"-h", "--help"} & set(args)
        if asked and not helps and (other := overridden(name, own)):
            warnings.warn(
                f"backbone {backbone} overrides settings of recipe {name}: "
                f"{', '.join(f'{key}={_short(value)}' for key, value in other.items())}; --no-backbone-settings uses "
                "the recipe alone",
                AnyI2VWarning,
                stacklevel=2,
            )
    return replace(
        default,
        backbone=backbone,
        recipe=name,
        backbone_settings=base.backbone_settings,
        repeat=base.repeat,
        # given values would be appended to these defaults, but must replace them
        prompt=() if base.prompt else default.prompt,
        embedding=() if base.embedding else default.embedding,
    )


def _started(name: str | None) -> Animate:
    """Return the flags of a new run, with the files and prompt of an example if one is named."""
    if name is None:
        return Animate()
    chosen = example(name)
    return Animate(**vars(chosen.source()), tracks=FOLDER / chosen.tracks, prompt=(chosen.prompt,))


def _short(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _comparator(data: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of a method other than AnyI2V, if the run used one known to the command line."""
    name = data.get("parts", {}).get("method")
    if name not in SETTINGS:
        return {}
    settings = SETTINGS[name].from_dict(data.get("method_settings", {}))
    return {"method_name": name, name.replace("-", "_"): settings}


REPEATED = ("negative_prompt", "seed", "frames", "fps", "width", "height", "device", "dtype", "threads")


def repeated(path: Path) -> Animate:
    """Return the flags of the run recorded in `path`, its run.json or folder.

    If a process was killed while it moved the run into place, that is completed first. Raises InputError naming what is
    unusable.
    """
    from anyi2v.reports.folder import CONDITION, record_of, recover

    path = record_of(path)
    recover(path.parent)
    data = read_json(path)
    try:
        prompt = (str(data["prompt"]),)
        values: dict[str, Any] = {key: data[key] for key in REPEATED}
        values["low_memory"] = bool(data.get("low_memory", False))
        values["operators"] = data.get("operators", "fast")
        backbone, method = data["backbone"]["name"], MethodConfig.from_dict(data["method"])
        values["sampler"] = data.get("parts", {}).get("sampler", "ddim")
        values |= _comparator(data)
        values["embedding"] = tuple(Path(entry["name"]) for entry in data.get("embeddings", []))
    except KeyError as error:
        raise InputError(f"{path} is not the record of a run: the key {error} is missing") from error
    except TypeError as error:
        raise InputError(
            f"{path} is not the record of a run: values differ in kind from those of a run.json"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    image = path.with_name(CONDITION)
    return Animate(image=image, prompt=prompt, tracks=path, repeat=path, backbone=backbone, method=method, **values)
