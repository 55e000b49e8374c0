"""The annotations of the test run are enforced: kinds of numbers, axes of a call, results, fields of dataclasses."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.images.fit import fit_image
from anyi2v.micro.benchmark.measure import Target

from . import check
from .annotations import checked


def typed(definition: Any) -> Any:
    return checked(definition, typechecker=check)


@typed
def joined(a: Float[Tensor, "n c"], b: Float[Tensor, "m c"], more: int = 0) -> Float[Tensor, "n_and_m c"]:
    return torch.cat([a, b])[:, : a.shape[1] - more]


@typed
def filled(size: int, given: int) -> Float[Tensor, "{size} 2"]:
    return torch.zeros(given, 2)


def test_axes_of_a_name_are_equally_long_within_a_call_and_only_there() -> None:
    assert joined(torch.zeros(2, 3), torch.zeros(4, 3)).shape == (6, 3)
    assert joined(torch.zeros(2, 5), torch.zeros(4, 5)).shape == (6, 5)
    with pytest.raises(BeartypeCallHintViolation):
        joined(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(BeartypeCallHintViolation):  # of the result
        joined(torch.zeros(2, 3), torch.zeros(4, 3), 1)


def test_kinds_of_numbers_and_plain_types_are_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        joined(torch.zeros(2, 3, dtype=torch.long), torch.zeros(4, 3))
    with pytest.raises(BeartypeCallHintViolation):
        joined(torch.zeros(2, 3), torch.zeros(4, 3), "0")


def test_axes_may_be_arguments() -> None:
    assert filled(3, 3).shape == (3, 2)
    with pytest.raises(BeartypeCallHintViolation):
        filled(3, 4)


def test_fields_of_dataclasses_and_methods_are_checked() -> None:
    @typed
    @dataclass(frozen=True)
    class Shown:
        mask: "Bool[Tensor, 'h w']"

        @typed
        def on(self, maps: Float[Tensor, "c h w"], mask: Bool[Tensor, "h w"]) -> Tensor:
            return maps * mask

    shown = Shown(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(BeartypeCallHintViolation):
        Shown(torch.ones(2, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BeartypeCallHintViolation):
        shown.on(torch.ones(1, 2, 4), shown.mask)


def test_arrays_are_unchecked_where_a_test_asks_for_it_and_nowhere_else(arrays_unchecked: None) -> None:
    assert joined(torch.zeros(2, 3), torch.zeros(4, 3), 1).shape == (6, 2)


def test_the_package_is_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        fit_image(torch.zeros(1, 4, 4), 2, 2)
    with pytest.raises(BeartypeCallHintViolation):
        Target("red", torch.zeros(3, 3), torch.ones(4, 4, dtype=torch.bool), margin=0.0)
