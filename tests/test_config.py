import ast
import dataclasses
import inspect
import itertools
import json
import re
import subprocess
import sys
import typing
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import RECIPES, recipe

HINTS = typing.get_type_hints(MethodConfig)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Allowed values of a field's type; every field allows the numbers drawn here."""
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(st.sampled_from(["a", "b", "up_blocks.1.x"]), min_size=1, unique=True).map(tuple)
    kinds = {
        bool: st.booleans(),
        int: st.integers(2, 999),
        float: st.floats(0, 1),
        int | None: st.none() | st.just(3),
    }
    return kinds[hint]


CONFIGS = st.builds(MethodConfig, **{name: values(hint) for name, hint in HINTS.items()})


@given(CONFIGS)
def test_json_round_trip(config: MethodConfig) -> None:
    assert MethodConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_absent_fields_take_their_defaults() -> None:
    assert MethodConfig.from_dict({"lr": 1}) == MethodConfig(lr=1.0)
    assert MethodConfig.from_dict({}) == MethodConfig.paper()


def test_older_records_share_keys_in_the_layers_of_their_queries() -> None:
    """Where a truth value stood for the layers."""
    assert MethodConfig.from_dict({"share_kv": True}) == MethodConfig()
    assert MethodConfig.from_dict({"share_kv": False}).share_kv == ()
    assert MethodConfig.from_dict({"share_kv": True, "inject_query": []}).share_kv == ()
    some = {"share_kv": True, "inject_query": ["up_blocks.2.attentions.1.query"]}
    assert MethodConfig.from_dict(some).share_kv == ("up_blocks.2.attentions.1",)
    with pytest.raises(InputError, match="inject_query=3 is not allowed"):
        MethodConfig.from_dict({"share_kv": True, "inject_query": 3})


def test_recipes_differ_only_where_paper_and_code_do() -> None:
    paper, official = (RECIPES[name].to_dict() for name in ("paper", "official"))
    assert {key: official[key] for key in paper if paper[key] != official[key]} == {
        "clustering": "joint",
        "first_frame_mask": "shared",
        "anchors": "box_index",
        "normalise": "all_objects",
        "optimiser_state": "iteration",
        "first_box": "stretch",
        "pca_solver": "exact",
    }


def test_paper_has_the_published_hyper_parameters() -> None:
    config = MethodConfig.paper()
    assert (config.steps, config.guidance_scale, config.eta) == (25, 8.0, 0.0)
    assert (config.inversion_timestep, config.inject_steps, config.patch) == (201, 4, 4)
    assert (config.optimise_steps, config.iterations, config.lr, config.pca_dim) == (6, 5, 0.01, 64)


def test_a_backbones_defaults_go_on_top_of_the_recipe() -> None:
    config = recipe("official", {"lr": 0.03, "align": ["up_blocks.2.attentions.1.query"]})
    assert config.lr == 0.03
    assert config.align == ("up_blocks.2.attentions.1.query",)
    assert config.clustering == "joint"


def test_every_setting_says_its_source() -> None:
    """Of the default at least; what is the published code's in that recipe says so."""
    source: Any = ast.parse(inspect.getsource(MethodConfig))
    pairs: Any = itertools.pairwise(source.body[0].body)
    texts = {field.target.id: text.value.value for field, text in pairs if hasattr(field, "annotation")}
    assert texts.keys() == HINTS.keys()
    paper, official = (RECIPES[name].to_dict() for name in ("paper", "official"))
    for name, text in texts.items():
        sources = " ".join(text.split()).rpartition("Source: ")[2]
        assert re.search(r"Section|Eq\.|published code|neither", sources), name
        if official[name] != paper[name]:
            assert f"{official[name]}: published code" in sources, name


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(InputError, match="unknown recipe 'papr'; there are paper, official"):
        recipe("papr", {})


def test_unknown_setting_names_the_closest() -> None:
    with pytest.raises(InputError, match=r"no setting 'optimize_steps'; the closest are optimise_steps,"):
        MethodConfig.from_dict({"optimize_steps": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 is not allowed; it must be finite and at least 1"),
        ({"steps": 2.5}, "steps=2.5 is not allowed; it must be a whole number"),
        ({"steps": True}, "steps=True is not allowed; it must be a whole number"),
        ({"steps": "25"}, "steps='25' is not allowed; it must be a whole number"),
        ({"guidance_scale": -1}, "guidance_scale=-1.0 is not allowed"),
        ({"eta": 1.5}, "eta=1.5 is not allowed; it must be between 0 and 1"),
        ({"eta": None}, "eta=None is not allowed; it must be a number"),
        ({"inversion_timestep": 0}, "inversion_timestep=0 is not allowed"),
        ({"inversion_stride": 0}, "inversion_stride=0 is not allowed"),
        ({"patch": -1}, "patch=-1 is not allowed"),
        ({"inject_steps": -1}, "inject_steps=-1 is not allowed"),
        ({"optimise_steps": -1}, "optimise_steps=-1 is not allowed"),
        ({"iterations": -1}, "iterations=-1 is not allowed"),
        ({"lr": float("nan")}, "lr=nan is not allowed; it must be between 0 and 3e+37"),
        ({"lr": float("inf")}, "lr=inf is not allowed"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is not allowed"),
        ({"pca_dim": 0}, "pca_dim=0 is not allowed; it must be finite and at least 1"),
        ({"pca_dim": "64"}, "pca_dim='64' is not allowed; it must be a whole number"),
        ({"mask": "soft"}, "mask='soft' is not allowed; it must be 'dynamic' or 'static' or 'none'"),
        ({"share_kv": 1}, "share_kv=1 is not allowed; it must be a list of layer names"),
        ({"debias": 1}, "debias=1 is not allowed; it must be true or false"),
        ({"mask_margin": -1}, "mask_margin=-1 is not allowed; it must be finite and at least 0"),
        (
            {"inject_query": "up_blocks.1"},
            "inject_query='up_blocks.1' is not allowed; it must be a list of layer",
        ),
        (
            {"inject_hidden": ["a", 2]},
            "inject_hidden=['a', 2] is not allowed; it must be a list of layer names",
        ),
        ({"inject_hidden": ["a", "a"]}, "inject_hidden=('a', 'a') names a layer twice"),
        ({"align": []}, "align=() leaves nothing to optimise; list a layer, or set optimise_steps=0"),
    ],
)
def test_messages_name_field_value_and_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        MethodConfig.from_dict(changes)


def test_nothing_to_align_is_fine_without_optimisation() -> None:
    assert MethodConfig(align=(), optimise_steps=0).align == ()
    assert MethodConfig(align=(), iterations=0).align == ()


def test_configuration_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MethodConfig().steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_needs_no_torch() -> None:
    code = "import anyi2v.method.recipes, anyi2v.tracks, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
