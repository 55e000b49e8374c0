"""Initial noise that is carried along the tracks."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.method.noise import carried
from anyi2v.tracks import Track, Tracks

from .networks import SHORT
from .test_pipeline import TWO, run

FRAMES, HEIGHT, WIDTH = 3, 6, 9
PIXELS = 4
"""Per latent cell."""


def noise() -> Tensor:
    """All values differ, so that each can be recognised."""
    return torch.arange(FRAMES * HEIGHT * WIDTH).view(1, FRAMES, 1, HEIGHT, WIDTH).float()


@st.composite
def boxes(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Of one object, on whole cells; it may leave the frame on any side."""
    x, y = draw(st.integers(-2, WIDTH - 1)), draw(st.integers(-2, HEIGHT - 1))
    w, h = draw(st.integers(max(1, 1 - x), WIDTH)), draw(st.integers(max(1, 1 - y), HEIGHT))
    steps = [(0, 0), *draw(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=2))]
    return [(x + dx, y + dy, x + dx + w, y + dy + h) for dx, dy in steps]


def tracks(cells: list[tuple[int, int, int, int]]) -> Tracks:
    moved = tuple((float(PIXELS * a), float(PIXELS * b), float(PIXELS * c), float(PIXELS * d)) for a, b, c, d in cells)
    return Tracks(PIXELS * WIDTH, PIXELS * HEIGHT, (Track("a", moved),))


def cell_by_cell(z: Tensor, cells: list[tuple[int, int, int, int]]) -> Tensor:
    out, (left, top, right, bottom) = z.clone(), cells[0]
    for f, box in enumerate(cells):
        dx, dy = box[0] - left, box[1] - top
        for y in range(HEIGHT):
            for x in range(WIDTH):
                old_x, old_y = x - dx, y - dy
                known = 0 <= old_x < WIDTH and 0 <= old_y < HEIGHT
                if known and left <= old_x < right and top <= old_y < bottom:
                    out[:, f, :, y, x] = z[:, 0, :, old_y, old_x]
    return out


@given(boxes())
def test_boxes_hold_the_noise_of_the_first_one(cells: list[tuple[int, int, int, int]]) -> None:
    z = noise()
    assert torch.equal(carried(z, tracks(cells)), cell_by_cell(z, cells))


@given(boxes())
def test_every_frame_stays_white(cells: list[tuple[int, int, int, int]]) -> None:
    """No number stands twice in a frame, and frame 1 is what it was."""
    z = noise()
    out = carried(z, tracks(cells))
    assert torch.equal(out[:, 0], z[:, 0])
    assert all(frame.unique().numel() == frame.numel() for frame in out[0])


def test_parts_of_cells_are_rounded_and_growth_is_not_followed() -> None:
    z = noise()
    boxes = ((8.0, 8.0, 16.0, 16.0), (9.9, 8.0, 17.9, 16.0), (6.2, 4.0, 22.2, 20.0))
    out = carried(z, Tracks(PIXELS * WIDTH, PIXELS * HEIGHT, (Track("a", boxes),)))
    assert torch.equal(out[0, 1, 0, 2:4, 2:4], z[0, 0, 0, 2:4, 2:4])  # 1.9 px are less than half a cell
    expected = z[0, 2].clone()
    expected[0, 2:4, 3:5] = z[0, 0, 0, 2:4, 2:4]  # centres 2.2 px apart; the corners of the larger box keep their own
    assert torch.equal(out[0, 2], expected)


def test_a_job_with_carried_noise_is_another_one_where_something_moves() -> None:
    config = replace(SHORT, optimise_steps=0)
    moving, carrying = run(TWO, config), run(TWO, replace(config, initial_noise="carried"))
    assert not torch.equal(moving.video, carrying.video)
    still = Tracks(16, 16)
    assert torch.equal(run(still, config).video, run(still, replace(config, initial_noise="carried")).video)
