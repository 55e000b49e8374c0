"""Variants of the benchmark, and the settings of other methods on the micro backbones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from anyi2v.comparators.registry import Comparator, comparator
from anyi2v.comparators.settings import (
    SETTINGS,
    ComparatorName,
    FreeTrajSettings,
    Settings,
    SGI2VSettings,
    SparseCtrlSettings,
    TimeToMoveSettings,
    TrailBlazerSettings,
    name_of,
)
from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.kinds import CAMERA_KINDS, Kind

TUNED: dict[ComparatorName, Settings] = {
    "freetraj": FreeTrajSettings(injection=True, edit_steps=2),
    "trailblazer": TrailBlazerSettings(injection=True, temporal_steps=0, spatial_steps=2, strengthen=0.5),
    "sg-i2v": SGI2VSettings(injection=True, first_step=0, last_step=5, lr=0.06),
    "time-to-move": TimeToMoveSettings(injection=True, weak_step=2, strong_step=4),
    "sparsectrl": SparseCtrlSettings(),
}
"""Settings for the micro backbones with 8 denoising steps, chosen by `python -m benchmarks.tune_methods`; with
injection, without which only Time-to-Move and SparseCtrl use the condition image."""


@dataclass(frozen=True)
class Variant:
    """A variant compared in a benchmark: AnyI2V with some settings, or another method."""

    config: MethodConfig
    """Settings of AnyI2V; for another method, those of steps, guidance and injection."""
    comparator: Settings | None = None
    """Settings of the other method, without the objects' words, which depend on the case."""

    @property
    def points(self) -> set[str]:
        """Hook points that the variant injects."""
        injects = self.comparator is None or self.comparator.injection
        return {*self.config.inject_hidden, *self.config.inject_query} if injects else set()

    def method(self, case: Case) -> Comparator | None:
        """Return the method for a case; None for AnyI2V."""
        match self.comparator:
            case None:
                return None
            case FreeTrajSettings() | TrailBlazerSettings():
                return comparator(replace(self.comparator, subjects=case.subjects))
            case _:
                return comparator(self.comparator)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data: the configuration, and for another method "comparator" and settings such as
        "sg-i2v.lr"."""
        data = self.config.to_dict()
        if self.comparator is not None:
            name = name_of(self.comparator)
            data["comparator"] = name
            data |= {f"{name}.{key}": value for key, value in self.comparator.to_dict().items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Variant":
        """Build a variant from `to_dict` data."""
        config = MethodConfig.from_dict({k: value for k, value in data.items() if k != "comparator" and "." not in k})
        if "comparator" not in data:
            return cls(config)
        name: ComparatorName = data["comparator"]
        settings = {key.partition(".")[2]: value for key, value in data.items() if key.startswith(f"{name}.")}
        return cls(config, SETTINGS[name].from_dict(settings))


def leaderboard(
    config: MethodConfig, chosen: Iterable[Literal["all", ComparatorName]], kind: Kind
) -> dict[str, Variant]:
    """Return the chosen methods with their tuned settings, in the order of `TUNED`.

    Raises InputError for methods that need words for objects if the tracks are those of the camera.
    """
    asked = set(chosen)
    found = {name: settings for name, settings in TUNED.items() if name in asked or "all" in asked}
    worded = [name for name, settings in found.items() if isinstance(settings, FreeTrajSettings | TrailBlazerSettings)]
    if worded and kind in CAMERA_KINDS:
        raise InputError(
            f"--methods {worded[0]} links objects of the prompt to their tracks, but cases of kind {kind!r} have "
            "tracks of the camera; remove it, or use another --kind"
        )
    return {name: Variant(config, settings) for name, settings in found.items()}
