"""Ablations of the method, each a change of a few settings.

The groups follow the paper: "table 2", "figure 8" (components, targets), "figure 9" (t_alpha), "figure 10" (injection),
"figure A6" (optimised steps); further groups vary what the paper leaves open, or analyse it ("masks").
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from anyi2v.errors import InputError, closest
from anyi2v.method.config import MethodConfig

FULL = "full"
MARGINS = (1, 2, 3)
"""Numbers of cells to dilate masks by; a cell is one pixel on the micro backbones."""
GIVEN = frozenset({"true mask", *(f"true mask, margin {m}" for m in MARGINS)})
"""Variants whose tracks have each object's true mask of frame 1 (`Track.mask`)."""
Changes = Mapping[str, Any]


def groups(config: MethodConfig) -> dict[str, dict[str, Changes]]:
    """Return the changes to `config` by group and variant, as in `MethodConfig.to_dict`."""
    hiddens = tuple(name.replace("attentions", "resnets").replace(".query", ".hidden") for name in config.align)
    paper, official = MethodConfig.paper().to_dict(), MethodConfig.official().to_dict()
    changed = {key: value for key, value in official.items() if value != paper[key]}
    return {
        "baselines": {
            "no optimisation": {"optimise_steps": 0},
            "no injection": {"inject_hidden": (), "inject_query": (), "share_kv": ()},
        },
        "table 2": {
            "no K&V consistency": {"share_kv": ()},
            "no PCA": {"pca_dim": None},
            "dynamic mask": {"mask": "dynamic"},
            "static mask": {"mask": "static"},
            "no semantic mask": {"mask": "none"},
            "residual hidden as target": {"align": hiddens},
        },
        "masks": {
            **{f"{kind} mask": {"mask": kind} for kind in ("dynamic", "static")},
            "true mask": {"mask": "none"},
        },
        "mask margins": {
            f"{name}, margin {m}": {"mask": kind, "mask_margin": m}
            for name, kind in (("static mask", "static"), ("true mask", "none"))
            for m in MARGINS
        },
        "figure 8, components": {f"M = {m}": {"pca_dim": m} for m in (4, 16, 32, 64)},
        "figure 8, targets": {
            **{f"target {i}.{j}": {"align": (_query(i, j),)} for i in (1, 2) for j in (0, 1, 2)},
            "targets 1.1 and 2.0": {"align": (_query(1, 1), _query(2, 0))},
        },
        "figure 9": {f"t_alpha = {t}": {"inversion_timestep": t} for t in (1, 201, 401, 601, 801)},
        "figure 10": {
            "no residual hidden": {"inject_hidden": ()},
            "no queries": {"inject_query": ()},
            "no queries, no K&V consistency": {"inject_query": (), "share_kv": ()},
            "no debias": {"debias": False},
            "no patches": {"patch": 0},
            "patches of 4 cells": {"patch": 4},
        },
        "figure A6": {f"{n} optimised steps": {"optimise_steps": n} for n in (1, 2, 4, 6, 8) if n <= config.steps},
        # both recipes have masks, regardless of the backbone's own settings
        "recipe": {
            "recipe official": {**changed, "mask": official["mask"]},
            "dynamic mask, joint clusters": {"mask": "dynamic", "clustering": "joint"},
            "dynamic mask, optimiser anew": {"mask": "dynamic", "optimiser_state": "iteration"},
        },
        "learning rate": {f"lr x {factor}": {"lr": config.lr * factor} for factor in (0.5, 2)},
        "iterations": {f"{n} iterations": {"iterations": n} for n in (1, 2, 3, 5)},
        "inversion": {
            **{f"{passes} passes": {"inversion_stride": 200 // (passes - 1)} for passes in (201, 51, 21, 11)},
            "noise added directly": {"inversion": "noise"},
        },
        "initial noise": {"noise carried along": {"initial_noise": "carried"}},
        "approximations": _approximations(config),
    }


def _approximations(config: MethodConfig) -> dict[str, Changes]:
    plain_steps = config.steps - config.inject_steps  # without injection
    return {
        "guidance in half of the steps": {"guidance_steps": config.steps // 2},
        **({"guidance in injected steps": {"guidance_steps": config.inject_steps}} if plain_steps > 0 else {}),
        **{f"deep levels once in {n} steps": {"deep_every": n} for n in (2, 3) if plain_steps > 1},
        "exact PCA": {"pca_solver": "exact"},
    }


def _query(block: int, layer: int) -> str:
    return f"up_blocks.{block}.attentions.{layer}.query"


def variants(
    config: MethodConfig, chosen: Iterable[str] = ("baselines",), *, given: bool = True
) -> dict[str, MethodConfig]:
    """Return the full method and the chosen variants, by groups, single names, or "all".

    Variants that change nothing are left out, and so are those of `GIVEN` if the tracks are not those of objects, so
    that no masks can be `given`. Raises InputError for an unknown name.
    """
    known = groups(config)
    single = {name: {name: changes} for group in known.values() for name, changes in group.items()}
    chosen = tuple(known) if "all" in chosen else tuple(chosen)
    found = {FULL: config}
    for choice in chosen:
        if choice not in known and choice not in single:
            names = closest(choice, (*known, *single))
            raise InputError(f"unknown group of ablations or variant {choice!r}; the closest are {names}")
        for name, changes in (known.get(choice) or single[choice]).items():
            variant = replace(config, **changes)
            if given if name in GIVEN else variant != config:
                found[name] = variant
    return found
