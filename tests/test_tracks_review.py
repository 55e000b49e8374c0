"""Warnings about tracks that are allowed."""

import pytest

from anyi2v.tracks import Box, Track, Tracks
from anyi2v.tracks.review import warnings

CELL = (8.0, 8.0)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(10, 10, 30, 30), (25, 10, 45, 30)], []),
        ([(10, 10, 30, 30), (30, 10, 50, 30)], []),
        ([(10, 10, 30, 30), (31, 10, 51, 30)], ["object 'a' jumps by more than its box to frame 2 (1 jumps)"]),
        ([(80, 10, 99, 30), (82, 10, 101, 30)], ["object 'a' partly leaves the frame in frame 2 (1 frames)"]),
        (
            [(80, 10, 99, 30), (90, 10, 109, 30), (100, 10, 119, 30)],
            [
                "object 'a' partly leaves the frame in frame 2 (1 frames)",
                "object 'a' leaves the frame in frame 3 (1 frames)",
            ],
        ),
        (
            [(10, 10, 18, 18), (10, 10, 17, 18)],
            ["object 'a' has a box smaller than a cell of the latent (8 x 8 pixels) in frame 2"],
        ),
    ],
)
def test_each_doubt_names_object_and_frame(boxes: list[Box], expected: list[str]) -> None:
    assert warnings(Tracks(100, 100, (Track("a", tuple(boxes)),)), CELL) == expected


def test_no_objects_are_worth_a_word() -> None:
    assert warnings(Tracks(100, 100), CELL) == ["there are no objects, so the motion is not controlled"]
