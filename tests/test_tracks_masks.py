"""Masks: image files, run lengths, boxes around them, their way through cropping."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from anyi2v.errors import InputError
from anyi2v.tracks.masks import bounding_box, cropped, decode, encode, inside, middle, read_mask

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
SEEN = MASKS.filter(lambda mask: mask.any())


@given(MASKS)
def test_run_lengths_come_back(mask: np.ndarray) -> None:
    data = json.loads(json.dumps(encode(mask)))
    assert np.array_equal(decode(data, "mask"), mask)
    assert sum(data["counts"]) == mask.size


def test_run_lengths_are_cocos() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert encode(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert encode(~mask) == {"size": [2, 3], "counts": [0, 2, 3, 1]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "mask must be an object {...}, not 3"),
        ({"size": [2, 2]}, "mask: key 'counts' is missing"),
        ({"size": [2], "counts": [4]}, "mask: size is [2]; it must be [height, width]"),
        ({"size": [2, 0], "counts": []}, "mask: size is [2, 0]"),
        ({"size": [2, True], "counts": [2]}, "mask: size is [2, True]"),
        ({"size": [2**26, 2], "counts": [2**27]}, "a mask may have 67108864 pixels"),
        ({"size": [2, 2], "counts": [1, 2]}, "mask: counts must be whole numbers from 0 that add up to"),
        ({"size": [2, 2], "counts": [5, -1]}, "mask: counts must be"),
        ({"size": [2, 2], "counts": [2.0, 2]}, "mask: counts must be"),
        ({"size": [2, 2], "counts": [4], "count": 1}, "key 'count' is not known here; the closest are counts, size"),
    ],
)
def test_broken_run_lengths(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        decode(data, "mask")


@given(SEEN, st.integers(1, 500), st.integers(1, 500))
def test_the_bounding_box_holds_the_mask_and_is_tight(mask: np.ndarray, width: int, height: int) -> None:
    box = bounding_box(mask, width, height)
    # a thousandth of a pixel less on any side loses something
    x, y = width / mask.shape[1], height / mask.shape[0]
    grown = (box[0] - 1e-3 * x, box[1] - 1e-3 * y, box[2] + 1e-3 * x, box[3] + 1e-3 * y)
    assert np.array_equal(inside(mask, grown, width, height), mask)
    for side, change in ((0, x), (1, y), (2, -x), (3, -y)):
        less = list(box)
        less[side] += change * 1.001
        assert inside(mask, (less[0], less[1], less[2], less[3]), width, height).sum() < mask.sum()


@given(SEEN)
def test_the_middle_lies_on_the_mask(mask: np.ndarray) -> None:
    x, y = middle(mask, mask.shape[1], mask.shape[0])
    assert mask[int(y), int(x)]


def test_the_middle_of_a_ring_is_on_the_ring_and_of_a_square_in_its_middle() -> None:
    square = np.ones((5, 5), dtype=bool)
    assert middle(square, 10, 20) == (5, 10)
    square[1:4, 1:4] = False
    x, y = middle(square, 5, 5)
    assert square[int(y), int(x)]


@given(MASKS)
def test_the_whole_mask_at_its_own_size_is_itself(mask: np.ndarray) -> None:
    assert np.array_equal(cropped(mask, (0, 0, 1, 1), mask.shape[1], mask.shape[0]), mask)


def test_cropping_takes_the_part_and_nothing_lies_outside() -> None:
    mask = np.arange(32).reshape(4, 8) % 3 == 0
    assert np.array_equal(cropped(mask, (0.25, 0.5, 0.75, 1), 4, 2), mask[2:, 2:6])
    assert np.array_equal(cropped(mask, (0, 0, 1, 1), 16, 8), mask.repeat(2, 0).repeat(2, 1))
    wide = cropped(np.ones((2, 2), dtype=bool), (-0.5, 0, 1.5, 1), 4, 2)
    assert wide.tolist() == [[False, True, True, False]] * 2


def picture(mode: str) -> Image.Image:
    """A square in the middle, as different programs would draw it."""
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:12, 4:12] = 1
    if mode == "0 and 1":
        return Image.fromarray(mask)
    if mode == "alpha":
        rgba = np.full((16, 16, 4), 30, dtype=np.uint8)
        rgba[..., 3] = 255 * mask
        return Image.fromarray(rgba)
    if mode == "palette":
        image = Image.fromarray(mask, "P")
        image.putpalette([0, 0, 0, 0, 0, 40])
        return image
    if mode == "dark blue":
        return Image.fromarray(mask[..., None] * np.array([0, 0, 60], dtype=np.uint8))
    if mode == "16 bit":
        return Image.fromarray(mask.astype(np.uint16) * 40000)
    return Image.fromarray(mask * 255).convert(mode)


@pytest.mark.parametrize(
    "mode", ["0 and 1", "alpha", "palette", "dark blue", "16 bit", "L", "1", "RGB", "RGBA", "CMYK"]
)
def test_masks_of_any_program(tmp_path: Path, mode: str) -> None:
    if mode == "CMYK":
        picture("RGB").convert("CMYK").save(tmp_path / "m.tiff")
        mask = read_mask(tmp_path / "m.tiff")
    else:
        picture(mode).save(tmp_path / "m.png")
        mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == bool and mask.sum() == 64 and mask[4:12, 4:12].all()


def test_a_jpeg_keeps_its_mask(tmp_path: Path) -> None:
    picture("L").resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "m.jpg", quality=75)
    mask = read_mask(tmp_path / "m.jpg")
    assert mask.sum() == 32 * 32 and mask[16:48, 16:48].all()


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read mask .*none\.png: No such file"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"mask .*text\.png is not a readable image"):
        read_mask(tmp_path / "text.png")
    Image.new("L", (4, 4)).save(tmp_path / "black.png")
    with pytest.raises(InputError, match=r"mask .*black\.png is empty"):
        read_mask(tmp_path / "black.png")
    whole = tmp_path / "whole.png"
    picture("L").resize((256, 256)).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot read mask .*half\.png"):
        read_mask(tmp_path / "half.png")
