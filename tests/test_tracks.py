import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.tracks import Box, Track, Tracks, load_tracks, save_tracks, tracks_from_dict

SIZE = st.floats(0.5, 300)
START = st.floats(-20, 90)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y, w, h = draw(START), draw(START), draw(SIZE), draw(SIZE)
    return x, y, x + max(w, 1 - x), y + max(h, 1 - y)  # reaches into the 100 x 100 frame


@st.composite
def tracks(draw: st.DrawFn) -> Tracks:
    objects = []
    for name in draw(st.lists(st.text(min_size=1, max_size=5), max_size=3, unique=True)):
        moves = draw(st.lists(boxes(), min_size=1, max_size=6))
        x0, y0, x1, y1 = moves[0]
        fractions = draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=3))
        # the minimum keeps rounding from leaving the box
        points = [(min(x0 + u * (x1 - x0), x1), min(y0 + v * (y1 - y0), y1)) for u, v in fractions]
        objects.append(Track(name, tuple(moves), tuple(points)))
    return Tracks(100, 100, tuple(objects))


def flat(tracks: Tracks) -> list[float]:
    rows = [row for track in tracks.objects for row in (*track.boxes, *track.points)]
    return [value for row in rows for value in row]


@given(tracks(), st.integers(1, 20))
def test_resampling_keeps_end_points_and_stays_between_neighbours(given: Tracks, frames: int) -> None:
    for before, after in zip(given.objects, given.resample(frames).objects, strict=True):
        assert len(after.boxes) == frames
        assert after.boxes[0] == before.boxes[0]
        assert after.points == before.points
        if frames > 1:
            assert after.boxes[-1] == before.boxes[-1]
        for k in range(4):
            values = [box[k] for box in before.boxes]
            # one rounding of a + t * (b - a) at 400 pixels
            assert all(min(values) - 1e-9 <= box[k] <= max(values) + 1e-9 for box in after.boxes)


@given(tracks())
def test_resampling_to_the_same_frames_is_exact(given: Tracks) -> None:
    for track in given.objects:
        assert track.resample(len(track.boxes)) == track


def test_resampling_is_linear_in_time_and_one_box_stands_still() -> None:
    track = Track("a", ((0, 0, 10, 10), (10, 20, 30, 30), (50, 20, 70, 30)))
    middle = ((0, 0, 10, 10), (5, 10, 20, 20), (10, 20, 30, 30), (30, 20, 50, 30), (50, 20, 70, 30))
    assert track.resample(5).boxes == middle
    assert Track("a", ((1, 2, 3, 4),)).resample(3).boxes == ((1, 2, 3, 4),) * 3


@given(tracks(), st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 12))
def test_scaling_commutes_with_resampling_and_is_undone(given: Tracks, w: int, h: int, frames: int) -> None:
    one, other = given.scaled(w, h).resample(frames), given.resample(frames).scaled(w, h)
    # a handful of float64 roundings at 1e4
    assert flat(one) == pytest.approx(flat(other), rel=1e-12, abs=1e-9)
    assert flat(given.scaled(w, h).scaled(100, 100)) == pytest.approx(flat(given), rel=1e-12, abs=1e-12)


@given(tracks())
def test_json_round_trip_is_exact(given: Tracks) -> None:
    assert tracks_from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_file_round_trip_and_run_json(tmp_path: Path) -> None:
    given = Tracks(64, 48, (Track("ä", ((0.1, 0, 1 / 3, 10),), ((0.2, 5),)), Track("b", ((1, 1, 2, 2),))))
    save_tracks(tmp_path / "t.json", given)
    assert load_tracks(tmp_path / "t.json") == given
    (tmp_path / "run.json").write_text(json.dumps({"seed": 0, "tracks": given.to_dict()}))
    assert load_tracks(tmp_path / "run.json") == given


def test_salient_point_is_the_centre_by_default() -> None:
    assert Track("a", ((0, 10, 4, 20),)).salient_points == ((2, 15),)
    assert Track("a", ((0, 10, 4, 20),), ((1, 11),)).salient_points == ((1, 11),)


def test_no_objects_are_allowed() -> None:
    assert Tracks(64, 64).resample(5) == Tracks(64, 64)


GOOD = ((0, 0, 10, 10),)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (
            [Track("cow", GOOD), Track("horse", (*GOOD * 6, (40, 12, 40, 90)))],
            "object 2 ('horse'), frame 7: box (40, 12, 40, 90) has zero width; x1 must exceed x0",
        ),
        ([Track("a", ((0, 9, 5, 3),))], "object 1 ('a'), frame 1: box (0, 9, 5, 3) has negative height"),
        (
            [Track("a", (*GOOD, (0, 0, float("nan"), 1)))],
            "object 1 ('a'), frame 2: box (0, 0, nan, 1) is not finite",
        ),
        ([Track("a", ((0, 0, float("inf"), 1),))], "frame 1: box (0, 0, inf, 1) is not finite"),
        (
            [Track("a", ((64, 0, 70, 5),))],
            "frame 1: box (64, 0, 70, 5) lies outside the frame of 64 x 48 pixels",
        ),
        ([Track("a", ((0, -5, 7, 0),))], "frame 1: box (0, -5, 7, 0) lies outside the frame"),
        (
            [Track("a", GOOD, ((1, 1), (11, 1)))],
            "object 1 ('a'), point 2: (11, 1) is outside of the first box",
        ),
        ([Track("a", GOOD, ((float("nan"), 1),))], "object 1 ('a'), point 1: (nan, 1) is outside"),
        ([Track("a", GOOD), Track("a", GOOD)], "object 2 ('a') has the same name as object 1; names must differ"),
        ([Track("", GOOD)], "object 1 has an empty name"),
        ([Track("a\ud800", GOOD)], "object 1 ('a\\ud800') has an unpaired surrogate in its name"),
        ([Track("a", ())], "object 1 ('a') has no boxes"),
    ],
)
def test_messages_name_object_and_frame(objects: list[Track], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Tracks(64, 48, tuple(objects))


def test_only_the_first_box_must_be_seen() -> None:
    Tracks(64, 48, (Track("a", ((-5, -5, 1, 1), (100, 100, 110, 110))),))


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_frame_of_reference_needs_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"it must be at least 1 pixel"):
        Tracks(*size)


def test_frames_must_be_positive() -> None:
    with pytest.raises(InputError, match="frames is 0"):
        Tracks(5, 5).resample(0)


def ours(**changes: Any) -> dict[str, Any]:
    item = {"name": "horse", "boxes": [[0, 0, 1, 1]], "points": []}
    data = {"width": 8, "height": 8, "objects": [item]}
    for key, value in changes.items():
        (data if key in data else item)[key] = value
    return {key: value for key, value in data.items() if value != "absent"} | (
        {"objects": [{k: v for k, v in item.items() if v != "absent"}]} if "objects" not in changes else {}
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ours(width="absent"), "tracks: key 'width' is missing; it has 'height', 'objects'"),
        (ours(width="8"), "tracks: width must be a whole number, not '8'"),
        (ours(width=True), "tracks: width must be a whole number, not True"),
        (ours(objects={}), "tracks: objects must be a list"),
        (ours(objects=[3]), "object 1 must be an object {...}, not 3"),
        (ours(name="absent"), "object 1: key 'name' is missing"),
        (ours(name=3), "object 1: name must be a text, not 3"),
        (ours(boxes="absent"), "object 1 ('horse') has no position; give boxes, keyframes, path, point, box or mask"),
        (ours(boxes=[[0, 0, 1]]), "object 1 ('horse'): boxes: entry 1 is [0, 0, 1]; it must be 4 numbers"),
        (
            ours(boxes=[[0, 0, 1, 1], [0, 0, 1, "2"]]),
            "boxes: entry 2 is [0, 0, 1, '2']; it must be 4 numbers",
        ),
        (ours(boxes=[[0, 0, 1, None]]), "boxes: entry 1 is [0, 0, 1, None]"),
        (ours(boxes=[7]), "boxes: entry 1 is 7"),
        (ours(boxes=[[0, 0, 1, 10**400]]), "boxes: entry 1 is [0, 0, 1, 1000"),
        (ours(points=[[1]]), "object 1 ('horse'): points: entry 1 is [1]; it must be 2 numbers"),
        (ours(points=5), "points must be a list of lists of 2 numbers, not 5"),
    ],
)
def test_broken_files_name_file_object_and_key(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    path = tmp_path / "horse.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_tracks(path)
    assert str(caught.value).startswith(f"{path}: ")


# AnyI2V's format: inputs and the boxes (top, left, bottom, right) that the published code made of them
HORSE = {
    "bounding_box": [[47.0, 52.5, 240.5, 140.5]],
    "target_box": [[47.0, 52.5, 240.5, 140.5]],
    "center_traj": [[[x, 122.0] for x in (83.5, 90.5, 102.5, 115.5, 128.0, 140.0, 152.0, 164.0)]],
    "query_point": [[[87.0, 105.0], [158.0, 97.5], [218.5, 88.0]]],
}
HORSE_BOXES = [(52.5, left, 140.5, left + 193.5) for left in (47.0, 54.0, 66.0, 79.0, 91.5, 103.5, 115.5, 127.5)]
GROWING = {
    "bounding_box": [[40, 60, 136, 148]],
    "target_box": [[40, 60, 152, 156]],
    "center_traj": [
        [
            [88.0, 104.0],
            [97.14285714285714, 106.28571428571429],
            [106.28571428571428, 108.57142857142857],
            [115.42857142857143, 110.85714285714286],
            [124.57142857142857, 113.14285714285714],
            [133.71428571428572, 115.42857142857143],
            [142.85714285714286, 117.71428571428571],
            [152.0, 120.0],
        ]
    ],
    "query_point": [[[60, 80], [88, 104], [120, 130]]],
}
GROWING_BOXES = [
    (60.0, 40.0, 148.0, 136.0),
    (61.71428298950195, 48.000003814697266, 150.8571319580078, 146.28570556640625),
    (63.42856979370117, 56.0, 153.7142791748047, 156.57142639160156),
    (65.14285278320312, 64.0, 156.57142639160156, 166.85714721679688),
    (66.85714721679688, 72.0, 159.42857360839844, 177.14285278320312),
    (68.5714340209961, 79.99999237060547, 162.2857208251953, 187.42855834960938),
    (70.28571319580078, 88.0, 165.1428680419922, 197.71429443359375),
    (72.0, 96.0, 168.0, 208.0),
]


@pytest.mark.parametrize(("data", "expected"), [(HORSE, HORSE_BOXES), (GROWING, GROWING_BOXES)])
def test_anyi2v_boxes_equal_the_published_codes_to_the_last_bit(data: dict[str, Any], expected: list[Box]) -> None:
    tracks = tracks_from_dict(data)
    assert (tracks.width, tracks.height) == (512, 512)
    assert [(y0, x0, y1, x1) for x0, y0, x1, y1 in tracks.objects[0].boxes] == expected
    assert [list(point) for point in tracks.objects[0].points] == data["query_point"][0]


def anyi2v(**changes: Any) -> dict[str, Any]:
    return {**GROWING, **changes}


def test_anyi2v_points_off_the_box_become_its_centre() -> None:
    points = [[60, 80], [40, 100], [500, 500]]  # inside, on the border, outside
    objects = tracks_from_dict(anyi2v(query_point=[points])).objects
    assert objects[0].points == ((60, 80), (88, 104), (88, 104))
    assert tracks_from_dict(anyi2v(query_point=[[]])).objects[0].salient_points == ((88, 104),)
    without = {key: value for key, value in GROWING.items() if key != "query_point"}
    assert tracks_from_dict(without).objects[0].salient_points == ((88, 104),)


@pytest.mark.parametrize("path", [[[3, 4]], []])
def test_anyi2v_single_point_and_no_point_stand_still(path: list[list[int]]) -> None:
    assert tracks_from_dict(anyi2v(center_traj=[path])).objects[0].boxes == ((40, 60, 136, 148),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (anyi2v(center_traj=[]), "center_traj has 0 entries, but bounding_box has 1; one per object"),
        (anyi2v(center_traj=[[[1]]]), "object 1: center_traj: entry 1 is [1]; it must be 2 numbers"),
        (anyi2v(target_box=[[0, 0, 1]]), "object 1: target_box: entry 1 is [0, 0, 1]; it must be 4 numbers"),
        ({"bounding_box": []}, "tracks: key 'target_box' is missing"),
        (
            anyi2v(target_box=[[40, 60, 40, 156]]),
            "object 1 ('object 1'), frame 8: box (152, 72, 152, 168) has zero",
        ),
        (
            anyi2v(bounding_box=[[600, 0, 700, 9]]),
            "object 1 ('object 1'), frame 1: box (600, 0, 700, 9) lies out",
        ),
    ],
)
def test_anyi2v_errors(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        tracks_from_dict(data)
