from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.numerics.resize import bicubic_matrix, bilinear_matrix

# float32 weights multiplied in another order: 16 products of values up to 4, after up to two resamplings.
assert_near = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
SIDES = st.integers(1, 20)
SEEDS = st.integers(0, 9999)


def feature(seed: int, h: int, w: int, c: int = 2) -> Tensor:
    return torch.randn(h, w, c, generator=torch.Generator().manual_seed(seed))


def resize(x: Tensor, h: int, w: int) -> Tensor:
    """The library's own bicubic resampling of [h w c]."""
    return F.interpolate(x.movedim(-1, 0)[None], size=(h, w), mode="bicubic")[0].movedim(0, -1)


def apply(rows: Tensor, cols: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("yh,xw,hwc->yxc", rows, cols, x)


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_matrices_equal_interpolate(h: int, w: int, to_h: int, to_w: int, seed: int) -> None:
    x = feature(seed, h, w)
    assert_near(apply(bicubic_matrix(h, to_h), bicubic_matrix(w, to_w), x), resize(x, to_h, to_w))


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_bilinear_matrices_equal_interpolate(h: int, w: int, to_h: int, to_w: int, seed: int) -> None:
    x = feature(seed, h, w)
    expected = F.interpolate(x.movedim(-1, 0)[None], size=(to_h, to_w), mode="bilinear")[0].movedim(0, -1)
    assert_near(apply(bilinear_matrix(h, to_h), bilinear_matrix(w, to_w), x), expected)


@pytest.mark.parametrize("make", [bicubic_matrix, bilinear_matrix])
@given(source=SIDES, target=SIDES)
def test_constants_stay(make: Callable[[int, int], Tensor], source: int, target: int) -> None:
    matrix = make(source, target)
    assert matrix.shape == (target, source)
    torch.testing.assert_close(matrix.sum(1), torch.ones(target))


@given(SIDES)
def test_equal_size_is_the_identity(size: int) -> None:
    assert torch.equal(bicubic_matrix(size, size), torch.eye(size))


@given(SIDES, SIDES)
def test_mirror_symmetry(source: int, target: int) -> None:
    matrix = bicubic_matrix(source, target)
    assert_near(matrix.flip(0, 1), matrix)


def test_doubling_by_hand() -> None:
    """Keys' kernel with a = -0.75 at the distances 1.25, 0.25, 0.75 and 1.75 of an inner cell."""
    weights = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    torch.testing.assert_close(bicubic_matrix(6, 12)[5, 1:5], torch.tensor(weights))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="resize 0 cells to 4"):
        bicubic_matrix(0, 4)
