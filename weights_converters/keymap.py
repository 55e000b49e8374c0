"""Renaming by rules, with proof that nothing was lost: the one way in which foreign weights become ours."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from anyi2v.errors import CheckpointError


@dataclass(frozen=True)
class Rule:
    """What becomes of the keys that `pattern` matches from end to end."""

    pattern: str
    target: str | None
    """The new key, with back references; None: dropped on purpose."""
    transform: Callable[[Tensor], Tensor] | None = None
    part: int | None = None
    """Which part of the target this is, where several tensors are joined along their first axis."""
    why: str = ""
    """The reason of dropping."""

    def within(self, source: str, target: str) -> "Rule":
        """The same rule where foreign keys begin with `source` and ours with `target`."""
        renamed = None if self.target is None else target + self.target
        return replace(self, pattern=re.escape(source) + f"(?:{self.pattern})", target=renamed)


@dataclass
class Report:
    """What happened to each source key."""

    renamed: dict[str, str] = field(default_factory=dict)
    """Source key to target key; the keys of joined tensors share a target."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Source key to reason."""


def convert(
    tensors: Mapping[str, Tensor], rules: Sequence[Rule], targets: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], Report]:
    """Renames and reshapes `tensors`; the first rule that matches a key counts.

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
    parts, report, unmatched, clashing = _assign(tensors, rules)
    problems = {
        "without a rule": unmatched,
        "with the same target as another": clashing,
        "with a target that the network does not have": [
            f"{name} -> {report.renamed[name]}"
            for key, pieces in parts.items()
            if key not in targets
            for name, _ in pieces.values()
        ],
        "that the network needs but nothing gives": [key for key in targets if key not in parts],
    }
    _raise(problems)
    converted = {key: _join([_take(tensors, *parts[key][i]) for i in sorted(parts[key])]) for key in targets}
    _raise(
        {
            "of the wrong shape": [
                f"{key} {tuple(tensor.shape)} instead of {tuple(targets[key])}"
                for key, tensor in converted.items()
                if tuple(tensor.shape) != tuple(targets[key])
            ]
        }
    )
    return converted, report


Pieces = dict[int, tuple[str, Rule]]
"""The sources of one target by their part."""


def _assign(sources: Iterable[str], rules: Sequence[Rule]) -> tuple[dict[str, Pieces], Report, list[str], list[str]]:
    """Where each source goes, and the sources without a rule or with a taken place."""
    parts: dict[str, Pieces] = {}
    report, unmatched, clashing = Report(), [], []
    for name in sources:
        match, rule = _first_match(name, rules)
        if match is None or rule is None:
            unmatched.append(name)
        elif rule.target is None:
            report.dropped[name] = rule.why
        else:
            key = match.expand(rule.target)
            pieces = parts.setdefault(key, {})
            if (rule.part or 0) in pieces:
                clashing.append(f"{name} -> {key}")
            pieces[rule.part or 0] = (name, rule)
            report.renamed[name] = key
    return parts, report, unmatched, clashing


def _first_match(name: str, rules: Sequence[Rule]) -> tuple[re.Match[str] | None, Rule | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return match, rule
    return None, None


def _take(tensors: Mapping[str, Tensor], name: str, rule: Rule) -> Tensor:
    tensor = tensors[name]
    return tensor if rule.transform is None else rule.transform(tensor)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _raise(problems: Mapping[str, list[str]]) -> None:
    lines = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
    if lines:
        raise CheckpointError(f"the weights do not fit the network; tensors {'; '.join(lines)}")
