"""Registry that maps configurations of temporal layers to the designs that build them."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from anyi2v.backbone.animatediff import MotionModules
from anyi2v.backbone.config import (
    TEMPORAL_KINDS,
    FactorisedConfig,
    MotionConfig,
    RotaryConfig,
    TemporalConfig,
)
from anyi2v.backbone.lavie import RotaryAttentions
from anyi2v.backbone.slots import Design
from anyi2v.backbone.videocrafter import Factorised
from anyi2v.errors import InputError

_DESIGNS: dict[str, Callable[[Any], Design]] = {
    MotionConfig.kind: MotionModules,
    RotaryConfig.kind: RotaryAttentions,
    FactorisedConfig.kind: Factorised,
}


@lru_cache(maxsize=64)
def make_design(config: TemporalConfig | None) -> Design:
    """Return the design for a configuration, cached for equal ones; None is the plain 2D UNet.

    Raises InputError for a kind that is not registered.
    """
    if config is None:
        return Design()
    if config.kind not in _DESIGNS:
        raise InputError(f"temporal layers of the unknown kind {config.kind!r}; choose from {', '.join(_DESIGNS)}")
    return _DESIGNS[config.kind](config)


def register_family(config: type, design: Callable[[Any], Design]) -> None:
    """Register a family of temporal layers under the `kind` of its configuration, for `UNet`, `save` and `load`.

    Args:
        config: a frozen dataclass of plain values, whose field `kind` defaults to the family's name.
        design: builds the family's `Design` from such a configuration.

    Raises InputError if another family has that name, or `config` is not such a class.
    """
    kind = getattr(config, "kind", None)
    if not (dataclasses.is_dataclass(config) and isinstance(kind, str)):
        raise InputError(f"{config!r} cannot describe temporal layers: it must be a dataclass with a default kind")
    known = TEMPORAL_KINDS.get(kind)
    if known is not None and (known.__module__, known.__qualname__) != (config.__module__, config.__qualname__):
        raise InputError(
            f"a family of the kind {kind!r} is registered already: {known.__module__}.{known.__qualname__}"
        )
    TEMPORAL_KINDS[kind], _DESIGNS[kind] = config, design
    make_design.cache_clear()
