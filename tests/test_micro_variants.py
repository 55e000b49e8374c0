"""The ablations: each changes what its name says, and nothing else."""

from dataclasses import asdict

import pytest

from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.variants import FULL, GIVEN, groups, variants

FIELDS = {
    "no K&V consistency": {"share_kv"},
    "no PCA": {"pca_dim"},
    "no semantic mask": {"mask"},
    "static mask": {"mask"},
    "residual hidden as target": {"align"},
    "t_alpha = 801": {"inversion_timestep"},
    "no debias": {"debias"},
    "no queries": {"inject_query"},
    "no residual hidden": {"inject_hidden"},
    "no injection": {"inject_hidden", "inject_query", "share_kv"},
    "8 optimised steps": {"optimise_steps"},
    "lr x 2": {"lr"},
    "11 passes": {"inversion_stride"},
    "noise added directly": {"inversion"},
    "noise carried along": {"initial_noise"},
    "recipe official": {
        *("clustering", "first_frame_mask", "anchors", "normalise", "optimiser_state", "first_box", "pca_solver"),
    },
}


def test_each_variant_changes_its_own_fields() -> None:
    full = MethodConfig()
    found = variants(full, ["all"])
    assert found[FULL] == full
    for name, fields in FIELDS.items():
        changed = {key for key, value in asdict(found[name]).items() if value != asdict(full)[key]}
        assert changed == fields, name
    # with a mask given, the settings are those of the full method
    settings = [config for name, config in found.items() if name not in GIVEN]
    assert len(set(settings)) == len(settings)


def test_what_is_the_full_method_already_is_left_out() -> None:
    found = variants(MethodConfig(pca_dim=16, inversion_stride=4), ["figure 8, components", "inversion"])
    assert "M = 16" not in found
    assert "51 passes" not in found
    assert {"M = 4", "201 passes"} <= found.keys()
    assert "recipe official" not in variants(MethodConfig.official(), ["recipe"])
    assert "8 optimised steps" not in variants(MethodConfig(steps=7), ["figure A6"])
    some = variants(MethodConfig(steps=9, inject_steps=7), ["approximations"])
    assert {"guidance in injected steps", "deep levels once in 2 steps"} <= some.keys()
    none = variants(MethodConfig(steps=9, inject_steps=9), ["approximations"])
    assert set(none) == {FULL, "guidance in half of the steps", "exact PCA"}


def test_recipes_are_compared_with_their_masks() -> None:
    found = variants(MethodConfig(mask="none"), ["recipe", "table 2"])
    assert found["recipe official"].mask == found["dynamic mask"].mask == "dynamic"
    assert "no semantic mask" not in found


def test_the_paper_pair_becomes_the_residuals_beside_it() -> None:
    align = groups(MethodConfig())["table 2"]["residual hidden as target"]["align"]
    assert align == ("up_blocks.1.resnets.1.hidden", "up_blocks.2.resnets.0.hidden")


def test_masks_are_compared_with_whole_boxes() -> None:
    full = MethodConfig(mask="none")
    found = variants(full, ["masks", "mask margins"])
    assert found["true mask"] == full, "what differs is the track's mask"
    assert {name for name in found if name.startswith("true mask")} == GIVEN
    for name in ("static mask, margin 3", "true mask, margin 3"):
        changed = {key for key, value in asdict(found[name]).items() if value != asdict(full)[key]}
        assert changed == ({"mask_margin"} if name in GIVEN else {"mask", "mask_margin"})
        assert found[name].mask_margin == 3
    assert not GIVEN & variants(full, ["all"], given=False).keys()


def test_single_variants_can_be_chosen() -> None:
    found = variants(MethodConfig(), ["no queries", "baselines"])
    assert list(found) == [FULL, "no queries", "no optimisation", "no injection"]


def test_without_injected_queries_keys_and_values_are_still_shared() -> None:
    found = variants(MethodConfig(), ["figure 10"])
    assert found["no queries"].share_kv == MethodConfig().share_kv
    assert not found["no queries, no K&V consistency"].share_kv


def test_unknown_groups_are_named() -> None:
    with pytest.raises(InputError, match="table 2"):
        variants(MethodConfig(), ["table 1"])
