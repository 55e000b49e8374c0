"""benchmarks/masks.py: what is counted, and what is compared with what."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.cases import make_case
from benchmarks.masks import COLUMNS, effects, measure_case, overlap, paired_across, separated


def test_scores_are_counted_inside_the_boxes() -> None:
    """The object scores highest in frame 1's box and lowest in frame 2's; what lies outside does not count."""
    inside = torch.zeros(2, 6, 6, dtype=torch.bool)
    inside[:, 2:4, 2:4] = True
    within = torch.zeros(2, 6, 6, dtype=torch.bool)
    within[:, 1:5, 1:5] = True
    score = torch.arange(72.0).view(2, 6, 6) / 100  # no ties
    score[0][inside[0]] += 5
    score[1][inside[1]] -= 5
    score[:, 0] = 99
    assert separated(score[:1], inside[:1], within[:1]) == 1
    assert separated(score[1:], inside[1:], within[1:]) == 0
    assert separated(score, inside, within) == 0.5
    half = inside.clone()
    half[:, 2] = False
    assert overlap(half, inside) == 0.5
    assert overlap(inside, inside) == 1


def test_the_first_pass_tells_the_object_in_frame_1() -> None:
    """On one case, what is measured on many: frame 1's mask is right from the beginning, later frames' are not."""
    backbone = load("micro")
    config = replace(
        backbone_method(backbone), mask="dynamic", steps=8, optimise_steps=1, iterations=1, inversion_stride=50
    )
    found = measure_case(backbone, make_case(1000, "edge"), config)
    assert list(found) == [0]
    first, later, mask, later_mask = dict(zip(COLUMNS, found[0], strict=True)).values()
    assert first > 0.95 and mask > 0.7
    assert later < first and later_mask < mask


def backbone_method(backbone: Any) -> MethodConfig:
    return MethodConfig.from_dict(backbone.config.method)


def rows(*variants: str, seeds: range, extra: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"variant": name, "seed": seed, "modality": "edge", "trajectory_error": seed + extra + number}
        for number, name in enumerate(variants)
        for seed in seeds
    ]


def test_folders_are_paired_on_the_cases_that_they_share() -> None:
    plain, given = rows("full", "static mask", seeds=range(4)), rows("full", seeds=range(2, 6), extra=0.5)
    errors, gap = paired_across(given, "full", plain, "full")
    assert (errors.tolist(), gap.mean) == ([2.5, 3.5], 0.5)
    with pytest.raises(InputError, match="no case in common"):
        paired_across(rows("full", seeds=range(9, 11)), "full", plain, "full")


def test_masks_are_compared_with_whole_boxes_only() -> None:
    plain = rows("full", "static mask", "no PCA", seeds=range(4))
    methods = {name: {"mask": "none"} for name in ("full", "static mask", "no PCA")}
    whole, static = effects(plain, {"methods": methods})
    assert (whole.name, whole.errors.tolist()) == ("whole boxes (the default)", [0, 1, 2, 3])
    assert (static.name, static.gap.mean) == ("static mask", 1)
    methods["full"]["mask"] = "dynamic"
    with pytest.raises(InputError, match="mask='dynamic'"):
        effects(plain, {"methods": methods})
