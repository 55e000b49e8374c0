"""Bootstrap intervals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.micro.benchmark.statistics import difference, estimate

values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@given(values)
def test_the_interval_holds_the_mean_and_lies_within_the_values(given_values: list[float]) -> None:
    found = estimate(torch.tensor(given_values))
    slack = 1e-9 * (1 + max(map(abs, given_values)))
    assert min(given_values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(given_values) + slack


@given(values, st.floats(-50, 50, width=32), st.floats(0.125, 8, width=32))
def test_estimates_move_and_stretch_with_the_values(given_values: list[float], shift: float, scale: float) -> None:
    x = torch.tensor(given_values).double()
    # exact arithmetic would give equality; these are sums of at most 30 numbers below 900 in float64
    for ours, plain in zip(estimate(scale * x + shift), estimate(x), strict=True):
        assert ours == pytest.approx(scale * plain + shift, abs=1e-9)


def test_coverage_is_about_95_percent() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(400, 40, generator=generator)
    held = sum(low <= 0 <= high for _, low, high in map(estimate, draws)) / 400
    # a percentile interval of 40 values covers a little less than it says; the count itself is good to 1.2 %
    assert 0.90 < held < 0.98


def test_missing_values_are_left_out() -> None:
    x = torch.tensor([1.0, float("nan"), 3.0])
    assert estimate(x) == estimate(torch.tensor([1.0, 3.0]))
    assert estimate(torch.tensor([float("nan")])).mean != estimate(torch.tensor([1.0])).mean
    assert not estimate(torch.tensor([float("nan")])).significant


def test_a_constant_shift_between_pairs_is_certain_however_wide_the_values_are() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(2)) * 100
    gap = difference(x + 1, x)
    assert gap.mean == pytest.approx(1, abs=1e-5)
    assert gap.high - gap.low < 1e-4
    assert gap.significant
    assert not difference(x, x).significant
    assert str(gap) == "1.00 [1.00, 1.00]"
