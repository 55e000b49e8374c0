from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anyi2v.errors import InputError
from anyi2v.images.media import from_bytes, load_image, magnify
from anyi2v.method.config import MethodConfig
from anyi2v.reports.pen import COLOURS
from anyi2v.reports.plots import (
    contact_sheet,
    draw_tracks,
    loss_curve,
    magnification,
    mask_name,
    numbered,
    overlay_boxes,
    overlay_masks,
    side_by_side,
    stacked,
)
from anyi2v.tracks import Track, Tracks

FIRST, SECOND = (torch.tensor(colour).view(3, 1, 1) / 255 for colour in COLOURS[:2])
MOVING = Track("a", ((8, 8, 24, 24), (40, 24, 56, 56)), ((10, 10),))


def near(image: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Pixels of nearly this colour, `[h w]`."""
    return (image - colour).abs().amax(-3) < 0.05


@pytest.mark.parametrize(("size", "factor"), [(64, 4), (96, 3), (256, 1), (512, 1), (1, 256)])
def test_magnification_reaches_256(size: int, factor: int) -> None:
    assert magnification(size, size + 8) == magnification(size + 8, size) == factor


def test_boxes_are_drawn_where_they_are() -> None:
    grey = torch.full((3, 3, 64, 64), 0.5)
    video = overlay_boxes(grey, Tracks(64, 64, (MOVING,)))
    assert video.shape == (3, 3, 256, 256)
    for frame, (x0, y0, x1, y1) in zip(video, MOVING.resample(3).boxes, strict=True):
        x0, y0, x1, y1 = (round(4 * value) for value in (x0, y0, x1, y1))
        drawn = near(frame, FIRST)
        # upright lines at both sides, level lines above and below; rows and columns amid the box edges
        assert drawn[y0 + 20 : y1 - 20, x0 : x0 + 2].all()
        assert drawn[y0 + 20 : y1 - 20, x1 - 2 : x1].all()
        assert drawn[y0 : y0 + 2, x0 + 20 : x1 - 20].all()
        assert drawn[y1 - 2 : y1, x0 + 20 : x1 - 20].all()


def test_drawing_without_objects_changes_nothing() -> None:
    video = torch.randint(0, 256, (2, 3, 8, 8)) / 255
    assert torch.equal(draw_tracks(video[0], Tracks(8, 8)), magnify(video[0], 32))
    assert torch.equal(overlay_boxes(video, Tracks(8, 8), enlarge=2), magnify(video, 2))


def test_each_object_has_its_colour_and_points_follow() -> None:
    still = Track("b", ((0, 40, 20, 60),))
    video = overlay_boxes(torch.zeros(2, 3, 64, 64), Tracks(64, 64, (MOVING, still)))
    assert near(video[0], FIRST).any()
    assert near(video[0], SECOND).any()
    # the point at an eighth of the first box's sides is there at an eighth of the last one's
    assert near(video[0, :, 38:43, 38:43], FIRST).any()
    x, y = 4 * (40 + 16 / 8), 4 * (24 + 32 / 8)
    assert near(video[1, :, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2], FIRST).all()


def test_other_frames_of_reference_give_the_same_picture() -> None:
    video = torch.rand(2, 3, 32, 32)
    tracks = Tracks(64, 64, (MOVING,))
    assert torch.equal(overlay_boxes(video, tracks), overlay_boxes(video, tracks.scaled(512, 512)))


def test_masks_tint_only_inside() -> None:
    video = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, 2:4, 2:4] = True
    plain = overlay_masks(video, [], enlarge=1)
    tinted = overlay_masks(video, [mask], enlarge=1)
    assert torch.equal((tinted != plain).any(1), mask)
    half = overlay_masks(video, [0.5 * mask], enlarge=1)
    # half a mask tints half as much; float32 rounding
    assert torch.allclose(half - plain, (tinted - plain) / 2, atol=1e-6)
    assert torch.equal(plain[:, 0], plain[:, 1])
    assert overlay_masks(video, [mask]).shape == (2, 3, 256, 256)


def test_side_by_side_shows_condition_and_video() -> None:
    condition, video = torch.zeros(3, 64, 64), torch.full((3, 3, 64, 64), 0.5)
    both = side_by_side(condition, video, Tracks(64, 64, (MOVING,)))
    assert both.shape == (3, 3, 256, 520)
    assert torch.equal(both[..., 264:], overlay_boxes(video, Tracks(64, 64, (MOVING,))))
    assert (both[..., 256:264] == 1).all()
    assert torch.equal(both[0, ..., :256], both[2, ..., :256])
    assert (both[0, :, -1, 0] == 0).all()


def test_sheet_shows_every_frame_with_labels() -> None:
    colours = torch.rand(4, 3, 1, 1).mul(255).round() / 255
    sheet = from_bytes(contact_sheet({"one": colours[:1].expand(-1, -1, 8, 8), "all": colours.expand(-1, -1, 8, 8)}))
    for k, colour in enumerate(colours):
        assert (sheet == colour).all(0).sum() == 256 * 256 * (2 if k == 0 else 1)
    left = sheet[:, :, : sheet.shape[2] - 4 * 264]
    assert (left < 0.5).any()


def test_sheet_of_a_long_video_has_first_and_last_frame() -> None:
    video = (torch.arange(17) / 255).view(17, 1, 1, 1).expand(17, 3, 4, 4)
    picture = contact_sheet({"v": video}, columns=5, cell=16)
    shown = picture[-20, :, 0]
    assert sorted(set(shown.tolist()) - {255}) == [0, 4, 8, 12, 16]
    assert contact_sheet({"v": video}, columns=1, cell=16).shape[1] < picture.shape[1]


def test_large_frames_are_reduced() -> None:
    assert contact_sheet({"v": torch.rand(1, 3, 64, 128)}, cell=32).shape[0] < 80


@pytest.mark.parametrize(
    ("rows", "columns"), [({}, 8), ({"a": torch.rand(0, 3, 8, 8)}, 8), ({"a": torch.rand(1, 3, 8, 8)}, 0)]
)
def test_empty_sheets_are_refused(rows: dict[str, torch.Tensor], columns: int) -> None:
    with pytest.raises(InputError, match="a contact sheet needs"):
        contact_sheet(rows, columns=columns)


def test_loss_curve_draws_the_losses(tmp_path: Path) -> None:
    losses = [(step, k, 3.0 / (1 + step) - 0.1 * k) for step in range(3) for k in range(4)]
    loss_curve(losses, tmp_path / "a.png")
    loss_curve(losses, tmp_path / "b.png")
    loss_curve([], tmp_path / "empty.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - (31, 119, 180)).max(-1) < 8).sum() > 500  # the blue curve
    assert load_image(tmp_path / "empty.png").min() < 0.5


def test_a_picture_of_tracks_has_both_boxes_the_path_numbers_and_the_mask() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[1:3, 1:3] = True
    grey = torch.full((3, 64, 64), 0.5)
    plain = draw_tracks(grey, Tracks(64, 64, (MOVING,)))
    assert plain.shape == (3, 256, 256)
    for x, width in ((32, 3), (160, 1)):  # the first box has thick lines, the last one thin ones
        line = near(plain, FIRST)[50:80, x : x + 6] if x == 32 else near(plain, FIRST)[180:215, x : x + 6]
        assert (line.sum(1) == width).all()
    masked = draw_tracks(grey, Tracks(64, 64, (Track("a", MOVING.boxes, MOVING.points, mask),)))
    tinted = 0.6 * 0.5 + 0.4 * FIRST
    assert near(masked, tinted)[80:92, 44:56].any()
    assert not near(plain, tinted)[80:92, 44:56].any()
    assert torch.equal(draw_tracks(grey, Tracks(64, 64), enlarge=2), from_bytes(np.full((128, 128, 3), 128, np.uint8)))


def luminance(colours: torch.Tensor) -> torch.Tensor:
    """Relative luminance of sRGB colours `[3 *]` (WCAG 2.2)."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return torch.einsum("c,c...->...", torch.tensor([0.2126, 0.7152, 0.0722]), linear)


@settings(max_examples=25)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(0, len(COLOURS) - 1), st.booleans())
def test_lines_stand_out_from_any_background(background: tuple[int, int, int], number: int, still: bool) -> None:
    """The contrast with what lies behind is at least 3:1 at each point of a box and of a path, travelled or not."""
    flat = (torch.tensor(background).view(3, 1, 1) / 255).expand(3, 64, 64)
    objects = [Track(str(k), ((60, 60, 64, 64),)) for k in range(number)]
    boxes = ((8, 8, 24, 24),) if still else ((8, 8, 24, 24), (40, 8, 56, 24))
    tracks = Tracks(64, 64, (*objects, Track("a", boxes)))
    picture = draw_tracks(flat, tracks) if still else overlay_boxes(flat.expand(2, 3, 64, 64), tracks)[0]
    behind = luminance(flat[:, 0, 0]) + 0.05
    seen = luminance(picture) + 0.05
    contrast = torch.maximum(seen / behind, behind / seen)
    crossed = [contrast[50:60, 26:44], contrast[26:44, 50:60].T]  # the left and the upper side of the box
    if not still:
        crossed.append(contrast[54:74, 100:150].T)  # the path
    for lines in crossed:
        assert lines.amax(1).min() >= 3


def test_colours_of_objects_differ() -> None:
    colours = torch.tensor(COLOURS).float()
    assert torch.pdist(colours).min() > 75


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 1]), (5, [0, 1, 2, 3, 4]), (8, [0, 2, 4, 7]), (16, [0, 4, 8, 12, 15]), (17, [0, 4, 8, 12, 16])],
)
def test_frames_are_numbered_in_equal_steps(count: int, expected: list[int]) -> None:
    assert numbered(count) == expected


@given(st.integers(1, 300))
def test_numbered_frames_are_few_and_evenly_spaced(count: int) -> None:
    steps = np.diff(numbered(count))
    assert numbered(count)[0] == 0 and numbered(count)[-1] == count - 1
    assert len(steps) <= 5 and len(set(steps[:-1])) <= 1
    assert len(steps) < 2 or steps[0] / 2 <= steps[-1] < 1.5 * steps[0] + 1


@settings(max_examples=25)
@given(*[st.floats(-20, 60)] * 4, st.floats(5, 60))
def test_names_and_numbers_leave_the_middle_of_the_object_free(
    x: float, y: float, dx: float, dy: float, side: float
) -> None:
    """What is drawn in the middle half of the first box does not depend on the name or the number of frames."""
    boxes = ((x, y, x + side, y + side), (x + dx, y + dy, x + dx + side, y + dy + side))
    inside = x >= 0 and y >= 5 and max(x, y) + side <= 58  # there is room for a line of text above and below
    if not inside:
        return
    track = Track("a", boxes, ((x, y),))
    plain, named = (draw_tracks(torch.zeros(3, 64, 64), Tracks(64, 64, (replace(track, name=n),))) for n in ("i", "MW"))
    low, high = (round(4 * (v + side / 4)) for v in (0, side / 2))
    left, top = round(4 * x), round(4 * y)
    region = (..., slice(top + low, top + high), slice(left + low, left + high))
    assert torch.equal(plain[region], named[region])


@pytest.mark.parametrize(
    ("mask", "given_one", "expected"),
    [("dynamic", False, "mask"), ("static", True, "mask"), ("none", False, "whole box"), ("none", True, "given mask")],
)
def test_a_mask_that_is_the_whole_box_is_called_so(mask: str, given_one: bool, expected: str) -> None:
    pixels = np.ones((4, 4), dtype=bool) if given_one else None
    track = Track("a", MOVING.boxes, MOVING.points, pixels)
    assert mask_name(MethodConfig.from_dict({"mask": mask}), track) == expected


def test_pictures_beside_rows_and_titles_above_sheets() -> None:
    rows = {"a": torch.zeros(2, 3, 16, 16), "b": torch.zeros(2, 3, 16, 16)}
    plain = contact_sheet(rows, cell=32)
    bar = Image.new("RGB", (20, 32), "red")
    beside = contact_sheet(rows, cell=32, sides={"b": bar})
    assert np.array_equal(beside[:, : plain.shape[1]], plain)
    red = (beside == (255, 0, 0)).all(-1)
    assert red.sum() == 20 * 32
    assert red[-40:].sum() == red.sum()  # in the second row
    both = stacked({"one": plain, "two": beside})
    assert both.shape[1] == beside.shape[1]
    assert both.shape[0] > 2 * plain.shape[0]
    assert (both[: both.shape[0] // 2 - plain.shape[0]] < 128).any()  # the first title


def test_boxes_far_outside_and_of_a_hundredth_pixel_can_be_drawn() -> None:
    draw_tracks(torch.zeros(3, 64, 64), Tracks(64, 64, (Track("a", ((1, 1, 1.01, 1.01),)),)), enlarge=1)
    far = Tracks(64, 64, (Track("a", (MOVING.boxes[0], (1e300, -1e300, 2e300, 1e299))),))
    assert draw_tracks(torch.zeros(3, 64, 64), far).shape == (3, 256, 256)
    assert overlay_boxes(torch.zeros(3, 3, 64, 64), far).isfinite().all()


def test_columns_can_have_titles_instead_of_numbers() -> None:
    video = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    numbered = contact_sheet({"a": video[:3]}, cell=32)
    assert np.array_equal(contact_sheet({"a": video[:3]}, cell=32, heads=["1", "2", "3"]), numbered)
    titled = contact_sheet({"a": video[:3]}, cell=32, heads=["2", "5", "9"])
    assert titled.shape == numbered.shape
    assert not np.array_equal(titled, numbered)
    # titles leave no frame out
    heads = [str(2 * k) for k in range(10)]
    assert contact_sheet({"a": video}, cell=32, heads=heads).shape[1] > contact_sheet({"a": video}, cell=32).shape[1]
