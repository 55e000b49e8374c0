"""The named recipes of `MethodConfig`, changes to them, and warnings about settings; does not import torch."""

from collections.abc import Mapping
from typing import Any

from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig

RECIPES = {"paper": MethodConfig.paper(), "official": MethodConfig.official()}
"""The recipes by name."""


def recipe(name: str, changes: Mapping[str, Any]) -> MethodConfig:
    """Return the recipe `name` with `changes` applied, such as a backbone's settings `BackboneConfig.method`.

    Raises InputError for an unknown name or setting.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return MethodConfig.from_dict({**RECIPES[name].to_dict(), **changes})


def overridden(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `recipe(name, changes)` that differ from the plain recipe."""
    plain = RECIPES[name].to_dict()
    return {key: value for key, value in recipe(name, changes).to_dict().items() if value != plain[key]}


def remarks(config: MethodConfig, *, optimises: bool = True) -> list[str]:
    """Describe settings that have no effect given the others, one sentence each; the job still runs.

    With `optimises=False`, for a job without objects, those of the optimisation are left out.
    """
    found, steps = [], config.steps
    injects = bool(config.inject_hidden or config.inject_query or config.share_kv)
    for name, used in (
        ("inject_steps", injects),
        ("optimise_steps", optimises and config.iterations > 0),
        ("guidance_steps", True),
    ):
        value = getattr(config, name)
        if value is None or value == getattr(MethodConfig, name):  # a default just means "the first few"
            continue
        if used and value > steps:
            found.append(f"{name}={value} is more than steps={steps}, so it applies to all {steps} steps")
    if optimises and config.optimise_steps > 0 and config.iterations == 0:
        found.append(f"iterations=0: optimise_steps={config.optimise_steps} has no effect")
    if config.guidance_scale <= 1 and config.guidance_steps is not None:
        found.append(f"guidance_scale={config.guidance_scale:g} turns guidance off, so guidance_steps has no effect")
    if config.deep_every > 1 and steps - config.inject_steps < 2:
        found.append(
            f"deep_every={config.deep_every} has no effect: it needs two steps without injection, but "
            f"inject_steps={config.inject_steps} of steps={steps}"
        )
    if config.mask == "none" and config.mask_margin:
        found.append(f"mask_margin={config.mask_margin} only affects given masks, because mask='none'")
    return found
