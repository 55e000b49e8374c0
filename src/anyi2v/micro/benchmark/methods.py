"""Other methods in the benchmark: a variant as data, and the settings of each method on the micro backbones."""

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
    "sg-i2v": SGI2VSettings(injection=True, first_step=0, last_step=3, lr=0.08),
    "time-to-move": TimeToMoveSettings(injection=True, weak_step=2, strong_step=4),
    "sparsectrl": SparseCtrlSettings(),
}
"""For the micro backbones and their 8 denoising steps, chosen by `python -m benchmarks.tune_methods`; with injection,
without which no method but Time-to-Move and SparseCtrl knows the condition image."""


@dataclass(frozen=True)
class Variant:
    """What a benchmark compares: AnyI2V, or another method."""

    config: MethodConfig
    """Of AnyI2V; of another method steps, guidance and injection."""
    comparator: Settings | None = None
    """Of the other method, without the objects' words, which each case has."""

    @property
    def points(self) -> set[str]:
        """What it injects."""
        injects = self.comparator is None or self.comparator.injection
        return {*self.config.inject_hidden, *self.config.inject_query} if injects else set()

    def method(self, case: Case) -> Comparator | None:
        """The method for a case; None for AnyI2V."""
        match self.comparator:
            case None:
                return None
            case FreeTrajSettings() | TrailBlazerSettings():
                return comparator(replace(self.comparator, subjects=case.subjects))
            case _:
                return comparator(self.comparator)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the configuration, and of another method "comparator" and settings as "sg-i2v.lr"."""
        data = self.config.to_dict()
        if self.comparator is not None:
            name = name_of(self.comparator)
            data["comparator"] = name
            data |= {f"{name}.{key}": value for key, value in self.comparator.to_dict().items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Variant":
        """The inverse of `to_dict`."""
        config = MethodConfig.from_dict({k: value for k, value in data.items() if k != "comparator" and "." not in k})
        if "comparator" not in data:
            return cls(config)
        name: ComparatorName = data["comparator"]
        settings = {key.partition(".")[2]: value for key, value in data.items() if key.startswith(f"{name}.")}
        return cls(config, SETTINGS[name].from_dict(settings))


def leaderboard(
    config: MethodConfig, chosen: Iterable[Literal["all", ComparatorName]], kind: Kind
) -> dict[str, Variant]:
    """The chosen methods with their tuned settings, in the order of `TUNED`.

    Raises InputError for methods that need objects with words, where the tracks are the camera's.
    """
    asked = set(chosen)
    found = {name: settings for name, settings in TUNED.items() if name in asked or "all" in asked}
    worded = [name for name, settings in found.items() if isinstance(settings, FreeTrajSettings | TrailBlazerSettings)]
    if worded and kind in CAMERA_KINDS:
        raise InputError(
            f"--methods {worded[0]} ties objects of the prompt to their tracks, but cases of kind {kind!r} have the "
            "camera's; leave it out, or take another --kind"
        )
    return {name: Variant(config, settings) for name, settings in found.items()}
