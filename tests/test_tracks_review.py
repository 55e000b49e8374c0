"""Warnings about tracks that are allowed."""

import pytest

from anyi2v.tracks import Box, Track, Tracks
from anyi2v.tracks.review import summary, warnings

CELL = (8.0, 8.0)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(10, 10, 30, 30), (25, 10, 45, 30)], []),
        ([(10, 10, 30, 30), (30, 10, 50, 30)], []),
        ([(10, 10, 30, 30), (31, 10, 51, 30)], ["object 'a' jumps by more than its box to frame 2 (1 jump)"]),
        (
            [(80, 10, 99, 30), (82, 10, 101, 30)],
            ["object 'a' partly leaves the frame in 1 of 2 frames, first in frame 2"],
        ),
        (
            [(80, 10, 99, 30), (90, 10, 109, 30), (100, 10, 119, 30)],
            [
                "object 'a' partly leaves the frame in 1 of 3 frames, first in frame 2",
                "object 'a' leaves the frame in 1 of 3 frames, first in frame 3",
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


def test_a_summary_counts_in_singular_and_plural() -> None:
    box = (1.0, 1.0, 9.0, 9.0)
    for boxes, expected in (
        ((), "0 objects, 0 frames"),
        ((1,), "1 object, 1 frame"),
        ((1, 3), "2 objects, 1 to 3 frames"),
    ):
        tracks = Tracks(100, 100, tuple(Track(f"{k}", (box,) * count) for k, count in enumerate(boxes)))
        assert summary("kind", tracks) == f"kind, {expected}, 100 x 100 pixels"
