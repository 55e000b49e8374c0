"""Rule-based renaming of tensors, with a check that nothing is lost; used for all third-party weights.

A `Plan` is built from names and shapes before any tensor is read, and then fetches tensors one by one.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from anyi2v.errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Rule:
    """How to rename the keys that `pattern` fully matches."""

    pattern: str
    target: str | None
    """The new key, with back references; None: dropped intentionally."""
    transform: Callable[[Tensor], Tensor] | None = None
    """Transformation of the tensor; must also work on the meta device, where shapes are computed."""
    part: int | None = None
    """Index of this tensor, if several tensors are concatenated to one target along their first axis."""
    why: str = ""
    """Reason for dropping."""

    def within(self, source: str, target: str) -> "Rule":
        """Return the same rule for keys with prefix `source` in the file and prefix `target` in ours."""
        renamed = None if self.target is None else target + self.target
        return replace(self, pattern=re.escape(source) + f"(?:{self.pattern})", target=renamed)


def within(rules: Iterable[Rule], source: str, target: str) -> list[Rule]:
    """Apply `Rule.within` to each of `rules`."""
    return [rule.within(source, target) for rule in rules]


@dataclass
class Report:
    """Record of how each source key was used."""

    renamed: dict[str, str] = field(default_factory=dict)
    """Source key to target key; the keys of concatenated tensors share a target."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Source key to reason."""


Pieces = dict[int, tuple[str, Rule]]
"""Sources of one target by part index."""


@dataclass
class Plan:
    """Mapping of source tensors to targets; see `make_plan`."""

    parts: dict[str, Pieces]
    """Pieces by target key."""
    shapes: dict[str, tuple[int, ...] | None]
    """Shapes of the targets; None if the sources cannot be combined."""
    report: Report
    unmatched: list[str]
    """Source keys without a rule."""
    clashing: list[str]
    """Source keys whose target is already taken."""

    def problems(self, targets: Shapes) -> dict[str, list[str]]:
        """Return how this plan deviates from exactly the tensors `targets`, by kind; empty lists if it does not."""
        return {
            "without a rule": self.unmatched,
            "with the same target as another": self.clashing,
            "with a target that the network does not have": [
                f"{name} -> {key}" for key in self.parts if key not in targets for name in self.sources(key)
            ],
            "that the network needs but no source has": [key for key in targets if key not in self.parts],
            "of the wrong shape": [
                f"{', '.join(self.sources(key))} -> {key} {self.shapes[key]} instead of {tuple(shape)}"
                for key, shape in targets.items()
                if key in self.parts and self.shapes[key] != tuple(shape)
            ],
        }

    def sources(self, key: str) -> list[str]:
        """Return the source keys of a target in the order of concatenation."""
        return [self.parts[key][i][0] for i in sorted(self.parts[key])]

    def fetch(self, key: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Build one target from its sources."""
        pieces = self.parts[key]
        return _join([_apply(pieces[i][1], tensors[pieces[i][0]]) for i in sorted(pieces)])


def make_plan(shapes: Shapes, rules: Sequence[Rule]) -> Plan:
    """Map each source key by the first rule that matches it. Never raises.

    Args:
        shapes: shapes of the sources by key.
        rules: rules in order of precedence.
    """
    plan = Plan({}, {}, Report(), [], [])
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    for name in shapes:
        match, rule = _first_match(name, compiled)
        if match is None or rule is None:
            plan.unmatched.append(name)
        elif rule.target is None:
            plan.report.dropped[name] = rule.why
        else:
            key = match.expand(rule.target)
            pieces = plan.parts.setdefault(key, {})
            if (rule.part or 0) in pieces:
                plan.clashing.append(f"{name} -> {key}")
            pieces[rule.part or 0] = (name, rule)
            plan.report.renamed[name] = key
    for key, pieces in plan.parts.items():
        plan.shapes[key] = _shape([(shapes[name], rule) for _, (name, rule) in sorted(pieces.items())])
    return plan


def convert(tensors: Mapping[str, Tensor], rules: Sequence[Rule], targets: Shapes) -> tuple[dict[str, Tensor], Report]:
    """Rename and reshape `tensors`.

    Args:
        tensors: the source weights; looked up one by one.
        rules: rules in order of precedence.
        targets: shapes of the required results by key.

    Returns:
        The tensors, in the order of `targets`, in their own dtypes; and the report.

    Raises:
        CheckpointError: a source key has no rule, two sources have the same target, a target is missing or does not
            exist, or a shape differs. All problems are counted, and the first five of each kind are named.
    """
    plan = make_plan({key: tuple(tensor.shape) for key, tensor in tensors.items()}, rules)
    refuse(plan.problems(targets), "the weights do not fit the network")
    return {key: plan.fetch(key, tensors) for key in targets}, plan.report


def refuse(problems: Mapping[str, list[str]], what: str) -> None:
    """Raise CheckpointError `what` with the count and the first five keys of each kind of problem, if there are any."""
    lines = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
    if lines:
        raise CheckpointError(f"{what}; tensors {'; '.join(lines)}")


def _first_match(name: str, rules: Sequence[tuple[re.Pattern[str], Rule]]) -> tuple[re.Match[str] | None, Rule | None]:
    for pattern, rule in rules:
        if match := pattern.fullmatch(name):
            return match, rule
    return None, None


def _shape(pieces: list[tuple[Sequence[int], Rule]]) -> tuple[int, ...] | None:
    if len(pieces) == 1 and pieces[0][1].transform is None:
        return tuple(pieces[0][0])
    try:
        metas = [_apply(rule, torch.empty(tuple(shape), device="meta")) for shape, rule in pieces]
        return tuple(_join(metas).shape)
    except (RuntimeError, IndexError):  # the shapes do not fit each other or the transform
        return None


def _apply(rule: Rule, tensor: Tensor) -> Tensor:
    return tensor if rule.transform is None else rule.transform(tensor)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
