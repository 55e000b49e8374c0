"""Objects of generated videos with known motion are located; what cannot be seen is never located."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.numerics.template_matching import LEAST_CONTRAST, SCALES, locate, peak_offset

Box = tuple[float, float, float, float]
SIDE = 48
SCALE_STEP = SCALES[1] / SCALES[0]


def disc(x: float, y: float, radius: float, *, texture: float = 0.0) -> Tensor:
    """A red disc of a radius, around (x, y) at any fraction of a pixel, over a background with a texture."""
    ys, xs = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    shade = 0.4 + texture * torch.sin(xs / 2) * torch.sin(ys / 3)
    covered = (radius + 0.5 - torch.hypot(xs - x, ys - y)).clamp(0, 1)
    return torch.stack([shade * (1 - covered) + value * covered for value in (0.9, 0.2, 0.1)])


def around(x: float, y: float, radius: float) -> Box:
    return (x - radius, y - radius, x + radius, y + radius)


place = st.floats(12, 36)


@settings(max_examples=25)
@given(
    path=st.lists(st.tuples(place, place), min_size=2, max_size=5),
    growth=st.lists(st.floats(1 / SCALE_STEP, SCALE_STEP), min_size=4, max_size=4),
    texture=st.floats(0, 0.15),
)
def test_a_disc_is_located_at_any_place_and_size(
    path: list[tuple[float, float]], growth: list[float], texture: float
) -> None:
    # what `SCALES` allows: at most one step from one frame to the next, and four in all
    radii = list(accumulate(growth, lambda radius, factor: min(max(radius * factor, 6.0), 10.5), initial=8.0))
    video = torch.stack([disc(x, y, r, texture=texture) for (x, y), r in zip(path, radii, strict=False)])
    found = locate(video, around(*path[0], 8))
    assert found.found.all()
    # of 600 random videos: median .10, worst .74 of a pixel, for a size between two scales over a texture
    assert (found.centres - torch.tensor(path)).norm(dim=-1).max() < 1
    assert found.centres[0].tolist() == pytest.approx(path[0])
    again = locate(video, around(*path[0], 8))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@settings(max_examples=10)
@given(step=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), factor=st.sampled_from([2, 5]))
def test_large_videos_are_reduced(step: tuple[float, float], factor: int) -> None:
    video = torch.stack([disc(24 + k * step[0], 24 + k * step[1], 7) for k in range(3)])
    large = video.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    box = around(24 * factor, 24 * factor, 7 * factor)
    small, found = locate(video, around(24, 24, 7)), locate(large, box)
    assert found.found.all()
    assert (found.centres / factor - small.centres).abs().max() < 0.3


def test_a_box_that_is_off_centre_keeps_its_offset() -> None:
    video = torch.stack([disc(18 + 2 * k, 24, 7) for k in range(4)])
    found = locate(video, (8.3, 13.0, 27.3, 32.0))
    assert (found.centres[:, 0] - torch.tensor([17.8 + 2 * k for k in range(4)])).abs().max() < 0.1


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_an_object_that_vanishes_is_not_found_and_keeps_its_last_place(noise: float) -> None:
    empty = disc(-50, -50, 1).repeat(3, 1, 1, 1)
    video = torch.cat([torch.stack([disc(18, 24, 7), disc(21, 24, 7)]), empty])
    video = (video + noise * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found = locate(video, around(18, 24, 7))
    assert found.found.tolist() == [True, True, False, False, False]
    assert (found.centres[2:] == found.centres[1]).all()


def test_an_object_that_comes_back_is_found_again_but_not_one_of_another_colour() -> None:
    frames = [disc(18, 24, 7), disc(-50, -50, 1), disc(26, 24, 7)]
    found = locate(torch.stack([*frames, disc(30, 24, 7).flip(0)]), around(18, 24, 7))
    assert found.found.tolist() == [True, False, True, False]
    assert found.centres[2].tolist() == pytest.approx([26, 24], abs=0.2)


def test_an_object_that_the_border_cuts_is_located_while_its_centre_is_inside() -> None:
    xs = [36, 40, 44, 47, 53, 60]
    found = locate(torch.stack([disc(x, 24, 8) for x in xs]), around(36, 24, 8))
    assert found.found.tolist() == [True, True, True, True, False, False]
    assert (found.centres[:4, 0] - torch.tensor(xs[:4])).abs().max() < 0.5


def test_a_faint_copy_and_one_in_another_light_are_not_the_object() -> None:
    """The faint copy's box is much larger than the disc, so that its mean hardly depends on the disc."""
    frame, empty = disc(24, 24, 5), disc(-50, -50, 1)
    faint, light = empty + 0.15 * (frame - empty), (frame + 0.3) / 1.3
    for first, other, half in ((frame, faint, 11), (frame / 1.3, light, 6)):
        found = locate(torch.stack([first, first, other]), around(24, 24, half)).found
        assert found.tolist() == [True, True, False]


def test_the_nearer_of_two_equal_objects_is_the_same_one() -> None:
    frames = [torch.minimum(disc(14 + k, 14, 6), disc(34 - k, 34, 6)) for k in range(5)]
    for x, y, step in ((14, 14, 1), (34, 34, -1)):
        found = locate(torch.stack(frames), around(x, y, 6))
        assert found.found.all()
        wanted = torch.tensor([(x + k * step, y + 0.0) for k in range(5)])
        assert (found.centres - wanted).abs().max() < 0.3


def test_a_square_that_fills_its_box_has_an_outline_and_a_flat_picture_has_none() -> None:
    video = torch.full((3, 3, SIDE, SIDE), 0.3)
    assert not locate(video, (10, 10, 20, 20)).found.any()
    for k in range(3):
        video[k, 0, 10:20, 10 + 4 * k : 20 + 4 * k] = 0.9
    found = locate(video, (10, 10, 20, 20))
    assert found.found.all() and found.centres[:, 0].tolist() == pytest.approx([15, 19, 23], abs=0.05)
    faint = 0.3 + 0.02 * (video - 0.3)
    assert LEAST_CONTRAST > 0.02 and not locate(faint, (10, 10, 20, 20)).found.any()


def test_a_mask_says_which_of_two_parts_is_the_object() -> None:
    """A disc and a bar in one box part; without a mask the larger one, with a mask the one in it."""
    frames = []
    for k in range(4):
        frame = disc(20 + 2 * k, 18, 6)
        frame[:, 27:33, 10:30] = 0.95
        frames.append(frame)
    box, rows = (8.0, 10.0, 32.0, 34.0), torch.arange(SIDE)[:, None].expand(SIDE, SIDE)
    moved = [locate(torch.stack(frames), box, mask).centres[-1, 0] - 20 for mask in (rows < 26, rows >= 26)]
    assert moved[0] > 4 and abs(moved[1]) < 1


def test_boxes_of_any_size_are_answered() -> None:
    video = torch.stack([disc(20 + k, 24, 7) for k in range(3)])
    for box in ((-40, -40, 90, 90), (0, 0, 48, 48), (20.1, 24.2, 20.3, 24.3), (-30, 20, 0.01, 30), (47.9, -9, 99, 9)):
        found = locate(video, box)
        assert found.centres.isfinite().all()
        assert found.centres[0].tolist() == pytest.approx([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


@given(st.floats(-5, 5), st.floats(-0.5, 0.5), st.floats(0.01, 9))
def test_the_maximum_of_a_parabola_is_exact(level: float, at: float, curve: float) -> None:
    assert peak_offset(*(level - curve * (x - at) ** 2 for x in (-1, 0, 1))) == pytest.approx(at, abs=1e-6)


def test_what_is_no_maximum_has_no_offset() -> None:
    assert peak_offset(1, 1, 1) == peak_offset(2, 1, 2) == peak_offset(-torch.inf, 1, 0) == 0
    assert peak_offset(0, 1, 5) == 0
