"""Fréchet and kernel distances: against torchmetrics and torch-fidelity, their definitions, and their intervals."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v.errors import InputError
from anyi2v.evaluation.distances import (
    SUBSET_SIZE,
    check_videos,
    frechet,
    frechet_distance,
    interval,
    kernel,
    kernel_distance,
    moments,
)
from anyi2v.evaluation.features import Features


def features(rows: Tensor, per_video: int = 1) -> Features:
    found = Features()
    for video in rows.split(per_video):
        found.append(video)
    return found


def sample(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def oracle_of(metric: str) -> Any:
    return pytest.importorskip(
        f"torchmetrics.image.{metric}", reason="torchmetrics is not installed: pip install 'anyi2v[dev]'"
    )


class Plain(nn.Module):
    """Takes features for images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 60, 8), (200, 90, 32), (40, 41, 39)])
def test_frechet_equals_torchmetrics(n: int, m: int, d: int) -> None:
    fid = oracle_of("fid")
    a, b = sample(n, d, 0), sample(m, d, 1, shift=0.3)
    oracle = fid.FrechetInceptionDistance(feature=Plain(d), input_img_size=(1, 1, d)).set_dtype(torch.float64)
    for rows, real in ((a, True), (b, False)):
        oracle.update(rows[:, None, None], real=real)
    ours = frechet(moments(features(a)), moments(features(b)))
    assert ours == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_frechet_of_few_rows_equals_torchmetrics() -> None:
    fid = oracle_of("fid")
    a, b = sample(12, 40, 0), sample(15, 40, 1)
    oracle = fid.FrechetInceptionDistance(feature=Plain(40), input_img_size=(1, 1, 40)).set_dtype(torch.float64)
    oracle.update(a[:, None, None], real=True)
    oracle.update(b[:, None, None], real=False)
    # the oracle takes square roots of eigenvalues that are zero but for rounding, 1e-8 each
    assert frechet(moments(features(a)), moments(features(b))) == pytest.approx(oracle.compute().item(), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (50, 40)])
def test_kernel_equals_torchmetrics(n: int, m: int) -> None:
    kid = oracle_of("kid")
    a, b = sample(n, 16, 0), sample(m, 16, 1, shift=0.3)
    size = min(n, m)
    oracle = kid.KernelInceptionDistance(feature=Plain(16), subsets=100, subset_size=size).set_dtype(torch.float64)
    oracle.update(a[:, None, None], real=True)
    oracle.update(b[:, None, None], real=False)
    torch.manual_seed(7)  # the oracle draws its subsets from the global generator, the real ones first
    expected = oracle.compute()[0].item()
    ours = kernel_distance(features(a), features(b), resamples=0, paired=False, seed=7)
    assert ours.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (90, 32), (41, 39)])
def test_distances_equal_torch_fidelity(n: int, d: int) -> None:
    # not an extra: its wheel also installs a package called "tests", which would hide ours in some environments
    reason = "torch-fidelity is not installed: pip install --no-deps torch-fidelity"
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason=reason)
    kid = pytest.importorskip("torch_fidelity.metric_kid", reason=reason)
    a, b = sample(n, d, 0), sample(n, d, 1, shift=0.3)
    statistics = [fid.fid_features_to_statistics(rows) for rows in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert frechet(moments(features(a)), moments(features(b))) == pytest.approx(expected, rel=1e-6)
    # subsets of all rows, so that the random numbers of the two libraries do not matter
    found = kid.kid_features_to_metric(a, b, kid_subsets=3, kid_subset_size=n, verbose=False)
    ours = kernel_distance(features(a), features(b), resamples=0, paired=False)
    assert ours.value == pytest.approx(found[kid.KEY_METRIC_KID_MEAN], rel=1e-6)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 99))
def test_frechet_is_its_definition_at_any_rank(n: int, m: int, d: int, seed: int) -> None:
    a, b = sample(n, d, seed), sample(m, d, seed + 1, shift=0.5)
    values, vectors = torch.linalg.eigh(a.T.cov().view(d, d))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ b.T.cov().view(d, d) @ root).clamp(min=0)
    traces = a.var(0).sum() + b.var(0).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + traces - 2 * product.sqrt().sum()
    # square roots of zero eigenvalues, 1e-8 each here, but not in ours
    ours = frechet(moments(features(a)), moments(features(b)))
    assert ours == pytest.approx(expected.item(), abs=1e-6 * (1 + traces.item()))


@given(st.integers(3, 40), st.integers(1, 10), st.integers(0, 99), st.integers(1, 4))
def test_moments_are_means_and_covariances(n: int, d: int, seed: int, per_video: int) -> None:
    rows = sample(n, d, seed, shift=5)
    counts = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed)).double()
    counts[:2] += 1
    held = features(rows, per_video)
    assert len(held) == n and held.videos == -(-n // per_video)
    found = moments(held, counts)
    repeated = rows.repeat_interleave(counts.long(), 0)
    # sums of at most 120 numbers of size 10 in float64
    assert torch.allclose(found.mean, repeated.mean(0), atol=1e-12)
    assert torch.allclose(found.factor.T @ found.factor, repeated.T.cov().view(d, d), atol=1e-11)


@given(st.integers(2, 20), st.integers(1, 10), st.integers(0, 99))
def test_distances_do_not_depend_on_order_and_are_symmetric(n: int, d: int, seed: int) -> None:
    a, b = sample(n, d, seed), sample(n + 1, d, seed + 1, shift=1)
    mixed = a[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    one, other = moments(features(a)), moments(features(b))
    size = 1 + a.square().sum().item() + b.square().sum().item()
    assert frechet(one, other) == pytest.approx(frechet(other, one), abs=1e-9 * size)
    assert frechet(moments(features(mixed)), other) == pytest.approx(frechet(one, other), abs=1e-9 * size)
    assert kernel(a, b) == pytest.approx(kernel(b, a), abs=1e-9 * size**3)
    assert kernel(mixed, b) == pytest.approx(kernel(a, b), abs=1e-9 * size**3)


@pytest.mark.parametrize(("n", "d"), [(10, 40), (100, 8)])
def test_a_set_against_itself(n: int, d: int) -> None:
    a = sample(n, d, 0, shift=3)
    held = features(a)
    same = frechet_distance(held, held, resamples=5, paired=True)
    assert max(same) < 1e-9  # rounding of the traces, about 100
    apart = frechet_distance(held, features(a), resamples=20, paired=False)
    assert apart.low == 0 and apart.high > 1e-3
    # unbiased, so that a set and itself are nearer than two sets of one distribution: no pair of a row with itself
    # counts within, but across
    k = (a @ a.T / d + 1) ** 3
    inside = (k.sum() - k.diagonal().sum()) / (n * (n - 1))
    found = kernel_distance(held, held, resamples=0, paired=True)
    assert found.value == pytest.approx(2 * (inside - k.mean()).item(), rel=1e-9)
    assert found.value < 0


def test_weights_count_rows_like_repeated_ones_but_for_pairs_with_themselves() -> None:
    x, y = sample(6, 3, 0), sample(5, 3, 1)
    u, v = torch.tensor([2.0, 1, 0, 1, 3, 1]).double(), torch.tensor([1.0, 1, 2, 0, 1]).double()

    def within(rows: Tensor, w: Tensor) -> Tensor:
        pairs = [
            (w[i] * w[j], (rows[i] @ rows[j] / 3 + 1) ** 3) for i in range(len(w)) for j in range(len(w)) if i != j
        ]
        return sum(p * k for p, k in pairs) / sum(p for p, _ in pairs)  # pyright: ignore[reportReturnType]

    across = ((x.repeat_interleave(u.long(), 0) @ y.repeat_interleave(v.long(), 0).T / 3 + 1) ** 3).mean()
    assert kernel(x, y, u, v) == pytest.approx((within(x, u) + within(y, v) - 2 * across).item(), rel=1e-9)


def test_intervals_are_seeded_contain_the_value_and_narrow_with_more_videos() -> None:
    few = [features(sample(20, 4, seed, 0.5 * seed), 2) for seed in (0, 1)]
    many = [features(sample(320, 4, seed, 0.5 * seed), 2) for seed in (0, 1)]
    for distance in (frechet_distance, kernel_distance):
        one, again, other = (distance(*few, resamples=30, paired=False, seed=seed) for seed in (0, 0, 1))
        assert one == again != other
        assert one.low <= one.value <= one.high
        wide = distance(*many, resamples=30, paired=False)
        assert wide.high - wide.low < one.high - one.low
        none = distance(*few, resamples=0, paired=False)
        assert none.value == distance(*few, resamples=2, paired=False).value and none.low != none.low


def test_the_interval_is_the_spread_over_samples() -> None:
    values, widths = [], []
    for seed in range(40):  # Fréchet distances of samples of two known distributions
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(60, 3, generator=generator).double() + shift for shift in (0, 1))
        found = frechet_distance(features(a), features(b), resamples=40, paired=False)
        values.append(found.value)
        widths.append((found.high - found.value) / 1.96)
    # standard deviations of 40 values are good to 11 %; the bootstrap's own bias comes on top
    assert torch.tensor(widths).mean() == pytest.approx(torch.tensor(values).std().item(), rel=0.3)


def test_larger_sets_are_compared_by_subsets() -> None:
    a, b = sample(SUBSET_SIZE + 200, 2, 0), sample(SUBSET_SIZE + 100, 2, 1, shift=0.3)
    found = kernel_distance(features(a, 20), features(b, 20), resamples=3, paired=False)
    assert found.value == pytest.approx(kernel(a, b), rel=0.05)  # the mean over subsets estimates the whole
    assert found.low < found.value < found.high


def test_single_videos_and_bad_features_are_named() -> None:
    one = features(sample(8, 3, 0), 8)
    two = features(sample(8, 3, 0), 4)
    check_videos(two, two)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(InputError, match="needs two or more in each; here is 1"):
            distance(two, one, resamples=0, paired=False)
    with pytest.raises(InputError, match="gives 4 features, but gave 3 before"):
        two.append(torch.zeros(1, 4))
    with pytest.raises(InputError, match="gives NaN or infinite features"):
        two.append(torch.full((1, 3), torch.nan))
    assert two.videos == 2


def test_an_interval_that_cannot_be_drawn_is_nan() -> None:
    two, three = features(sample(8, 3, 0), 4), features(sample(9, 3, 0), 3)

    def constant(drawn: Any, generator: torch.Generator) -> float:
        return 1.0

    for sets, resamples in (((three, three), 0), ((two, three), 5)):
        low, high = interval(1.0, sets, constant, resamples=resamples, paired=False, seed=0)
        assert low != low and high != high
    assert interval(1.0, (three, three), constant, resamples=4, paired=True, seed=0) == (1.0, 1.0)
    for distance in (frechet_distance, kernel_distance):  # draws of one video alone among them
        found = distance(three, features(sample(9, 3, 1), 3), resamples=50, paired=True)
        assert found.low < found.high
        single = distance(features(sample(3, 4, 0)), features(sample(3, 4, 1)), resamples=50, paired=True)
        assert single.low < single.high


@settings(max_examples=5)
@given(st.sampled_from([torch.float32, torch.float64, torch.float16]), st.integers(1, 50))
def test_features_come_back_as_they_were(dtype: torch.dtype, n: int) -> None:
    rows = sample(n, 5, 0).to(dtype)
    held = features(rows, 3)
    assert torch.equal(torch.cat([chunk for _, chunk in held.chunks()]), rows.double())
    picks = torch.randint(n, (7,), generator=torch.Generator().manual_seed(n))
    assert torch.equal(held.take(picks), rows.double()[picks])
    assert held.owners.bincount().sum() == n


GROWTH = """
import resource, torch
from anyi2v.evaluation.distances import frechet_distance
from anyi2v.evaluation.features import Features

def peak(videos):
    held, rows = Features(), torch.randn(64, 64)
    for _ in range(videos):
        held.append(rows)
    frechet_distance(held, held, resamples=2, paired=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak(20)
print(peak(2000) - before)
"""


def test_memory_does_not_grow_with_the_number_of_videos() -> None:
    run = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    # KiB; their rows alone are 32 MiB in float32, a number and a weight for each 1 MiB
    assert int(run.stdout) < 10_000
