"""Finding recordings of the comparator methods: `comparators/METHOD/KIND*.json` beside `.safetensors`."""

import json
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from .conftest import golden_dir


class Recorded(NamedTuple):
    """One recorded case."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def recorded(config: pytest.Config, method: str, kind: str, having: str) -> dict[str, Recorded]:
    """The cases of a kind by their names: the keys of its JSON files, whose tensors begin with the name.

    Only those whose JSON has the key `having`.
    """
    found = {}
    for path in sorted((golden_dir(config) / "comparators" / method).glob(f"{kind}*.json")):
        tensors = path.with_suffix(".safetensors")
        known = load_file(tensors) if tensors.exists() else {}
        cases = {name: meta for name, meta in json.loads(path.read_text()).items() if having in meta}
        for name, meta in cases.items():
            own = {key.removeprefix(f"{name}."): x for key, x in known.items() if key.startswith(f"{name}.")}
            found[f"{path.stem}-{name}"] = Recorded(meta, own)
    return found


def parametrize(metafunc: pytest.Metafunc, method: str, kinds: dict[str, tuple[str, str]]) -> None:
    """Runs a test once per recorded case of the kind, with the key, that its argument of that name stands for."""
    for argument, (kind, having) in kinds.items():
        if argument in metafunc.fixturenames:
            cases = recorded(metafunc.config, method, kind, having)
            skip = pytest.mark.skip(reason=f"the golden folder has no comparators/{method}/{kind}*.json")
            values = list(cases.values()) or [pytest.param(None, marks=skip)]
            metafunc.parametrize(argument, values, ids=list(cases) or ["none"])
