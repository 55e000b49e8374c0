"""Renaming by rules: a proof that nothing was lost, or an error."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.errors import CheckpointError
from weights_converters.keymap import Rule, convert

KEYS = st.text("abc.", min_size=1, max_size=4)


@given(keys=st.sets(KEYS, min_size=1, max_size=6), data=st.data())
def test_rules_prove_a_bijection(keys: set[str], data: st.DataObject) -> None:
    """Identity rules are accepted exactly if sources and targets are the same set."""
    targets = data.draw(st.one_of(st.just(keys), st.sets(KEYS, max_size=6)))
    tensors = {key: torch.full((2,), float(i)) for i, key in enumerate(sorted(keys))}
    wanted = dict.fromkeys(sorted(targets), (2,))
    if keys == targets:
        converted, report = convert(tensors, [Rule("(.*)", r"\1")], wanted)
        assert all(converted[report.renamed[key]] is tensors[key] for key in keys)
        return
    with pytest.raises(CheckpointError) as caught:
        convert(tensors, [Rule("(.*)", r"\1")], wanted)
    assert ("does not have" in str(caught.value)) == bool(keys - targets)
    assert ("no source has" in str(caught.value)) == bool(targets - keys)


def test_the_first_matching_rule_counts_and_matches_whole_keys() -> None:
    rules = [Rule("a", None, why="no use"), Rule("a(.*)", r"b\1", transform=lambda x: x[0])]
    converted, report = convert({"a": torch.zeros(1), "aa": torch.ones(2, 3)}, rules, {"ba": (3,)})
    assert torch.equal(converted["ba"], torch.ones(3))
    assert (report.renamed, report.dropped) == ({"aa": "ba"}, {"a": "no use"})


def test_a_key_without_a_rule_is_refused() -> None:
    with pytest.raises(CheckpointError, match="1 without a rule: ab"):
        convert({"ab": torch.zeros(1)}, [Rule("a", "b")], {})


def test_two_keys_for_one_target_are_refused() -> None:
    with pytest.raises(CheckpointError, match="1 with the same target as another: c -> t"):
        convert({"a": torch.zeros(1), "c": torch.zeros(1)}, [Rule("[ac]", "t")], {"t": (1,)})


def test_parts_are_joined_in_their_order_whatever_that_of_the_file() -> None:
    rules = [Rule("q", "qk", part=0), Rule("k", "qk", part=1)]
    converted, _ = convert({"k": torch.ones(1), "q": torch.zeros(2)}, rules, {"qk": (3,)})
    assert converted["qk"].tolist() == [0, 0, 1]


def test_a_rule_within_a_prefix_leaves_other_keys_alone() -> None:
    rule = Rule("a|b", "t").within("file (1): ", "unet.")
    assert re.fullmatch(rule.pattern, "file (1): b")
    assert not re.fullmatch(rule.pattern, "b")
    assert rule.target == "unet.t"
    assert Rule("a", None, why="x").within("y", "z").target is None
