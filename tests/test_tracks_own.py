"""Our JSON: ways to say how an object moves, the schema, and the way out and back."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from anyi2v.errors import InputError
from anyi2v.tracks import Track, Tracks, load_tracks, masks, read, save_tracks, tracks_from_dict
from anyi2v.tracks.own import SCHEMA
from tests.test_tracks import tracks
from tests.trackfiles import OWN, ours

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), fill=st.just(True))


@st.composite
def masked(draw: st.DrawFn) -> Tracks:
    """Tracks of which some have masks that reach into the first boxes."""
    given = draw(tracks())
    objects = []
    for track in given.objects:
        mask = draw(st.none() | MASKS)
        try:
            Tracks(given.width, given.height, (Track(track.name, track.boxes, track.points, mask),))
        except InputError:
            mask = None
        objects.append(Track(track.name, track.boxes, track.points, mask))
    return Tracks(given.width, given.height, tuple(objects))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


@given(masked())
def test_what_is_saved_comes_back_to_the_last_bit_and_is_valid(given: Tracks) -> None:
    data = json.loads(json.dumps(given.to_dict()))
    VALIDATOR.validate(data)
    assert tracks_from_dict(data) == given


@given(masked(), st.integers(1, 30))
def test_resampled_tracks_keep_ends_and_masks(given: Tracks, frames: int) -> None:
    after = given.resample(frames)
    for one, other in zip(given.objects, after.objects, strict=True):
        assert other.boxes[0] == one.boxes[0] and (frames == 1 or other.boxes[-1] == one.boxes[-1])
        assert one.points == other.points and (one.mask is None) == (other.mask is None)
        assert one.mask is None or other.mask is None or np.array_equal(one.mask, other.mask)


def test_tracks_with_other_masks_are_other_tracks() -> None:
    one, other = (Track("a", ((0, 0, 4, 4),), mask=np.eye(4, dtype=bool) ^ flip) for flip in (False, True))
    assert one == Track("a", ((0, 0, 4, 4),), mask=np.eye(4, dtype=bool))
    assert one != other and one != Track("a", ((0, 0, 4, 4),)) and Track("a", ((0, 0, 4, 4),)) != one
    assert one != "a" and hash(one) == hash(other)


def test_a_path_moves_the_centre_of_a_box_of_given_usual_or_user_size(tmp_path: Path) -> None:
    path = [[20, 30], [50, 60]]
    assert ours({"path": path, "size": [10, 4]}).objects[0].boxes == ((15, 28, 25, 32), (45, 58, 55, 62))
    # a quarter of the shorter side
    assert ours({"path": path}, width=200).objects[0].boxes == ((7.5, 17.5, 32.5, 42.5), (37.5, 47.5, 62.5, 72.5))
    data = {"width": 100, "height": 100, "objects": [{"name": "a", "path": path}]}
    (tmp_path / "t.json").write_text(json.dumps(data))
    assert load_tracks(tmp_path / "t.json", box_size=(10, 4)) == tracks_from_dict(
        {**data, "objects": [{"name": "a", "path": path, "size": [10, 4]}]}
    )


def test_a_path_of_any_point_moves_a_given_box() -> None:
    track = ours({"path": [[1, 2], [11, 7]], "box": [40, 40, 60, 70]}).objects[0]
    assert track.boxes == ((40, 40, 60, 70), (50, 45, 70, 75))


@pytest.mark.parametrize(
    "item", [{"point": [50, 50]}, {"path": [[50, 50]]}, {"path": [], "box": [37.5, 37.5, 62.5, 62.5]}]
)
def test_one_point_and_an_empty_path_stand_still(item: dict[str, Any]) -> None:
    assert ours(item).resample(3).objects[0].boxes == ((37.5, 37.5, 62.5, 62.5),) * 3


def test_key_framed_objects_keep_step() -> None:
    keys = [{"frame": 1, "box": [0, 0, 10, 10]}, {"frame": 3, "box": [20, 0, 30, 10]}]
    late = [{"frame": 5, "box": [0, 0, 10, 10]}]
    one, other = ours({"keyframes": keys}, {"keyframes": late}).objects
    assert [box[0] for box in one.boxes] == [0, 10, 20, 20, 20]
    assert len(other.boxes) == 5
    assert [len(track.boxes) for track in ours({"keyframes": keys}, frames=9).objects] == [9]


def test_a_path_of_constant_speed_covers_equal_lengths_in_the_frames_of_the_file() -> None:
    path = [[10, 10], [20, 10], [20, 80]]
    (track,) = ours({"path": path, "size": [8, 8], "speed": "constant"}, frames=9).objects
    assert [(x0 + 4, y0 + 4) for x0, y0, *_ in track.boxes] == [
        (10, 10),
        (20, 10),
        *((20, 10 * k) for k in range(2, 9)),
    ]
    (eased,) = ours({"path": path, "size": [8, 8], "ease": "in"}, frames=3).objects
    assert eased.boxes[1][:2] == (11, 6)  # a quarter of two steps: half way to the second point
    # without a number of frames, finely enough for any
    boxes = ours({"path": path, "size": [8, 8], "speed": "constant"}).resample(9).objects[0].boxes
    np.testing.assert_allclose(boxes, track.boxes, atol=80 / 240)


def test_boxes_can_be_eased_and_keep_their_ends() -> None:
    ends = [[0, 0, 10, 10], [40, 0, 70, 30]]
    (track,) = ours({"boxes": ends, "ease": "in-out"}, frames=5).objects
    assert [box[0] for box in track.boxes] == [0, 40 * 5 / 32, 20, 40 * 27 / 32, 40]
    (slow,) = ours({"boxes": ends, "ease": "out"}).resample(3).objects
    assert (slow.boxes[0], slow.boxes[2]) == (tuple(ends[0]), tuple(ends[1])) and slow.boxes[1][0] == 30


def test_a_weight_comes_back_and_one_of_1_is_not_written() -> None:
    given = ours({"box": [10, 10, 20, 20], "weight": 2.5}, {"box": [10, 10, 20, 20]})
    assert [track.weight for track in given.objects] == [2.5, 1]
    assert ["weight" in item for item in given.to_dict()["objects"]] == [True, False]
    assert tracks_from_dict(given.to_dict()) == given != ours({"box": [10, 10, 20, 20]}, {"box": [10, 10, 20, 20]})
    assert [track.weight for track in given.scaled(50, 50).resample(4).objects] == [2.5, 1]


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    box = {"frame": 10_000, "box": [0, 0, 9, 9]}
    with pytest.raises(InputError, match="the file has 101 tracks of 10000 frames; at most 1000000 boxes"):
        ours(*({"keyframes": [box]} for _ in range(101)))
    with pytest.raises(InputError, match="the file has 1001 tracks of 1 frames; at most 1000 of 10000"):
        ours(*({"box": [0, 0, 9, 9]} for _ in range(1001)))
    with (
        patch.object(masks, "MAX_TOTAL", 10_000),
        pytest.raises(InputError, match="the masks of the objects have 16384 pixels; at most 10000 in all are allowed"),
    ):
        ours(*({"mask": {"size": [64, 128], "counts": [0, 8192]}} for _ in range(99)))
    (tmp_path / "t.json").write_text("[" + " " * 100)
    with patch.object(read, "MAX_BYTES", 100), pytest.raises(InputError, match="too much for a track file"):
        load_tracks(tmp_path / "t.json")


def test_a_mask_gives_box_and_point(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64), dtype=np.uint8)
    pixels[12:24, 8:40] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    data = {"width": 640, "height": 480, "objects": [{"name": "a", "mask": "masks/a.png", "path": [[5, 5], [15, 5]]}]}
    (tmp_path / "t.json").write_text(json.dumps(data))
    track = load_tracks(tmp_path / "t.json").objects[0]
    assert track.boxes == ((80, 120, 400, 240), (90, 120, 410, 240))
    (x, y), mask = track.points[0], track.mask
    assert mask is not None and mask.shape == (48, 64) and mask[int(y / 10), int(x / 10)]
    save_tracks(tmp_path / "elsewhere.json", Tracks(640, 480, (track,)))
    assert load_tracks(tmp_path / "elsewhere.json").objects[0] == track


def test_off_the_frame_is_allowed_later_but_not_first() -> None:
    inside, outside = [10, 10, 20, 20], [-50, 10, -40, 20]
    assert ours({"boxes": [inside, outside]}).objects[0].boxes[1] == tuple(outside)
    for item in ({"boxes": [outside]}, {"box": outside}, {"keyframes": [{"frame": 1, "box": outside}]}):
        with pytest.raises(InputError, match=r"object 1 \('o1'\), frame 1: box .* lies outside the frame of 100 x 100"):
            ours(item)
    with pytest.raises(InputError, match=r"object 1 \('o1'\), frame 1: box"):
        ours({"point": [300, 300]})


def test_no_objects_are_no_objects() -> None:
    assert ours() == Tracks(100, 100)


KEY = {"frame": 1, "box": [0, 0, 1, 1]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"boxes": [[0, 0, 1, 1]], "path": [[1, 1]]}, "object 1 ('o1') has both 'boxes' and 'path'; give one of them"),
    ({"path": [[1, 1]], "point": [1, 1]}, "has both 'path' and 'point'"),
    ({"boxs": [[0, 0, 1, 1]]}, "object 1 ('o1'): key 'boxs' is not known here; the closest are boxes, box"),
    ({"boxes": [[0, 0, 1, 1]], "size": [1, 1]}, "object 1 ('o1'): key 'size' is not known here"),
    ({"path": [], "size": [1, 1]}, "object 1 ('o1') has no position; give boxes, keyframes, path, point, box or mask"),
    ({}, "object 1 ('o1') has no position"),
    ({"path": [[1, 1]], "box": [0, 0, 1, 1], "size": [1, 1]}, "has both 'box' and 'size'"),
    ({"path": [[1, 1]], "size": [1, 0]}, "size is [1, 0]; it must be a width and a height above 0"),
    ({"point": [1]}, "object 1 ('o1'): point is [1]; it must be 2 numbers"),
    ({"box": [1, 2, 3]}, "object 1 ('o1'): box is [1, 2, 3]; it must be 4 numbers"),
    ({"keyframes": []}, "object 1 ('o1'): keyframes is empty"),
    ({"keyframes": [{"frame": 0, "box": [0, 0, 1, 1]}]}, "key frame 1: frame is 0; it must be 1 to 10000"),
    ({"keyframes": [{"frame": 10**9, "box": [0, 0, 1, 1]}]}, "key frame 1: frame is 1000000000; it must be"),
    ({"keyframes": [{"frame": 1.5, "box": [0, 0, 1, 1]}]}, "key frame 1: frame must be a whole number, not 1.5"),
    ({"keyframes": [{"frame": 2}]}, "object 1 ('o1'), key frame 1: key 'box' is missing"),
    ({"keyframes": [KEY, KEY]}, "key frame 2: frame 1 comes after frame 1; frames must increase"),
    (
        {"keyframes": [KEY], "interpolation": "cubic"},
        "interpolation is 'cubic'; it must be one of 'linear', 'smooth', ",
    ),
    ({"keyframes": [3]}, "object 1 ('o1'), key frame 1 must be an object {...}, not 3"),
    ({"box": [0, 0, 1, 1], "mask": "none.png"}, "object 1 ('o1'): mask: cannot read mask none.png: No such file"),
    ({"box": [0, 0, 1, 1], "mask": 3}, "object 1 ('o1'): mask must be an object {...}, not 3"),
    (
        {"box": [0, 0, 40, 40], "mask": {"size": [2, 2], "counts": [3, 1]}},
        "object 1 ('o1'): the mask is empty inside the first box (0, 0, 40, 40)",
    ),
    ({"mask": {"size": [2, 2], "counts": [4]}}, "object 1 ('o1') has no position"),
    ({"point": [5, 5], "weight": -1}, "object 'o1': weight is -1; it must be finite and at least 0"),
    ({"point": [5, 5], "weight": "much"}, "object 1 ('o1'): weight must be a number, not 'much'"),
    ({"point": [5, 5], "weight": float("nan")}, "object 'o1': weight is nan; it must be finite and at least 0"),
    ({"path": [[1, 1]], "ease": "slowly"}, "object 1 ('o1'): ease is 'slowly'; it must be 'in', 'out', 'in-out'"),
    ({"path": [[1, 1]], "speed": 3}, "object 1 ('o1'): speed is 3; it can only be 'constant'"),
    ({"point": [5, 5], "ease": "in"}, "object 1 ('o1'): key 'ease' is not known here"),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_messages_name_object_and_key(item: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ours(item)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"frames": 0}, "tracks: frames is 0; it must be 1 to 10000"),
        ({"cammera": {}}, "tracks: key 'cammera' is not known here; the closest are camera"),
        ({"width": 10**400}, "tracks: width is"),
    ],
)
def test_messages_name_the_key_at_the_top(top: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ours(**top)


@settings(max_examples=200)
@given(st.data())
def test_schema_and_reader_agree_on_what_is_said_how(data: st.DataObject) -> None:
    """Any choice of keys with good values: the reader takes it exactly where the schema allows it."""
    good: dict[str, Any] = {
        "boxes": [[0, 0, 9, 9]],
        "keyframes": [KEY],
        "interpolation": "smooth",
        "path": [[1, 1]],
        "point": [1, 1],
        "box": [0, 0, 5, 5],
        "size": [4, 4],
        "ease": "in-out",
        "speed": "constant",
        "weight": 0.5,
        "mask": {"size": [1, 1], "counts": [0, 1]},
        "points": [],
        "colour": "red",
    }
    keys = data.draw(st.sets(st.sampled_from(sorted(good)), max_size=4))
    item = {key: good[key] for key in keys}
    try:
        ours(item)
    except InputError:
        read = False
    else:
        read = True
    described = {"width": 100, "height": 100, "objects": [{"name": "a", **item}]}
    assert VALIDATOR.is_valid(described) == read, item


def test_the_example_of_every_key_is_valid() -> None:
    VALIDATOR.validate(OWN)


def test_the_docs_examples_are_valid_and_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "tracks.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) >= 4
    Image.new("L", (64, 64), 255).save(tmp_path / "cow.png")
    for block in blocks:
        VALIDATOR.validate(block)
        (tmp_path / "t.json").write_text(json.dumps(block))
        load_tracks(tmp_path / "t.json")
