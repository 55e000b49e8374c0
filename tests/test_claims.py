"""What the benchmark finds significant on 100 cases or more has the same sign on a fixed one: the paper's claims.

Each variant is made of the same case with the same noise as the full method, and must be worse in what it is about.
"""

from functools import cache
from pathlib import Path

import pytest

from anyi2v.checkpoints.checkpoint import load
from anyi2v.execution.machine import fast_dtype
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.micro.benchmark.measure import Scores
from anyi2v.micro.benchmark.variants import FULL, variants
from anyi2v.micro.world.world import Modality
from anyi2v.pipeline import animate

pytestmark = pytest.mark.usefixtures("arrays_unchecked")

EDGE: tuple[int, Modality] = 1000, "edge"
DEPTH: tuple[int, Modality] = 1001, "depth"
WORSE: dict[str, tuple[str, float]] = {
    "no optimisation": ("trajectory_error", 5.0),
    "no injection": ("first_frame_iou", -0.3),
    "no K&V consistency": ("trajectory_error", 0.01),
    "dynamic mask": ("trajectory_error", 0.1),
    "static mask": ("trajectory_error", 0.1),
    "residual hidden as target": ("background_right", -0.01),
    "no residual hidden": ("first_frame_iou", -0.03),
    "no queries": ("background_right", -0.03),
    "no debias": ("trajectory_error", 0.05),
    "patches of 4 cells": ("trajectory_error", 0.01),
    "target 1.0": ("trajectory_error", 5.0),
    "target 1.1": ("trajectory_error", 5.0),
    "target 1.2": ("trajectory_error", 5.0),
    "target 2.1": ("trajectory_error", 0.02),
    "target 2.2": ("trajectory_error", 0.2),
    "targets 1.1 and 2.0": ("background_right", -0.002),
    "t_alpha = 1": ("trajectory_error", 0.05),
    "t_alpha = 601": ("first_frame_iou", -0.01),
    "t_alpha = 801": ("first_frame_iou", -0.05),
    "1 optimised steps": ("trajectory_error", 0.5),
    "2 optimised steps": ("trajectory_error", 0.3),
    "8 optimised steps": ("background_right", -0.04),
    "1 iterations": ("trajectory_error", 0.5),
    "2 iterations": ("trajectory_error", 0.1),
    "lr x 0.5": ("trajectory_error", 0.1),
    "lr x 2": ("background_right", -0.05),
    "noise carried along": ("trajectory_error", 0.1),
}
"""By variant: the score that suffers, and at least how much it changes: less than half of the mean over 100 cases
(docs/claims/ablations.md), and less than half of what it does on the case here, for float32 and bfloat16 give changes
that differ by a twentieth. Some small effects that are significant there do not show on one case: M = 16,
t_alpha = 401, 5 iterations."""
LOOSE: tuple[int, Modality] = 1079, "mixed"
LATE = ("t_alpha = 601", "t_alpha = 801")
"""Features this late have lost fine structure, but not yet that of the edge map."""


@cache
def scores(folder: Path, variant: str, case: tuple[int, Modality], kind: Kind = "plain") -> Scores:
    """Of the first object; the variants' inversions, most of which are equal, are kept in the folder."""
    backbone = load("micro", dtype=fast_dtype())
    config = variants(recipe("paper", backbone.config.method), ["all"])[variant]
    drawn = make_case(*case, kind)
    result = animate(backbone, drawn.image, drawn.prompt, drawn.tracks, config=config, seed=case[0], cache=folder)
    return drawn.scores(result.video)[0]


@pytest.mark.parametrize("variant", WORSE)
def test_what_is_left_out_is_missed(variant: str, shared: Path) -> None:
    metric, change = WORSE[variant]
    case = DEPTH if variant in LATE else EDGE
    assert (getattr(scores(shared, variant, case), metric) - getattr(scores(shared, FULL, case), metric)) / change > 1


def test_masks_help_where_boxes_are_loose(shared: Path) -> None:
    """One of the eight of 100 cases that err by more than 2 px with whole loose boxes; with masks two do
    (docs/claims/masks.md)."""
    whole, dynamic = (scores(shared, name, LOOSE, "loose box").trajectory_error for name in (FULL, "dynamic mask"))
    assert dynamic < 1 < whole - 2
