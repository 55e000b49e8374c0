"""Boxes on the lattice and the matrices that cut them out, against slicing and F.interpolate."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.method.alignment import cut
from anyi2v.method.boxes import make_crops
from anyi2v.method.crops import Crops, paste, visible
from anyi2v.tracks import Track, Tracks

WIDTH, HEIGHT = 48, 32
LATTICE = (16, 24)  # down, across: 2 pixels a cell
A_BOX = (5.0, 6.0, 21.0, 17.0)


def boxes_inside_first(frames: int = 3) -> st.SearchStrategy[tuple[tuple[float, float, float, float], ...]]:
    """Boxes of any size that lie inside the image in frame 1 and anywhere near it later."""

    def make(values: tuple[int, ...]) -> tuple[tuple[float, float, float, float], ...]:
        w, h, x, y, *moves = values
        first = (min(x, WIDTH - w), min(y, HEIGHT - h))
        out = [(first[0], first[1], first[0] + w, first[1] + h)]
        for dx, dy, grow in zip(moves[::3], moves[1::3], moves[2::3], strict=True):
            out.append((first[0] + dx, first[1] + dy, first[0] + dx + w + grow, first[1] + dy + h + grow))
        return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in out)

    move = (st.integers(-40, 40), st.integers(-30, 30), st.integers(-2, 12))
    return st.tuples(
        st.integers(4, 20), st.integers(4, 20), st.integers(0, 44), st.integers(0, 28), *(move * (frames - 1))
    ).map(make)


def crops_of(*boxes: tuple[tuple[float, float, float, float], ...], lattice: tuple[int, int] = LATTICE) -> Crops:
    objects = tuple(Track(f"object {i}", b) for i, b in enumerate(boxes))
    return make_crops(Tracks(WIDTH, HEIGHT, objects), lattice, len(boxes[0]))


def upsampled(x: Tensor, lattice: tuple[int, int] = LATTICE) -> Tensor:
    """`f h w c` to the lattice."""
    return F.interpolate(x.movedim(-1, 1), size=lattice, mode="bicubic").movedim(1, -1)


@settings(max_examples=60, deadline=None)
@given(boxes_inside_first(), boxes_inside_first())
def test_crops_are_slices_of_the_upsampled_map(a: tuple, b: tuple) -> None:
    x = torch.randn(3, 8, 12, 5, generator=torch.Generator().manual_seed(0))
    crops, whole = crops_of(a, b), upsampled(x)
    out = cut(x, crops.maps(8, 12).now)
    for o, boxes in enumerate(crops.boxes):
        for f, (rows, cols) in enumerate(boxes):
            (top, bottom), (left, right) = visible(rows, 16), visible(cols, 24)
            expected = whole[f, top:bottom, left:right]
            # float32, sums of at most 16 products of order one
            torch.testing.assert_close(out[o, f, : bottom - top, : right - left], expected, rtol=1e-5, atol=1e-5)
            assert crops.valid[o, f].sum() == expected[..., 0].numel()
            assert not out[o, f][~crops.valid[o, f]].any()


@settings(max_examples=60, deadline=None)
@given(boxes_inside_first())
def test_reference_is_frame_1s_crop_resized_and_clipped_like_the_box(a: tuple) -> None:
    x = torch.randn(1, 8, 12, 5, generator=torch.Generator().manual_seed(0))
    crops = crops_of(a)
    out = cut(x.expand(3, -1, -1, -1), crops.maps(8, 12).first)
    (rows, cols) = crops.boxes[0][0]
    start = upsampled(x)[0, slice(*rows), slice(*cols)].movedim(-1, 0)[None]
    for f, (r, c) in enumerate(crops.boxes[0]):
        resized = F.interpolate(start, size=(r[1] - r[0], c[1] - c[0]), mode="bicubic")[0].movedim(0, -1)
        (top, bottom), (left, right) = visible(r, 16), visible(c, 24)
        expected = resized[top - r[0] : bottom - r[0], left - c[0] : right - c[0]]
        torch.testing.assert_close(out[0, f, : bottom - top, : right - left], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(boxes_inside_first())
def test_paste_puts_crops_back(a: tuple) -> None:
    whole = torch.randn(3, *LATTICE, 1, generator=torch.Generator().manual_seed(0))
    crops = crops_of(a)
    back = paste(cut(whole, crops.maps(*LATTICE).now)[..., 0], crops)
    for f, (rows, cols) in enumerate(crops.boxes[0]):
        mask = torch.zeros(LATTICE, dtype=torch.bool)
        mask[slice(*visible(rows, 16)), slice(*visible(cols, 24))] = True
        torch.testing.assert_close(back[0, f], whole[f, ..., 0] * mask, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(boxes_inside_first(), st.integers(2, 5))
def test_scaling_tracks_and_image_together_changes_nothing(a: tuple, factor: int) -> None:
    tracks = Tracks(WIDTH, HEIGHT, (Track("a", a),))
    scaled = make_crops(tracks.scaled(factor * WIDTH, factor * HEIGHT), LATTICE, 3)
    assert scaled.boxes == make_crops(tracks, LATTICE, 3).boxes


def test_a_box_has_at_least_one_cell() -> None:
    crops = crops_of(((10.1, 10.1, 10.4, 10.4), (11.0, 11.0, 11.2, 11.2)))
    assert crops.boxes[0][0] == ((5, 6), (5, 6))
    assert crops.valid.shape == (1, 2, 1, 1)


def test_worked_example_with_negative_coordinates() -> None:
    """2 px a cell: (-3, 2, 9, 11) covers columns floor(-1.5)..4 and rows 1..5."""
    crops = crops_of(((0.0, 2.0, 12.0, 11.0), (-3.0, 2.0, 9.0, 11.0)))
    assert crops.boxes[0][1] == ((1, 5), (-2, 4))
    assert crops.valid[0, 1].sum() == 4 * 4
    # columns 0..3 of frame 2's crop are cells 2..5 of a box that begins two cells outside
    assert crops.first_cell[1][0, 1].tolist()[:4] == [2, 3, 4, 5]


CELLS = st.sampled_from([1, 2, 4, 8])


@given(st.lists(st.floats(-60, 100), min_size=2, max_size=2, unique=True), CELLS, CELLS)
def test_boxes_are_rounded_down_to_cells(edges: list[float], down: int, across: int) -> None:
    """Towards minus infinity at both ends, so that boxes side by side neither overlap nor leave a gap."""
    low, high = sorted(edges)
    assume(high - low > 0.01)
    track = Track("a", ((0.0, 0.0, 24.0, 24.0), (low, low, high, high)))
    crops = make_crops(Tracks(48, 24, (track,)), (24 // down, 48 // across), 2)
    for span, cell in zip(crops.boxes[0][1], (down, across), strict=True):
        # cells are powers of two, so the quotients are exact
        start = math.floor(low / cell)
        assert span == (start, max(math.floor(high / cell), start + 1))


def test_what_was_outside_in_frame_1_has_no_counterpart() -> None:
    crops = crops_of(((-8.0, 0.0, 8.0, 8.0), (8.0, 0.0, 24.0, 8.0)))
    # the box is 8 cells wide; its left four were outside in frame 1
    assert crops.first_cell[1][0, 1].tolist() == [-1, -1, -1, -1, 0, 1, 2, 3]
    crops = crops_of(((40.0, 0.0, 56.0, 8.0), (8.0, 0.0, 24.0, 8.0)))
    assert crops.first_cell[1][0, 1].tolist() == [0, 1, 2, 3, -1, -1, -1, -1]


def test_a_box_that_left_the_image_is_empty() -> None:
    crops = crops_of(((0.0, 0.0, 8.0, 8.0), (100.0, 0.0, 108.0, 8.0)))
    assert crops.valid[0, 0].all()
    assert not crops.valid[0, 1].any()


def test_stretch_resizes_what_is_visible_to_the_whole_box() -> None:
    tracks = Tracks(WIDTH, HEIGHT, (Track("a", ((40.0, 0.0, 56.0, 8.0), (0.0, 0.0, 16.0, 8.0))),))
    x = torch.randn(2, *LATTICE, 3, generator=torch.Generator().manual_seed(0))
    crops = make_crops(tracks, LATTICE, 2, first_box="stretch")
    out = cut(x[:1].expand(2, -1, -1, -1), crops.maps(*LATTICE).first)[0, 1]
    seen = x[0, 0:4, 20:24].movedim(-1, 0)[None]
    expected = F.interpolate(seen, size=(4, 8), mode="bicubic")[0].movedim(0, -1)
    torch.testing.assert_close(out[:4, :8], expected, rtol=1e-5, atol=1e-5)


def test_no_points_is_the_centre_of_the_box() -> None:
    box = (10.0, 6.0, 22.0, 14.0)
    plain = make_crops(Tracks(WIDTH, HEIGHT, (Track("a", (box,)),)), LATTICE, 1)
    centred = make_crops(Tracks(WIDTH, HEIGHT, (Track("a", (box,), ((16.0, 10.0),)),)), LATTICE, 1)
    for ours, theirs in zip(plain.points, centred.points, strict=True):
        assert torch.equal(ours, theirs)


def test_points_are_rounded_down_to_cells_of_the_lattice() -> None:
    """2 px a cell. The far corner of the image belongs to its last cell; missing points repeat the first."""
    whole = Track("a", ((0.0, 0.0, 48.0, 32.0),), ((3.0, 7.9), (48.0, 32.0), (0.0, 0.0)))
    single = Track("b", ((4.0, 6.0, 20.0, 30.0),), ((7.9, 11.0),))
    crops = make_crops(Tracks(WIDTH, HEIGHT, (whole, single)), LATTICE, 1)
    assert [rows.tolist() for rows in crops.points] == [[[3, 15, 0], [5, 5, 5]], [[1, 23, 0], [3, 3, 3]]]
    # distances from the corner are rounded as distances: 3.9 px are one cell
    assert [rows.tolist() for rows in crops.offsets] == [[[3, 15, 0], [2, 2, 2]], [[1, 23, 0], [1, 1, 1]]]


def test_messages() -> None:
    with pytest.raises(InputError, match="no objects"):
        make_crops(Tracks(WIDTH, HEIGHT), LATTICE, 3)
    with pytest.raises(InputError, match="'a' has 1 boxes for 3 frames"):
        make_crops(Tracks(WIDTH, HEIGHT, (Track("a", ((0.0, 0.0, 8.0, 8.0),)),)), LATTICE, 3)


@pytest.mark.parametrize("first_box", ["clip", "stretch"])
@pytest.mark.parametrize("box", [(-9.0, 4.0, 1.9, 9.0), (4.0, -9.0, 9.0, 1.9)])
def test_less_than_a_cell_in_frame_1_is_refused(
    first_box: Literal["clip", "stretch"], box: tuple[float, float, float, float]
) -> None:
    """The edge at 1.9 pixels is rounded down to cell 0: nothing is left to follow."""
    tracks = Tracks(WIDTH, HEIGHT, (Track("a", (A_BOX,)), Track("b", (box,))))
    with pytest.raises(InputError, match=r"'b' is barely visible in frame 1.*one cell of 2 x 2 pixels"):
        make_crops(tracks, LATTICE, 1, first_box=first_box)
    further = tuple(2.0 if value == 1.9 else value for value in box)
    tracks = Tracks(WIDTH, HEIGHT, (Track("b", (further,)),))  # type: ignore[arg-type]
    assert make_crops(tracks, LATTICE, 1, first_box=first_box).valid.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 24), (16, 9)])
def test_maps_of_any_resolution_are_cut(size: tuple[int, int]) -> None:
    """Coarse maps need not divide the lattice, as with latents of odd sizes."""
    x = torch.randn(1, *size, 2, generator=torch.Generator().manual_seed(0))
    crops = crops_of((A_BOX,))
    (rows, cols) = crops.boxes[0][0]
    expected = upsampled(x)[0, slice(*rows), slice(*cols)]
    torch.testing.assert_close(cut(x, crops.maps(*size).now)[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_matrices_are_made_once() -> None:
    crops = crops_of((A_BOX,))
    assert crops.maps(3, 5) is crops.maps(3, 5)
    assert crops.maps(5, 3) is not crops.maps(3, 5)


def test_crops_move_to_a_device_as_a_whole() -> None:
    here = crops_of((A_BOX,))
    here.maps(4, 6)
    crops = here.to(torch.device("meta"))
    tensors = (crops.valid, *crops.first_cell, *crops.points, *crops.offsets)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    maps = crops.maps(4, 6)
    assert all(tensor.device.type == "meta" for pair in (maps.now, maps.first, maps.points) for tensor in pair)


def test_huge_boxes_are_refused_instead_of_filling_the_memory() -> None:
    tracks = Tracks(64, 64, (Track("a", ((0.0, 0.0, 9.0, 9.0), (-1e300, 0.0, 1e300, 9.0))),))
    with pytest.raises(InputError, match=r"object 'a', frame 2: box .* more than 64 times as large as the frame"):
        make_crops(tracks, (16, 16), 2)


MASKED = np.zeros((8, 8), dtype=bool)
MASKED[2:6, 1:4] = True


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(bool, (32, 32)), st.integers(0, 20), st.integers(0, 20), st.integers(1, 12), st.integers(1, 12))
def test_a_mask_of_the_lattices_resolution_is_cut_exactly(mask: np.ndarray, x: int, y: int, w: int, h: int) -> None:
    mask[y, x] = True
    track = Track("a", ((x, y, x + w, y + h), (x + 3, y, x + w + 9, y + h)), mask=mask)
    crops = make_crops(Tracks(32, 32, (track,)), (32, 32), 2)
    assert crops.has_given.tolist() == [True]
    assert crops.given.shape == (1, *crops.valid.shape[2:])
    assert np.array_equal(crops.given[0, :h, :w].numpy(), mask[y : y + h, x : x + w])
    assert crops.given.sum() == mask[y : y + h, x : x + w].sum()


def test_masks_of_other_resolutions_count_where_half_a_cell_is_set() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[4:12, 3:9] = True  # the 4 x 4 cells' columns: 1/4 of cell 0, all of 1, 1/4 of 2
    mask[12:14, 8:12] = True  # half of the cell in row 3, column 2
    crops = make_crops(Tracks(64, 64, (Track("a", ((0, 0, 64, 64),), mask=mask),)), (8, 8), 1)
    assert [tuple(cell) for cell in crops.given[0].nonzero().tolist()] == [(1, 1), (2, 1), (3, 2)]


def test_objects_too_thin_for_half_a_cell_keep_the_cells_they_cover_most() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[:, 5] = True
    mask[0, :] = True
    crops = make_crops(Tracks(64, 64, (Track("a", ((0, 8, 64, 64),), mask=mask),)), (8, 8), 1)
    assert crops.given[0, :7, 1].all() and crops.given.sum() == 7


def test_objects_without_a_mask_have_none() -> None:
    tracks = Tracks(8, 8, (Track("a", ((0, 0, 4, 8),)), Track("b", ((0, 0, 4, 6),), mask=MASKED)))
    crops = make_crops(tracks, (8, 8), 1)
    assert crops.has_given.tolist() == [False, True]
    assert not crops.given[0].any()
    assert np.array_equal(crops.given[1, :6].numpy(), MASKED[:6, :4])


def test_a_mask_cut_away_by_rounding_names_the_object() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[:, 9] = True
    with pytest.raises(InputError, match=r"object 'a': its mask is empty inside frame 1's box"):
        make_crops(Tracks(64, 64, (Track("a", ((0, 0, 9.9, 64),), mask=mask),)), (8, 8), 1)
