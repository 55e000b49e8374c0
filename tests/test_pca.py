from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.numerics.pca import Basis, fit, project

# float64 against itself: a few hundred roundings of 1e-16, divided by spectral gaps of at least 0.02.
assert_near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
SEEDS = st.integers(0, 9999)
SOLVERS = st.sampled_from(("exact", "lowrank"))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(seed: int, c: int) -> Tensor:
    return torch.linalg.qr(torch.randn(c, c, generator=rng(seed), dtype=torch.float64))[0]


def data(seed: int, n: int, c: int, *batch: int, rank: int | None = None) -> Tensor:
    """Points in general position whose directions have clearly different variances."""
    x = torch.randn(*batch, n, c, generator=rng(seed), dtype=torch.float64)
    spread = torch.logspace(0, -1, c, dtype=torch.float64)
    if rank is not None:
        spread[rank:] = 0
    return x * spread @ rotation(seed + 1, c) + 5


def sines(a: Tensor, b: Tensor) -> Tensor:
    """Sines of the principal angles between two subspaces; accurate where they are small."""
    return torch.linalg.svdvals(b - a @ (a.mT @ b))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """n, c, m with m <= min(n - 1, c)."""
    c = draw(st.integers(1, 12))
    n = draw(st.integers(2, 40))
    return n, c, draw(st.integers(1, min(n - 1, c)))


@given(sizes(), SEEDS, SOLVERS)
def test_components_are_orthonormal_with_falling_variance(size, seed: int, solver) -> None:
    n, c, m = size
    basis = fit(data(seed, n, c), m, solver=solver, generator=rng(0))
    assert_near(basis.components.mT @ basis.components, torch.eye(m).double())
    assert (basis.variance.diff() <= 1e-12).all()
    assert (basis.variance >= 0).all()


@given(sizes(), SEEDS)
def test_variance_is_that_of_the_coordinates(size, seed: int) -> None:
    n, c, m = size
    x = data(seed, n, c)
    basis = fit(x, m)
    y = project(x, basis)
    assert_near(y.mean(0), torch.zeros(m).double())
    assert_near(y.mT @ y / (n - 1), basis.variance.diag())


@given(sizes(), SEEDS)
def test_no_other_basis_explains_more(size, seed: int) -> None:
    n, c, m = size
    x = data(seed, n, c)
    other = Basis(x.mean(0), rotation(seed + 2, c)[:, :m], torch.zeros(m).double())
    assert project(x, fit(x, m)).square().sum() >= project(x, other).square().sum() * (1 - 1e-12)


@given(sizes(), SEEDS, SOLVERS)
def test_the_largest_entry_is_positive(size, seed: int, solver) -> None:
    n, c, m = size
    components = fit(data(seed, n, c), m, solver=solver, generator=rng(0)).components
    assert (components.amax(0) >= -components.amin(0)).all()


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(0, 20), SEEDS)
def test_solvers_agree_where_the_spectrum_has_a_gap(m: int, more: int, seed: int) -> None:
    n, c = 60, m + 5 + more
    spread = torch.cat([torch.linspace(2, 1, m), torch.full((c - m,), 0.02)]).double()
    x = torch.randn(n, c, generator=rng(seed), dtype=torch.float64) * spread @ rotation(seed + 1, c)
    exact = fit(x, m)
    lowrank = fit(x, m, solver="lowrank", generator=rng(seed))
    # the randomised range finder contracts what lies below the gap by (0.02 / 0.7)^8 at worst, after 4 iterations
    assert sines(exact.components, lowrank.components).max() < 1e-9
    assert_near(lowrank.variance, exact.variance)


@given(sizes(), SEEDS, st.floats(-100, 100))
def test_distances_ignore_rotation_and_translation(size, seed: int, shift: float) -> None:
    n, c, m = size
    x = data(seed, n, c)
    moved = x @ rotation(seed + 3, c) + shift
    distances, after = (torch.cdist(y, y) for y in (project(x, fit(x, m)), project(moved, fit(moved, m))))
    # a shift of 100 costs two digits, the gap between the last kept and the first dropped component two to five
    torch.testing.assert_close(distances, after, rtol=1e-5, atol=1e-5)


@given(sizes(), SEEDS, st.floats(0.01, 100))
def test_scale_is_carried_through(size, seed: int, scale: float) -> None:
    n, c, m = size
    x = data(seed, n, c)
    one, scaled = fit(x, m), fit(x * scale, m)
    assert_near(scaled.variance / scale**2, one.variance)
    assert_near(scaled.mean / scale, one.mean)


@settings(max_examples=30)
@given(sizes(), SEEDS, SOLVERS)
def test_batch_is_a_loop(size, seed: int, solver) -> None:
    n, c, m = size
    x = data(seed, n, c, 2, 3)
    whole = fit(x, m, solver=solver, generator=rng(seed))
    alone = fit(x[1, 2], m, solver=solver, generator=rng(seed))
    assert_near(whole.variance[1, 2], alone.variance)
    a, b = project(x, whole)[1, 2], project(x[1, 2], alone)
    # through inner products, which a basis turned within nearly equal variances leaves alone
    torch.testing.assert_close(a @ a.mT, b @ b.mT, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20), SEEDS, SOLVERS)
def test_more_components_than_directions_are_zero(n: int, c: int, m: int, seed: int, solver) -> None:
    x = data(seed, n, c)
    basis = fit(x, m, solver=solver, generator=rng(0))
    assert basis.components.shape == (c, m)
    assert basis.variance.shape == (m,)
    rank = min(n - 1, c)
    assert not basis.components[:, rank:].any()
    assert not basis.variance[rank:].any()
    if m >= rank:  # nothing is lost
        back = project(x, basis) @ basis.components.mT + basis.mean
        assert_near(back, x)


@given(st.integers(1, 5), SEEDS, SOLVERS)
def test_data_of_lower_rank(rank: int, seed: int, solver) -> None:
    x = data(seed, 30, 8, rank=rank)
    basis = fit(x, 8, solver=solver, generator=rng(0))
    assert (basis.variance[rank:] < 1e-14).all()
    assert_near(project(x, basis) @ basis.components.mT + basis.mean, x)


def test_constant_data() -> None:
    x = torch.full((5, 3), 7.0)
    basis = fit(x, 2)
    assert torch.equal(basis.mean, x[0])
    assert not project(x, basis).any()


def test_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0], [-4.0, 3.0]]) * torch.tensor([[2.0], [2], [1], [1]])
    basis = fit(x + 10, 2)
    # variances 2 * 100 / 3 along (3, 4) / 5 and 2 * 25 / 3 along (4, -3) / 5; float32
    torch.testing.assert_close(basis.variance, torch.tensor([200 / 3, 50 / 3]))
    torch.testing.assert_close(basis.components, torch.tensor([[0.6, 0.8], [0.8, -0.6]]))
    torch.testing.assert_close(project(x + 10, basis)[:, 0], torch.tensor([10.0, -10, 0, 0]), atol=1e-5, rtol=0)


def test_float32_keeps_the_subspace() -> None:
    x = data(0, 512, 64)
    exact, single = fit(x, 16), fit(x.float(), 16)
    # Measured 1.1e-5: rounding of the covariance, 6e-8, divided by the relative gap of 1 % after component 16.
    assert sines(exact.components, single.components.double()).max() < 5e-5


def test_the_fit_has_no_gradient() -> None:
    x = data(0, 10, 4).requires_grad_()
    assert not any(t.requires_grad for t in fit(x, 2))
    assert project(x, fit(x, 2)).requires_grad


@pytest.mark.parametrize("batch", [(), (2,)])
def test_project_gradient(batch: tuple[int, ...]) -> None:
    basis = fit(data(1, 9, 4, *batch), 3)
    x = data(2, 5, 4, *batch).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: project(x, basis), (x,))


def test_lowrank_draws_from_its_generator_only() -> None:
    x = torch.randn(100, 60, generator=rng(0))  # a flat spectrum, where the draw is visible
    before = torch.get_rng_state()
    first, again, other = (fit(x, 3, solver="lowrank", generator=rng(s)).components for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_refusals() -> None:
    with pytest.raises(InputError, match="0 components; choose at least 1"):
        fit(data(0, 5, 3), 0)
    with pytest.raises(InputError, match="generator"):
        fit(data(0, 5, 3), 2, solver="lowrank")
