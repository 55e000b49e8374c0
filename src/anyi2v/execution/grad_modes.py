"""Isolation of jobs from the caller's grad mode, inference mode and autocast."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

AUTOCAST = ("cpu", "cuda")
"""Device types whose autocast is turned off."""


def own_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate `function` to run with gradients enabled and without inference mode or autocast.

    A job needs gradients for its optimisation and computes in the dtype of its backbone. Inference tensors among the
    arguments, also inside a list, tuple or mapping, are cloned, because autograd cannot save them.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for kind in filter(torch.is_autocast_enabled, AUTOCAST):
                modes.enter_context(torch.autocast(kind, enabled=False))
            call: Callable[..., R] = function
            return call(*map(_ordinary, args), **{name: _ordinary(value) for name, value in kwargs.items()})

    return run


def _ordinary(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, Mapping):
        return {name: _ordinary(x) for name, x in value.items()} if _any_inference(value.values()) else value
    if type(value) in (list, tuple):
        return type(value)(map(_ordinary, value)) if _any_inference(value) else value
    return value


def _any_inference(values: Any) -> bool:
    return any(isinstance(x, Tensor) and x.is_inference() for x in values)
