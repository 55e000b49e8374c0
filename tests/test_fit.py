import warnings
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.images.fit import Fit, Mode, border_colour, check_fit, fit_image, plan
from anyi2v.tracks import Box, Point, Track, Tracks

MODES = get_args(Mode)
sides = st.one_of(st.integers(1, 90), st.sampled_from([1, 2, 511, 512, 513, 1999, 4000]))
fits = st.builds(lambda w, h, a, b, mode: plan((w, h), a, b, mode), sides, sides, sides, sides, st.sampled_from(MODES))
places = st.lists(st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)), min_size=1, max_size=5)


def places_of(height: int, width: int) -> Tensor:
    """An image whose first two channels say where each pixel's centre is, from 0 to 1."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)])


@given(fits, places)
def test_back_is_the_inverse(fit: Fit, points: list[Point]) -> None:
    # relative to the largest coordinate that occurs on the way
    size = 1e4 * max(1, *fit.scale)
    for (x, y), (a, b) in zip(points, fit.back(fit.points(points)), strict=True):
        assert (a, b) == (pytest.approx(x, abs=1e-12 * size), pytest.approx(y, abs=1e-12 * size))
    for (x, y), (a, b) in zip(points, fit.points(fit.back(points)), strict=True):
        assert (a, b) == (pytest.approx(x, abs=1e-9 * size), pytest.approx(y, abs=1e-9 * size))


@given(fits)
def test_regions_lie_inside_and_map_onto_each_other(fit: Fit) -> None:
    for (x0, y0, x1, y1), (width, height) in ((fit.crop, fit.source), (fit.target, (fit.width, fit.height))):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
    assert fit.boxes([fit.crop])[0] == pytest.approx(fit.target, abs=1e-9)


@given(
    *(st.one_of(st.integers(1, 90), st.sampled_from([1, 511])) for _ in range(2)),
    *(st.sampled_from([8, 16, 24, 40, 64, 136]) for _ in range(2)),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(MODES),
)
def test_a_latent_cell_holds_what_the_map_says(
    w: int, h: int, width: int, height: int, factor: int, mode: Mode
) -> None:
    fitted, fit = fit_image(places_of(h, w), width, height, mode)
    found = F.avg_pool2d(fitted, factor)[:2] * torch.tensor([w, h])[:, None, None]  # pixels of the source
    x0, y0, x1, y1 = fit.target
    for j in range(0, height // factor):
        for i in range(0, width // factor):
            if not (x0 <= i * factor and (i + 1) * factor <= x1 and y0 <= j * factor and (j + 1) * factor <= y1):
                continue  # not wholly image
            expected = fit.back([((i + 0.5) * factor, (j + 0.5) * factor)])[0]
            for axis in (0, 1):
                # half a latent cell; but nothing is known more finely than half a pixel of the source
                allowed = max(factor, fit.scale[axis]) / 2 + 1e-3
                assert abs(float(found[axis, j, i]) - expected[axis]) * fit.scale[axis] <= allowed


@pytest.mark.parametrize("mode", ["crop", "pad"])
@given(sides, sides, sides, sides)
def test_crop_and_pad_keep_the_aspect_and_the_centre(mode: Mode, w: int, h: int, width: int, height: int) -> None:
    fit = plan((w, h), width, height, mode)
    parts, sizes = (fit.crop, fit.target), ((w, h), (width, height))
    (part, other), (whole, aspect) = (parts, sizes) if mode == "crop" else (parts[::-1], sizes[::-1])
    assert other == (0, 0, *aspect)
    across, down = part[2] - part[0], part[3] - part[1]
    # sides are rounded to whole pixels, and have at least one
    assert abs(across * aspect[1] - down * aspect[0]) <= max(aspect)
    assert across == whole[0] or down == whole[1]
    assert abs(part[0] + part[2] - whole[0]) <= 1
    assert abs(part[1] + part[3] - whole[1]) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_the_right_size_stays_as_it_is(mode: Mode) -> None:
    image = torch.rand(3, 8, 12)
    same, fit = fit_image(image, 12, 8, mode)
    assert torch.equal(same, image)
    assert fit.points([(1.25, 2)]) == fit.back([(1.25, 2)]) == ((1.25, 2),)
    assert fit.boxes([(1, 2, 3, 4)]) == ((1, 2, 3, 4),)


@pytest.mark.parametrize("mode", MODES)
@given(*(st.integers(1, 90) for _ in range(4)))
def test_values_stay_in_range(mode: Mode, w: int, h: int, width: int, height: int) -> None:
    image, fit = fit_image(torch.rand(3, h, w), width, height, mode)
    assert image.shape == (3, height, width) == (3, fit.height, fit.width)
    assert 0 <= image.min() <= image.max() <= 1


def test_boxes_move_with_the_pixels() -> None:
    image = torch.zeros(3, 100, 200)
    image[:, 25:50, 75:100] = 1
    expected = {"crop": (16, 16, 32, 32), "pad": (24, 24, 32, 32), "stretch": (24, 16, 32, 32)}
    for mode in MODES:
        small, fit = fit_image(image, 64, 64, mode)
        assert fit.boxes([(75, 25, 100, 50)]) == (expected[mode],)
        x0, y0, x1, y1 = expected[mode]
        assert (small[0, y0:y1, x0:x1] > 0.5).all()
        # the edges are smoothed
        assert small[0].sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.02)
    tracks = Tracks(100, 50, (Track("a", ((37.5, 12.5, 50, 25),), ((40, 20),)),))  # drawn at half size
    assert plan((200, 100), 64, 64).tracks(tracks) == Tracks(
        64, 64, (Track("a", ((16, 16, 32, 32),), ((19.2, 25.6),)),)
    )


def test_padding_has_the_colour_of_the_border() -> None:
    image = torch.full((3, 20, 40), 0.5)
    colour = torch.tensor([0.9, 0.8, 0.1])
    image[:, [0, -1]] = colour[:, None, None]
    image[:, :, [0, -1]] = colour[:, None, None]
    image[:, 0, 3:7] = 0  # a stroke that touches the border
    assert torch.equal(border_colour(image), colour)
    fitted, fit = fit_image(image, 40, 40, "pad")
    assert fit.target == (0, 10, 40, 30)
    assert torch.equal(fitted[:, 10:30], image)
    assert torch.equal(fitted[:, :10], colour[:, None, None].expand(3, 10, 40))
    assert torch.equal(fitted[:, 30:], colour[:, None, None].expand(3, 10, 40))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        # the crop keeps x from 50 to 150
        (((10, 0, 60, 40),), r"object 'a', frame 1: the crop keeps 20% of its box \(10, 0, 60, 40\).*--fit pad"),
        (((60, 0, 90, 40), (150, 0, 190, 40)), "object 'a', frame 2: the crop keeps 0% of its box"),
        (((30, 0, 70, 40),), None),  # half of it is kept
        (((60, 0, 90, 40), (170, 0, 240, 40), (300, 0, 340, 40)), "frame 2: the crop keeps 0% of its box"),
        (((60, 0, 90, 40), (300, 0, 340, 40)), None),  # it leaves the image itself
    ],
)
def test_boxes_that_the_crop_pushes_out_of_the_frame_are_named(boxes: tuple[Box, ...], message: str | None) -> None:
    tracks = Tracks(200, 100, (Track("a", boxes),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("pad", "stretch"):
            plan((200, 100), 64, 64, mode).tracks(tracks)
        if message is None:
            plan((200, 100), 64, 64).tracks(tracks)
    if message is not None:
        with pytest.warns(AnyI2VWarning, match=message) as caught:
            plan((200, 100), 64, 64).tracks(tracks)
        assert len(caught) == 1


def test_objects_that_are_cropped_away_are_an_error_but_padding_keeps_them() -> None:
    tracks = Tracks(200, 100, (Track("a", ((0, 0, 40, 40),)),))
    with pytest.raises(InputError, match=r"object 1 \('a'\), frame 1: .* lies outside"):
        plan((200, 100), 64, 64).tracks(tracks)
    for mode in ("pad", "stretch"):
        assert plan((200, 100), 64, 64, mode).tracks(tracks).objects


def test_the_text_says_what_was_done() -> None:
    assert str(plan((200, 100), 64, 64)) == "part (50, 0, 150, 100) of 200x100 px -> 64x64"
    assert str(plan((200, 100), 64, 64, "pad")) == "whole of 200x100 px -> (0, 16, 64, 48) of 64x64"


def test_sizes_and_modes_that_cannot_be() -> None:
    with pytest.raises(InputError, match="size 0x8"):
        plan((8, 8), 0, 8)
    with pytest.raises(InputError, match="fit 'squeeze' is not known; it must be one of crop, pad, stretch"):
        check_fit(8, 8, "squeeze")


def test_masks_go_with_the_pixels() -> None:
    mask = np.zeros((50, 100), dtype=bool)  # at half of the image's resolution
    mask[12:25, 37:50] = True
    fit = plan((200, 100), 25, 25)  # the middle 100 x 100 at a quarter
    placed = fit.tracks(Tracks(100, 50, (Track("a", ((37, 12, 50, 25),), mask=mask),))).objects[0]
    expected = np.zeros((25, 25), dtype=bool)
    expected[6:12, 6:12] = True
    assert placed.mask is not None and np.array_equal(placed.mask, expected)
    same = plan((100, 50), 100, 50)
    kept = same.tracks(Tracks(200, 100, (Track("a", ((70, 24, 100, 50),), mask=mask),))).objects[0].mask
    assert kept is not None and np.array_equal(kept, mask)
    # padded above and below, where nothing is set
    padded = plan((200, 100), 50, 50, "pad").mask(np.ones((50, 100), dtype=bool))
    assert padded[12:37].all() or padded[13:38].all()
    assert padded.sum() == 25 * 50


def test_masks_that_are_cropped_away_are_an_error() -> None:
    mask = np.zeros((100, 200), dtype=bool)
    mask[:, :40] = True
    with pytest.raises(InputError, match=r"object 1 \('a'\): the mask is empty inside the first box"):
        plan((200, 100), 64, 64).tracks(Tracks(200, 100, (Track("a", ((0, 0, 90, 90),), mask=mask),)))
