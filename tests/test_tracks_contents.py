"""First boxes with nothing in them: rates of hits and of false alarms on the synthetic world's condition images."""

import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import CONDITIONS, make_case
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.micro.world.world import object_masks, still
from anyi2v.tracks import Box, Track, Tracks
from anyi2v.tracks.contents import doubtful, empty_boxes

CASES = 12
"""Per modality, and a quarter of it with two objects."""
EMPTY = 4
"""Boxes beside the objects per case."""


def moving(box: Box, width: int = 64, height: int = 64, **options: object) -> Tracks:
    later = tuple(v + 5 for v in box)
    return Tracks(width, height, (Track("cow", (box, later), **options),))  # pyright: ignore[reportArgumentType]


def around(box: Box, scale: float, rng: random.Random | None) -> Box:
    """A box `scale` times as large about the same middle, or anywhere as long as it holds `box`."""
    out = []
    for k in (0, 1):
        side = box[k + 2] - box[k]
        away = rng.uniform(-0.5, 0.5) if rng else 0.0
        middle = (box[k] + box[k + 2]) / 2 + away * (scale - 1) * side
        out.append((middle - scale * side / 2, middle + scale * side / 2))
    (x0, x1), (y0, y1) = out
    return x0, y0, x1, y1


def beside(case: Case, rng: random.Random) -> list[Box]:
    """Boxes of about the object's size that keep away from all objects and their outlines."""
    size, (x0, y0, x1, y1) = case.scene.size, case.tracks.objects[0].boxes[0]
    objects = torch.stack(object_masks(still(case.scene, 0)))[:, 0].any(0)[None, None].float()
    taken = F.max_pool2d(objects, 5, stride=1, padding=2)[0, 0] > 0
    found: list[Box] = []
    for _ in range(200):
        scale = rng.uniform(0.7, 1.3)
        w, h = scale * (x1 - x0), scale * (y1 - y0)
        x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
        if len(found) < EMPTY and not taken[int(y) : math.ceil(y + h), int(x) : math.ceil(x + w)].any():
            found.append((x, y, x + w, y + h))
    return found


def boxes_of(case: Case, rng: random.Random) -> dict[str, list[Box]]:
    objects = [track.boxes[0] for track in case.tracks.objects]
    return {
        "tight": objects,
        "loose": [around(box, rng.uniform(1.3, 2), rng) for box in objects],
        "wide": [around(box, rng.uniform(2, 3), rng) for box in objects],
        "inner": [around(box, 0.5, None) for box in objects],
        "empty": beside(case, rng),
    }


def test_rates_over_all_modalities() -> None:
    """No box around an object is called empty, tight or loose, and every box beside it is.

    The photos' ground is textured. Boxes inside of an object are told from the background where the object is filled;
    inside of an outline the picture is the background's, and a third may be called empty.
    """
    rng, called = random.Random(0), defaultdict[tuple[str, str], list[bool]](list)
    for condition in CONDITIONS:
        one: Kind = "mixed" if condition == "mixed" else "plain"
        two: Kind = "two objects"
        kinds: list[Kind] = [one if n < CASES else two for n in range(CASES + CASES // 4)]
        for seed, kind in enumerate(kinds):
            case = make_case(seed, condition, kind)
            image = (case.image * 255).round().numpy() / 255
            for what, boxes in boxes_of(case, rng).items():
                called[condition, what] += [bool(empty_boxes(image, moving(box))) for box in boxes]
    rates = {key: np.mean(values) for key, values in called.items()}
    for (condition, what), rate in rates.items():
        if what == "empty":
            assert rate >= 0.97, (condition, what, rate)
        elif what == "inner" and condition in ("edge", "sketch", "mixed"):
            assert rate <= 1 / 3, (condition, what, rate)
        else:
            assert rate == 0, (condition, what, rate)
    counts = {what: sum(len(values) for (_, w), values in called.items() if w == what) for _, what in called}
    assert counts == {"tight": 126, "loose": 126, "wide": 126, "inner": 126, "empty": 420}


def shapes(size: int, line: int) -> np.ndarray:
    """A white frame of thin lines on black, in the left half."""
    image = np.zeros((3, size, size), dtype=np.float32)
    a, b = size // 8, size // 8 + size // 4
    image[:, a:b, a:b] = 1
    image[:, a + line : b - line, a + line : b - line] = 0
    return image


@pytest.mark.parametrize("size", [64, 200, 512, 900])
def test_lines_of_one_pixel_count_at_any_size_and_frame_of_reference(size: int) -> None:
    image = shapes(size, 1)
    for width, height in ((size, size), (640, 480)):
        full, empty = ((x * width / 64, height * 6 / 64, (x + 24) * width / 64, height * 30 / 64) for x in (5, 36))
        assert not empty_boxes(image, moving(full, width, height))
        (line,) = empty_boxes(image, moving(empty, width, height))
        assert line.startswith("object 'cow': its first box (") and "shows nothing that stands out" in line


def test_one_colour_everywhere_shows_nothing() -> None:
    assert empty_boxes(np.full((3, 40, 60), 0.5), moving((5, 5, 20, 20)))


def test_boxes_that_are_not_judged() -> None:
    image, box = shapes(64, 2), (36, 6, 60, 30)
    assert empty_boxes(image, moving(box))
    # what the user says is an object, what stands still, and most of the frame
    assert not empty_boxes(image, moving(box, mask=np.ones((4, 4), dtype=bool)))
    assert not empty_boxes(image, Tracks(64, 64, (Track("anchor", (box,)), Track("two", (box, box)))))
    assert not empty_boxes(np.zeros((3, 64, 64)), moving((0, 0, 64, 40)))
    assert not empty_boxes(image, Tracks(64, 64))


def test_weights_of_0_alone_are_doubtful() -> None:
    still_ = Track("a", ((1, 1, 9, 9),), weight=0)
    assert doubtful(shapes(64, 2), Tracks(64, 64, (still_,))) == ["all objects have weight 0, so none is followed"]
    assert not doubtful(shapes(64, 2), Tracks(64, 64, (still_, Track("b", ((1, 1, 9, 9),)))))
    assert not doubtful(shapes(64, 2), Tracks(64, 64))
