import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.numerics.kmeans import _update, kmeans, two_means_1d

SEEDS = st.integers(0, 9999)
# Multiples of 1/8: sums, shifts and power-of-two scales of them are exact, so ties are real ties.
NUMBERS = st.lists(st.integers(-40, 40).map(lambda i: i / 8), min_size=1, max_size=14)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cost(x: Tensor, upper: Tensor) -> float:
    """Sum of squared distances to the cluster's mean."""
    return sum(float((part - part.mean()).square().sum()) for part in (x[upper], x[~upper]) if len(part))


def best_cost(x: Tensor) -> float:
    """By trying every cut of the sorted values."""
    ordered = x.sort().values
    ranks = torch.arange(len(x))
    return min(cost(ordered, ranks >= cut) for cut in range(len(x)))


@given(NUMBERS)
@example([0.0, 1.0, 2.0])
@example([0.0] * 10 + [1.0] * 40)
@example([0.0] * 13 + [1.0])
def test_two_means_is_the_global_optimum(values: list[float]) -> None:
    x = tensor(values)
    upper, centres = two_means_1d(x)
    # sums of a dozen numbers of at most 25, in float64
    assert cost(x, upper) <= best_cost(x) + 1e-9
    if len(set(values)) > 1:
        assert x[upper].min() > x[~upper].max()
        torch.testing.assert_close(centres, torch.stack([x[~upper].mean(), x[upper].mean()]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [2, 100, 3000])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 1.0), (1e-30, 0.0), (1e15, 1e15)])
def test_two_means_is_exact_in_float32(seed: int, n: int, scale: float, shift: float) -> None:
    """The variance between clusters is so flat that float32 sums would miss the optimum by a few values."""
    x = random(seed, n, dtype=torch.float32) * scale + shift
    wide = (x.double() - x.double().mean()) / scale
    ordered = wide.sort().values
    sums, squares, below = ordered.cumsum(0), ordered.square().cumsum(0), torch.arange(1, n)
    left = squares[:-1] - sums[:-1] ** 2 / below
    right = squares[-1] - squares[:-1] - (sums[-1] - sums[:-1]) ** 2 / (n - below)
    cut = int((left + right).argmin())
    assert torch.equal(two_means_1d(x)[0], wide > ordered[cut])


@given(NUMBERS, st.permutations(range(14)))
def test_two_means_ignores_the_order(values: list[float], order: list[int]) -> None:
    x = tensor(values)
    order = [i for i in order if i < len(values)]
    upper, centres = two_means_1d(x)
    shuffled, same = two_means_1d(x[order])
    assert torch.equal(shuffled, upper[order])
    assert torch.equal(same, centres)


@given(NUMBERS, st.integers(-20, 20), st.integers(-40, 40))
def test_two_means_follows_scale_and_shift(values: list[float], exponent: int, shift: int) -> None:
    x = tensor(values)
    upper, centres = two_means_1d(x)
    moved, moved_centres = two_means_1d((x + shift) * 2.0**exponent)
    assert torch.equal(moved, upper)
    torch.testing.assert_close(moved_centres, (centres + shift) * 2.0**exponent)


@given(NUMBERS, st.integers(0, 5), SEEDS)
def test_two_means_padding_is_a_shorter_row(values: list[float], padding: int, seed: int) -> None:
    x = tensor(values)
    length = len(values) + padding
    place = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[: len(values)]
    padded = random(seed, length) * 1000
    padded[place] = x
    valid = torch.zeros(length, dtype=torch.bool)
    valid[place] = True
    upper, centres = two_means_1d(padded, valid)
    alone, alone_centres = two_means_1d(x)
    assert torch.equal(upper[place], alone)
    assert not upper[~valid].any()
    assert torch.equal(centres, alone_centres)


def test_two_means_batch_is_a_loop() -> None:
    x, valid = random(0, 3, 4, 20), random(1, 3, 4, 20) > -0.5
    upper, centres = two_means_1d(x, valid)
    for i in range(3):
        for j in range(4):
            alone = two_means_1d(x[i, j], valid[i, j])
            assert torch.equal(upper[i, j], alone[0])
            assert torch.equal(centres[i, j], alone[1])


@given(st.integers(1, 9), st.floats(-1e6, 1e6, width=32))
def test_two_means_of_equal_values_is_one_upper_cluster(n: int, value: float) -> None:
    upper, centres = two_means_1d(torch.full((n,), value))
    assert upper.all()
    assert torch.equal(centres, torch.full((2,), value))


def test_two_means_ties_prefer_the_larger_upper_cluster() -> None:
    upper, centres = two_means_1d(torch.tensor([2.0, 0.0, 1.0]))
    assert upper.tolist() == [True, False, True]
    assert centres.tolist() == [0.0, 1.5]


def test_two_means_without_valid_entries() -> None:
    upper, centres = two_means_1d(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[False] * 2, [True] * 2]))
    assert upper.tolist() == [[False, False], [False, True]]
    assert centres.tolist() == [[0.0, 0.0], [3.0, 4.0]]


def test_two_means_of_neighbouring_floats() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    assert two_means_1d(torch.stack([high, low, high]))[0].tolist() == [True, False, True]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Points on a coarse grid, hence with ties and duplicates, and a number of clusters."""
    n, d = draw(st.integers(1, 15)), draw(st.integers(1, 3))
    points = draw(st.lists(st.lists(st.integers(-3, 3), min_size=d, max_size=d), min_size=n, max_size=n))
    return torch.tensor(points, dtype=torch.float64), draw(st.integers(1, n))


@settings(max_examples=60)
@given(problems())
def test_kmeans_cost_never_rises(problem: tuple[Tensor, int]) -> None:
    x, k = problem
    found = kmeans(x, k, iterations=12)
    assert (found.costs.diff() <= 1e-9).all()  # rounding of a dozen squares of at most 27


@settings(max_examples=60)
@given(problems())
def test_kmeans_ends_in_a_local_optimum(problem: tuple[Tensor, int]) -> None:
    x, k = problem
    found = kmeans(x, k)
    distances = torch.cdist(x, found.centres, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    own = distances.gather(1, found.labels[:, None])[:, 0]
    torch.testing.assert_close(own, distances.amin(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(own.sum(), found.cost)
    for label in found.labels.unique():
        torch.testing.assert_close(found.centres[label], x[found.labels == label].mean(0))
    # with as many distinct points as clusters, none stays empty
    assert len(found.labels.unique()) == min(k, len(x.unique(dim=0)))


@given(NUMBERS.filter(lambda values: len(values) > 1))
def test_kmeans_is_bounded_by_the_exact_solution(values: list[float]) -> None:
    x = tensor(values)
    assert kmeans(x[:, None], 2).cost >= cost(x, two_means_1d(x)[0]) - 1e-9


@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_kmeans_finds_separated_pairs(seed: int, few: int, many: int) -> None:
    x = torch.cat([random(seed, few).clamp(-3, 3), random(seed + 1, many).clamp(-3, 3) + 20])
    labels = kmeans(x[:, None], 2).labels
    assert torch.equal(labels == labels[-1], two_means_1d(x)[0])


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_kmeans_finds_separated_clusters(seed: int, k: int, d: int) -> None:
    truth = torch.arange(5 * k) % k
    x = random(seed, 5 * k, d).clamp(-2, 2)
    x[:, 0] += 50.0 * truth
    labels = kmeans(x, k).labels
    assert torch.equal(labels[:k][truth], labels)
    assert len(labels.unique()) == k


@given(SEEDS, st.integers(1, 5))
def test_kmeans_ignores_the_order(seed: int, k: int) -> None:
    x = random(seed, 20, 2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    found, shuffled = kmeans(x, k), kmeans(x[order], k)
    assert torch.equal(shuffled.labels, found.labels[order])
    torch.testing.assert_close(shuffled.centres, found.centres)


@given(SEEDS, st.integers(1, 5), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_kmeans_follows_scale_and_shift(seed: int, k: int, scale: float, shift: float) -> None:
    x = random(seed, 20, 2)
    found, moved = kmeans(x, k), kmeans(x * scale + shift, k)
    assert torch.equal(moved.labels, found.labels)
    # the shift of 1000 costs five digits of a spread of 0.01
    torch.testing.assert_close(moved.centres, found.centres * scale + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.cost, found.cost * scale**2, rtol=1e-6, atol=1e-12)


@settings(max_examples=60)
@given(problems(), st.integers(1, 5))
def test_kmeans_padding_is_a_shorter_input(problem: tuple[Tensor, int], padding: int) -> None:
    x, k = problem
    padded = torch.cat([x, random(0, padding, x.shape[1]) * 100])
    valid = torch.arange(len(padded)) < len(x)
    found, alone = kmeans(padded, k, valid=valid, iterations=10), kmeans(x, k, iterations=10)
    assert torch.equal(found.labels[valid], alone.labels)
    assert (found.labels[~valid] == -1).all()
    torch.testing.assert_close(found.centres, alone.centres)
    torch.testing.assert_close(found.costs, alone.costs)


def test_kmeans_batch_is_a_loop() -> None:
    x, valid = random(0, 2, 3, 12, 2), random(1, 2, 3, 12) > -1
    found = kmeans(x, 4, valid=valid, iterations=5)
    assert found.costs.shape == (5, 2, 3)
    for i in range(2):
        for j in range(3):
            alone = kmeans(x[i, j], 4, valid=valid[i, j], iterations=5)
            assert torch.equal(found.labels[i, j], alone.labels)
            torch.testing.assert_close(found.centres[i, j], alone.centres)
            torch.testing.assert_close(found.costs[:, i, j], alone.costs)


def test_kmeans_of_equal_points() -> None:
    found = kmeans(torch.full((6, 2), 3.0), 3)
    assert found.labels.tolist() == [0] * 6
    assert found.centres.tolist() == [[3.0, 3.0]] * 3
    assert found.cost == 0


def test_kmeans_fewer_valid_points_than_clusters() -> None:
    x = torch.tensor([[[1.0], [5.0], [9.0]]] * 3)
    found = kmeans(x, 3, valid=torch.tensor([[True, False, True], [False, True, False], [False] * 3]))
    assert found.labels[0, 0] != found.labels[0, 2]
    assert found.labels[0, 1] == -1
    assert (found.labels[2] == -1).all()
    assert found.cost.tolist() == [0, 0, 0]


def test_empty_clusters_move_to_the_farthest_points() -> None:
    """Tested on one update: after farthest-point seeding no run was found in which a cluster became empty."""
    points = torch.tensor([[0.0], [1], [2], [9], [5]])
    labels, distance = torch.tensor([1, 1, 1, 1, -1]), torch.tensor([1.0, 4, 4, 36, -1])
    centres = _update(points, labels, distance, 4)
    # cluster 1 has the mean 3; the others get points 3, 1 and 2: the first of equals, and no padding
    assert centres[:, 0].tolist() == [9, 3, 1, 2]


@pytest.mark.parametrize(
    ("k", "iterations", "message"),
    [(0, 5, r"k = 0 clusters of 3 points; choose 1\.\.3"), (4, 5, "k = 4"), (2, 0, "0 iterations")],
)
def test_kmeans_refusals(k: int, iterations: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kmeans(torch.zeros(3, 1), k, iterations=iterations)
