"""jaxtyping's decorator for the test run, with the same checks in less time.

jaxtyping's own binds the arguments of every call, checks them before and after it, and lets no function out; in the
test run that took as long as the jobs themselves.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from jaxtyping import AbstractArray, config
from jaxtyping._storage import pop_shape_memo, push_shape_memo

ORIGINAL = jaxtyping.jaxtyped


def checked(definition: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """The function, or the class if it is a dataclass, with its annotations enforced by `typechecker`.

    Axes with a name are equally long in all arguments and in the result of a call.
    """
    if definition is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(definition):
        if dataclasses.is_dataclass(definition) and not hasattr(definition.__init__, "__wrapped__"):
            definition.__init__ = checked(definition.__init__, typechecker=typechecker)
        return definition
    if not inspect.isfunction(definition) or inspect.isgeneratorfunction(definition):
        return ORIGINAL(definition, typechecker=typechecker)
    hints = {name: _resolved(hint, definition.__globals__) for name, hint in definition.__annotations__.items()}
    definition.__annotations__ = hints
    function, arrays = typechecker(definition), [array for hint in hints.values() for array in _arrays(hint)]
    if not arrays:
        return function
    # axes such as "{height}" are read from the arguments
    signature = inspect.signature(definition) if any("{" in array.dim_str for array in arrays) else None

    @wraps(definition)
    def call(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return definition(*args, **options)
        push_shape_memo({} if signature is None else _arguments(signature, args, options))
        try:
            return function(*args, **options)
        finally:
            pop_shape_memo()

    return call


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """The hint without quotation marks; anything if it names what only a type checker imports."""

    holder = SimpleNamespace(__annotations__={"value": hint})
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except NameError:
        return Any


def _arrays(hint: Any) -> list[type[AbstractArray]]:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return [hint]
    parts = get_args(hint)
    return [array for part in parts for array in (_arrays(part) if not isinstance(part, list) else _all(part))]


def _all(hints: list[Any]) -> list[type[AbstractArray]]:
    """Of the parameters of a `Callable`."""
    return [array for hint in hints for array in _arrays(hint)]


def _arguments(signature: inspect.Signature, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **options)
    bound.apply_defaults()
    return bound.arguments
