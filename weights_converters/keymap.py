"""Renaming by rules, with proof that nothing was lost: the one way in which foreign weights become ours.

A `Plan` is made from names and shapes alone, before any tensor is read, and then fetches tensors one by one.
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
    """What becomes of the keys that `pattern` matches from end to end."""

    pattern: str
    target: str | None
    """The new key, with back references; None: dropped on purpose."""
    transform: Callable[[Tensor], Tensor] | None = None
    """Must work on the meta device too, where the shapes are worked out."""
    part: int | None = None
    """Which part of the target this is, where several tensors are joined along their first axis."""
    why: str = ""
    """The reason of dropping."""

    def within(self, source: str, target: str) -> "Rule":
        """The same rule where foreign keys begin with `source` and ours with `target`."""
        renamed = None if self.target is None else target + self.target
        return replace(self, pattern=re.escape(source) + f"(?:{self.pattern})", target=renamed)


def within(rules: Iterable[Rule], source: str, target: str) -> list[Rule]:
    """`Rule.within` for each of `rules`."""
    return [rule.within(source, target) for rule in rules]


@dataclass
class Report:
    """What happened to each source key."""

    renamed: dict[str, str] = field(default_factory=dict)
    """Source key to target key; the keys of joined tensors share a target."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Source key to reason."""


Pieces = dict[int, tuple[str, Rule]]
"""The sources of one target by their part."""


@dataclass
class Plan:
    """Which tensors become which; see `make_plan`."""

    parts: dict[str, Pieces]
    """By target key."""
    shapes: dict[str, tuple[int, ...] | None]
    """Of the targets; None where the sources cannot be put together at all."""
    report: Report
    unmatched: list[str]
    """Source keys without a rule."""
    clashing: list[str]
    """Source keys whose place is taken."""

    def problems(self, targets: Shapes) -> dict[str, list[str]]:
        """What stands between this plan and exactly the tensors `targets`, by kind; empty lists if nothing."""
        return {
            "without a rule": self.unmatched,
            "with the same target as another": self.clashing,
            "with a target that the network does not have": [
                f"{name} -> {key}" for key in self.parts if key not in targets for name in self.sources(key)
            ],
            "that the network needs but nothing gives": [key for key in targets if key not in self.parts],
            "of the wrong shape": [
                f"{', '.join(self.sources(key))} -> {key} {self.shapes[key]} instead of {tuple(shape)}"
                for key, shape in targets.items()
                if key in self.parts and self.shapes[key] != tuple(shape)
            ],
        }

    def sources(self, key: str) -> list[str]:
        """The source keys of a target in the order in which they are joined."""
        return [self.parts[key][i][0] for i in sorted(self.parts[key])]

    def fetch(self, key: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """One target from the sources that it needs."""
        pieces = self.parts[key]
        return _join([_apply(pieces[i][1], tensors[pieces[i][0]]) for i in sorted(pieces)])


def make_plan(shapes: Shapes, rules: Sequence[Rule]) -> Plan:
    """Says where each source key goes; the first rule that matches it counts. Raises nothing.

    Args:
        shapes: of the sources, by key.
        rules: ordered.
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
    """Renames and reshapes `tensors` at once.

    Args:
        tensors: the foreign weights; looked up one by one.
        rules: ordered.
        targets: shape of each tensor that must come out.

    Returns:
        The tensors, in the order of `targets`, in their own dtype; and the report.

    Raises:
        CheckpointError: a source key without rule, two sources for one target, a target that stays empty,
            a target that does not exist, or another shape. All problems are counted, the first five named.
    """
    plan = make_plan({key: tuple(tensor.shape) for key, tensor in tensors.items()}, rules)
    refuse(plan.problems(targets), "the weights do not fit the network")
    return {key: plan.fetch(key, tensors) for key in targets}, plan.report


def refuse(problems: Mapping[str, list[str]], what: str) -> None:
    """Raises CheckpointError `what` with the count of each kind of problem and its first five keys, if any."""
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
    except (RuntimeError, IndexError):  # the shapes do not suit each other, or the transform
        return None


def _apply(rule: Rule, tensor: Tensor) -> Tensor:
    return tensor if rule.transform is None else rule.transform(tensor)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
