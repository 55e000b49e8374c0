from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.numerics.resize import bicubic_matrix, current_rows, reference_rows

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


@st.composite
def spans(draw: st.DrawFn, size: int, *, inside: bool = False) -> tuple[int, int]:
    """Half-open cells, possibly partly or wholly outside [0, size)."""
    start = draw(st.integers(0, size - 1) if inside else st.integers(-size, size + 3))
    return start, draw(st.integers(start + 1, size if inside else start + size + 3))


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_matrices_equal_interpolate(h: int, w: int, to_h: int, to_w: int, seed: int) -> None:
    x = feature(seed, h, w)
    assert_near(apply(bicubic_matrix(h, to_h), bicubic_matrix(w, to_w), x), resize(x, to_h, to_w))


@given(SIDES, SIDES)
def test_constants_stay(source: int, target: int) -> None:
    matrix = bicubic_matrix(source, target)
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


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, tuple[int, int], tuple[int, int], int]:
    """source, size, the box now, the first box, padding."""
    source, size = draw(SIDES), draw(st.integers(1, 24))
    return source, size, draw(spans(size)), draw(spans(size)), draw(st.integers(0, 3))


@given(boxes(), boxes(), SEEDS)
def test_current_crop_is_a_slice_of_the_enlarged_map(down, across, seed: int) -> None:
    x = feature(seed, down[0], across[0])
    enlarged = resize(x, down[1], across[1])
    (rows, in_y), (cols, in_x) = (
        current_rows(now[0], now[1], size, source, now[1] - now[0] + more)
        for source, size, now, _, more in (down, across)
    )
    crop = apply(rows, cols, x)
    for i in range(len(rows)):
        for j in range(len(cols)):
            y, x_ = down[2][0] + i, across[2][0] + j
            seen = 0 <= y < min(down[1], down[2][1]) and 0 <= x_ < min(across[1], across[2][1])
            assert bool(in_y[i] & in_x[j]) == seen
            expected = enlarged[y, x_] if seen else torch.zeros(2)
            assert_near(crop[i, j], expected)


@given(st.data(), SIDES, SIDES, SEEDS)
def test_reference_crop_is_two_interpolations(data: st.DataObject, h: int, w: int, seed: int) -> None:
    """Boxes inside the lattice: enlarge, slice the first box, resize the slice."""
    x, size = feature(seed, h, w), (2 * h, 2 * w)
    first, now = ([data.draw(spans(n, inside=True)) for n in size] for _ in range(2))
    crop = resize(x, *size)[slice(*first[0]), slice(*first[1])]
    expected = resize(crop, *(stop - start for start, stop in now))
    (rows, in_y), (cols, in_x) = (
        reference_rows(first[a], now[a], size[a], x.shape[a], now[a][1] - now[a][0]) for a in (0, 1)
    )
    assert in_y.all()
    assert in_x.all()
    assert_near(apply(rows, cols, x), expected)


@given(boxes())
def test_reference_outside_the_lattice(box) -> None:
    """Outside cells of the first box repeat the border before they are resized; what shows them is not valid."""
    source, size, now, first, more = box
    length = now[1] - now[0] + more
    rows, valid = reference_rows(first, now, size, source, length)
    cells = torch.arange(*first)
    slices = bicubic_matrix(source, size)[cells.clamp(0, size - 1)]
    resized = F.interpolate(slices.T[None, :, :, None], size=(now[1] - now[0], 1), mode="bicubic")[0, :, :, 0].T
    nearest = F.interpolate(cells[None, None].double(), size=now[1] - now[0], mode="nearest-exact").flatten()
    for i in range(length):
        seen = i < len(nearest) and 0 <= nearest[i] < size and 0 <= now[0] + i < size
        assert bool(valid[i]) == bool(seen)
        assert_near(rows[i], resized[i] if seen else torch.zeros(source))


@given(boxes())
def test_an_unmoved_box_is_its_own_reference(box) -> None:
    source, size, now, _, more = box
    length = now[1] - now[0] + more
    ours, theirs = reference_rows(now, now, size, source, length), current_rows(now[0], now[1], size, source, length)
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="resize 0 cells to 4"):
        bicubic_matrix(0, 4)
    with pytest.raises(InputError, match=r"cells 3 to 3 do not make 1\.\.5"):
        current_rows(3, 3, 8, 4, 5)
    with pytest.raises(InputError, match=r"cells 1 to 7 do not make 1\.\.5"):
        reference_rows((0, 2), (1, 7), 8, 4, 5)
    with pytest.raises(InputError, match="cells 2 to 2"):
        reference_rows((2, 2), (1, 3), 8, 4, 5)
