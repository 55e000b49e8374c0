"""The shipped backbones: one image model with the temporal layers of AnimateDiff, LaVie and VideoCrafter2."""

import pytest
import torch

from anyi2v.backbone.networks import state
from anyi2v.backbone.unet import points
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.header import SHIPPED, resolve
from anyi2v.execution.machine import fast_dtype
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.variants import FULL, variants
from anyi2v.pipeline import animate

OTHERS = [name for name in SHIPPED if name != "micro"]


@pytest.mark.parametrize("name", OTHERS)
def test_only_temporal_layers_are_their_own(name: str) -> None:
    assert resolve(name).stat().st_size <= 6e6
    micro, mine = (state(load(n)) for n in ("micro", name))
    shared = [key for key in mine if "temporal" not in key]
    assert set(shared) == {key for key in micro if "temporal" not in key}
    assert all(torch.equal(mine[key], micro[key]) for key in shared)
    temporal = [key for key in mine if "temporal" in key]
    # the layers that end each slot begin with zeros
    assert temporal and all(mine[key].any() for key in temporal)


def test_hook_points_have_the_same_names() -> None:
    names = [{n for n in points(load(name).unet) if "temporal" not in n} for name in SHIPPED]
    assert names[0] == names[1] == names[2]


@pytest.mark.usefixtures("arrays_unchecked")
@pytest.mark.parametrize("name", OTHERS)
def test_objects_follow_their_tracks(name: str) -> None:
    """At 0.4 times the distance without optimisation, or less, as on 100 cases (docs/claims/backbones.md)."""
    backbone, case = load(name, dtype=fast_dtype()), make_case(1000, "edge")
    configs = variants(recipe("paper", backbone.config.method))
    errors = []
    for variant in (FULL, "no optimisation"):
        result = animate(backbone, case.image, case.prompt, case.tracks, config=configs[variant], seed=1000)
        errors += [score.trajectory_error for score in case.scores(result.video)]
    assert errors[0] <= 0.4 * errors[1]
