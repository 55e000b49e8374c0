"""PCA and K-means against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.numerics.kmeans import kmeans, two_means_1d
from anyi2v.numerics.pca import fit, project

cluster = pytest.importorskip("sklearn.cluster")
decomposition = pytest.importorskip("sklearn.decomposition")

SEEDS = st.integers(0, 9999)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.data(), SEEDS)
def test_pca_is_equal(n: int, c: int, data: st.DataObject, seed: int) -> None:
    m = data.draw(st.integers(1, min(n - 1, c)))
    x = random(seed, n, c) * torch.logspace(0, -1, c, dtype=torch.float64) + 3
    theirs = decomposition.PCA(m, svd_solver="full").fit(x.numpy())
    basis = fit(x, m)
    torch.testing.assert_close(basis.mean, torch.from_numpy(theirs.mean_))
    torch.testing.assert_close(basis.variance, torch.from_numpy(theirs.explained_variance_), rtol=1e-9, atol=1e-9)
    # up to the sign of each component; two random variances may come close to each other, which costs digits
    ours, expected = project(x, basis), torch.from_numpy(theirs.transform(x.numpy()))
    torch.testing.assert_close(ours * (ours * expected).sum(0).sign(), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 60), SEEDS)
def test_two_means_is_not_worse(n: int, seed: int) -> None:
    x = random(seed, n)
    theirs = cluster.KMeans(2, n_init=5, random_state=0).fit(x[:, None].numpy())
    upper, centres = two_means_1d(x)
    cost = (x - torch.where(upper, centres[1], centres[0])).square().sum()
    assert cost <= theirs.inertia_ + 1e-12  # rounding of the means, and of up to 60 squares


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 3), SEEDS)
def test_kmeans_cannot_be_improved(k: int, d: int, seed: int) -> None:
    """Lloyd's algorithm of the reference, started at our centres, stays there."""
    x = random(seed, 40, d)
    found = kmeans(x, k)
    theirs = cluster.KMeans(k, init=found.centres.numpy(), n_init=1, algorithm="lloyd", tol=0).fit(x.numpy())
    assert np.array_equal(theirs.labels_, found.labels.numpy())
    torch.testing.assert_close(found.centres, torch.from_numpy(theirs.cluster_centers_))
    assert found.cost.item() == pytest.approx(theirs.inertia_)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(1, 3), SEEDS)
def test_kmeans_from_equal_seeds_is_equal(k: int, d: int, seed: int) -> None:
    """The whole path: one iteration of ours gives the seeds' clusters, the reference goes on from their means."""
    x = random(seed, 40, d)
    start = kmeans(x, k, iterations=1).centres.numpy()
    theirs = cluster.KMeans(k, init=start, n_init=1, algorithm="lloyd", tol=0).fit(x.numpy())
    assert np.array_equal(theirs.labels_, kmeans(x, k).labels.numpy())
