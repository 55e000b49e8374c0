"""Boxes between key frames: exact keys, no overshooting, and SciPy as the oracle of the smooth kind."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from anyi2v.tracks import Box, Point
from anyi2v.tracks.keyframes import EASES, INTERPOLATIONS, Ease, Interpolation, along, between, eased, pchip

KINDS = INTERPOLATIONS


@st.composite
def keys(draw: st.DrawFn) -> tuple[list[int], list[Box], int]:
    frames = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=6)))
    place, side = st.floats(-200, 300), st.floats(0.5, 200)
    boxes = []
    for _ in frames:
        x, y, w, h = draw(place), draw(place), draw(side), draw(side)
        boxes.append((x, y, x + w, y + h))
    return frames, boxes, frames[-1] + draw(st.integers(0, 5))


@pytest.mark.parametrize("kind", KINDS)
@given(keys())
def test_keys_are_exact_ends_stand_still_and_boxes_keep_an_area(
    kind: Interpolation, given: tuple[list[int], list[Box], int]
) -> None:
    frames, boxes, count = given
    out = between(frames, boxes, count, kind)
    assert len(out) == count
    assert [out[frame - 1] for frame in frames] == boxes
    assert set(out[: frames[0]]) == {boxes[0]} and set(out[frames[-1] - 1 :]) == {boxes[-1]}
    assert all(x1 > x0 and y1 > y0 for x0, y0, x1, y1 in out)


@pytest.mark.parametrize("kind", KINDS)
@given(keys())
def test_centres_and_sizes_stay_between_their_neighbouring_keys(
    kind: Interpolation, given: tuple[list[int], list[Box], int]
) -> None:
    frames, boxes, count = given

    def values(box: Box) -> np.ndarray:
        x0, y0, x1, y1 = box
        return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])

    out = [values(box) for box in between(frames, boxes, count, kind)]
    for (a, b), (start, end) in zip(pairwise(frames), pairwise(boxes), strict=True):
        low, high = np.minimum(values(start), values(end)), np.maximum(values(start), values(end))
        for k in range(a - 1, b):
            # a few float64 roundings at 500
            assert (out[k] >= low - 1e-9).all() and (out[k] <= high + 1e-9).all()


def test_linear_is_linear_and_smooth_slows_down_where_it_turns() -> None:
    boxes: list[Box] = [(0, 0, 10, 10), (40, 0, 50, 10), (0, 0, 10, 10)]
    assert [box[0] for box in between([1, 5, 9], boxes, 9)] == [0, 10, 20, 30, 40, 30, 20, 10, 0]
    smooth = [box[0] for box in between([1, 5, 9], boxes, 9, "smooth")]
    assert smooth == smooth[::-1]
    assert smooth[1] > 10 and smooth[4] - smooth[3] < 10


@given(
    st.lists(st.floats(0.1, 50), min_size=1, max_size=8),
    st.data(),
)
def test_smooth_equals_scipys_pchip(steps: list[float], data: st.DataObject) -> None:
    x = np.cumsum([0.0, *steps])
    y = np.array(data.draw(st.lists(st.floats(-300, 300), min_size=len(x), max_size=len(x))))[:, None]
    at = np.linspace(x[0], x[-1], 37)
    expected = PchipInterpolator(x, y)(at)
    # the same formula in another order: roundings at 300, enlarged by h * slope up to 500 * 3000 where keys are close
    np.testing.assert_allclose(pchip(x, y, at), expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("ease", EASES)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_eased_times_grow_and_keep_their_ends(ease: Ease, times: list[float]) -> None:
    t = eased(np.array([0, *sorted(times), 1.0]), ease)
    assert t[0] == 0 and t[-1] == 1
    assert (np.diff(t) >= -1e-15).all()  # a rounding


def test_eased_movements_are_slow_where_they_say() -> None:
    steps = {ease: np.diff(eased(np.linspace(0, 1, 9), ease)) for ease in EASES}
    assert (np.diff(steps["in"]) > 0).all() and (np.diff(steps["out"]) < 0).all()
    middle = steps["in-out"]
    assert (np.diff(middle[:4]) > 0).all() and np.allclose(middle, middle[::-1])
    np.testing.assert_allclose(steps["in"], steps["out"][::-1])


def test_between_keys_eases_from_key_to_key() -> None:
    boxes: list[Box] = [(0, 0, 10, 10), (40, 0, 50, 10), (0, 0, 10, 10)]
    moved = [box[0] for box in between([1, 5, 9], boxes, 9, "ease-in-out")]
    assert moved == pytest.approx([0, 6.25, 20, 33.75, 40, 33.75, 20, 6.25, 0])
    assert [box[0] for box in between([1, 5, 9], boxes, 9, "ease-in")][:5] == pytest.approx([0, 2.5, 10, 22.5, 40])


POINTS = st.lists(st.tuples(st.floats(-300, 300), st.floats(-300, 300)), min_size=2, max_size=8)


def walked(path: list[Point], share: float) -> Point:
    """Where someone is who walked this share of the polyline's length."""
    left = share * sum(math.dist(a, b) for a, b in pairwise(path))
    for a, b in pairwise(path):
        if left <= (length := math.dist(a, b)) and length:
            return a[0] + left / length * (b[0] - a[0]), a[1] + left / length * (b[1] - a[1])
        left -= length
    return path[-1]


@given(POINTS, st.integers(2, 30))
def test_constant_speed_covers_equal_lengths_and_keeps_the_ends(path: list[Point], count: int) -> None:
    out = along(path, count, constant=True)
    assert len(out) == count and out[0] == path[0] and out[-1] == path[-1]
    # roundings at lengths of a few thousand
    np.testing.assert_allclose(out, [walked(path, k / (count - 1)) for k in range(count)], atol=1e-8)


@given(POINTS, st.integers(2, 30), st.sampled_from(EASES))
def test_an_eased_path_covers_eased_lengths_and_keeps_the_ends(path: list[Point], count: int, ease: Ease) -> None:
    out = along(path, count, constant=True, ease=ease)
    assert out[0] == path[0] and out[-1] == path[-1]
    expected = [walked(path, share) for share in eased(np.linspace(0, 1, count), ease)]
    np.testing.assert_allclose(out, expected, atol=1e-8)


def test_paths_that_stand_still_or_have_one_point() -> None:
    assert along([(3, 4)], 4, constant=True) == ((3, 4),) * 4
    assert along([(3, 4), (3, 4)], 3, constant=True, ease="in") == ((3, 4),) * 3
    assert along([(0, 0), (1, 0), (3, 0)], 3) == ((0, 0), (1, 0), (3, 0))
