"""Other projects' track files: recognised by content, read to the right boxes, refused with a reason."""

import builtins
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.tracks import FORMATS, Box, Track, Tracks, load_tracks, read_tracks, to_anyi2v, tracks_from_dict
from anyi2v.tracks.anyi2v_json import lost_in_anyi2v, save_anyi2v
from tests.test_tracks import boxes, tracks
from tests.trackfiles import DRAG_ANYTHING, FILES, SG_I2V, SIZE, TRAILBLAZER, npy, npz, write_masks


def load(folder: Path, content: bytes, **hints: Any) -> Tracks:
    write_masks(folder)
    (folder / "file").write_bytes(content)
    return load_tracks(folder / "file", **hints)


def test_there_is_a_file_of_every_format() -> None:
    assert [kind.title for kind in FORMATS] == list(FILES)


@pytest.mark.parametrize("title", FILES)
@pytest.mark.parametrize("name", ["tracks.json", "x.npy", "nothing"])
def test_formats_are_told_by_content_not_by_name(tmp_path: Path, title: str, name: str) -> None:
    write_masks(tmp_path)
    (tmp_path / name).write_bytes(FILES[title])
    kind, tracks = read_tracks(tmp_path / name, size=SIZE)
    assert kind == title
    assert tracks.objects
    for frames in (1, 2, 16, 24):  # end points are exact for every file
        for before, after in zip(tracks.objects, tracks.resample(frames).objects, strict=True):
            assert after.boxes[0] == before.boxes[0]
            assert frames == 1 or after.boxes[-1] == before.boxes[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"a": 1, "b": 2}',
            "this is not a track file, but a JSON object with 'a', 'b'; supported formats: anyi2v",
        ),
        (b"{}", "a JSON object with no keys"),
        (b"[3]", "a JSON list that starts with [3]"),
        (b"once upon a time", "text that starts with 'once upon a time'"),
        (b"", "this is not a track file, but empty"),
        (b"\xff\xd8\xff", "neither text nor NumPy"),
        (b'{"a": ', "this is not JSON: Expecting value at line 1, column 7"),
        (b"[" * 100_000, "this JSON cannot be read"),
        (b'{"objects": [' + b"9" * 5000 + b"]}", "this JSON cannot be read"),
        (npz(a=np.zeros(3)), "a .npz file with 'a'"),
        (npy(SG_I2V)[:90], "this NumPy file cannot be read"),
    ],
)
def test_other_files_are_described_and_the_formats_listed(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "file"))


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="has Python objects, which are not loaded because they may run code"):
        load_tracks(tmp_path / "t.npy")
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({"dog": {"points": np.zeros((2, 3, 2))}}))
    with pytest.raises(InputError, match=r"this is a pickle, which is not loaded.*save its arrays with numpy\.savez"):
        load_tracks(tmp_path / "davis.pkl")


@pytest.mark.parametrize("title", ["SG-I2V .npy", "CoTracker .npz", "DragAnything trajectory JSON"])
def test_pixels_of_an_unknown_image_need_its_size(tmp_path: Path, title: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{title} has pixel coordinates, but not the image's size")):
        load(tmp_path, FILES[title])


@pytest.mark.parametrize("hints", [{"size": (0, 5)}, {"box_size": (0, 5)}, {"box_size": (5, float("nan"))}])
def test_impossible_hints(tmp_path: Path, hints: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"at least 1 pixel|above 0"):
        load(tmp_path, FILES["SG-I2V .npy"], **hints)


def test_sg_i2v_moves_the_box_as_its_centre(tmp_path: Path) -> None:
    found = load(tmp_path, npy(SG_I2V, np.float32), size=SIZE)
    assert (found.width, found.height) == SIZE
    assert found.objects[0].boxes == tuple((100 + 10 * k, 120 + 5 * k, 200 + 10 * k, 300 + 5 * k) for k in range(14))
    assert load(tmp_path, npy(np.zeros((0, 3, 2))), size=SIZE) == Tracks(*SIZE)


@pytest.mark.parametrize(
    "array", [np.zeros((1, 16, 3)), np.zeros((1, 2, 2)), np.zeros(3), np.zeros((1, 9, 2), dtype=complex)]
)
def test_sg_i2v_of_other_shapes(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match=re.escape(f"has shape {array.shape} of {array.dtype}; it must be")):
        load(tmp_path, npy(array, array.dtype.type), size=SIZE)


def test_freetraj_is_linear_and_goes_on_as_it_ends(tmp_path: Path) -> None:
    found = load(tmp_path, b"2,0.1,0.4,0.2,0.5\n4,0.3,0.6,0.2,0.9\n", size=(100, 100)).objects[0]
    assert len(found.boxes) == 16
    # 0.1 of the height per frame from 0.1 in frame 2 on; the first size throughout
    expected = [(20, 10 * (k - 1), 50, 10 * (k - 1) + 30) for k in range(16)]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-9)  # roundings at 200 pixels
    assert load(tmp_path, b"0,0,1,0,1").objects[0].boxes == ((0, 0, 512, 320),) * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0,1,0,1\n5,0,1,0\n", "FreeTraj .txt, line 2 is '5,0,1,0'; it must be frame, y0, y1, x0, x1"),
        ("0,0,1,0,1\n5,0,1,0,x\n", "FreeTraj .txt, line 2 is"),
        ("0,0,1,0,1\n0,0,1,0,1\n", "line 2: frame 0 comes after frame 0; frames must increase"),
        ("0.5,0,1,0,1\n", "line 1: frame 0.5 is not a whole number"),
        ("-1,0,1,0,1\n", "line 1: frame is -1; it must be 0 to 10000"),
        ("0,0.5,0.5,0,1\n", "frame 1: box (0, 160, 512, 160) has zero height"),
    ],
)
def test_freetraj_messages_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, text.encode())


def test_trailblazer_is_linear_between_keys_in_its_own_size(tmp_path: Path) -> None:
    found = load(tmp_path, TRAILBLAZER.encode())
    assert (found.width, found.height) == (576, 320)
    (track,) = found.objects
    assert len(track.boxes) == 25
    assert track.boxes[0] == pytest.approx((0, 0, 57.6, 32)) and track.boxes[-1] == pytest.approx((288, 160, 576, 320))
    assert track.boxes[12] == pytest.approx((144, 80, 316.8, 176))
    assert load(tmp_path, TRAILBLAZER.encode(), size=(100, 50)).width == 100
    key = {"bbox_ratios": [0, 0, 1, 1], "frame": 0}
    assert load(tmp_path, json.dumps({"keyframe": [key]}).encode()).objects[0].boxes == ((0, 0, 512, 512),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keyframe: 3", "TrailBlazer YAML: keyframe must be a list, not 3"),
        ("keyframe: []", "the first key frame must be frame 0, not none"),
        ("keyframe: [{frame: 3, bbox_ratios: [0, 0, 1, 1]}]", "the first key frame must be frame 0, not 3"),
        ("keyframe: [{frame: 0}]", "key frame 1: key 'bbox_ratios' is missing"),
        ("keyframe: [", "starts like TrailBlazer YAML, but is not YAML"),
        ("keyframe: 2001-99-99", "its YAML is not usable"),
        ("keyframe: !!python/object:os.system {}", "is not YAML: could not determine a constructor"),
        ("keyframe: [{frame: 0, bbox_ratios: [0, 0, 1, 1]}]\nwidth: many", "width, height must be a whole number"),
    ],
)
def test_trailblazer_messages(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, text.encode())


def test_yaml_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=re.escape("needs PyYAML: pip install 'anyi2v[yaml]'")):
        load(tmp_path, TRAILBLAZER.encode())
    assert load(tmp_path, FILES["FreeTraj .txt"]).objects


def test_drag_anything_takes_boxes_and_size_from_the_masks(tmp_path: Path) -> None:
    found = load(tmp_path, FILES["DragAnything demo.json"])
    assert (found.width, found.height) == SIZE
    car, wall = found.objects
    assert (car.name, wall.name) == ("1", "2")
    assert car.boxes[0] == (200, 240, 330, 360) and car.boxes[-1] == (275, 180, 405, 300)
    assert car.mask is not None and car.mask.sum() == 130 * 120
    assert set(wall.boxes) == {(40, 160, 200, 300)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_name": "gone.png"}, "object '1': mask_name: cannot read mask"),
        ({"mask_name": None}, "object '1': mask_name must be a text, not None"),
        ({"trajectory": [[1]]}, "object '1': trajectory: entry 1 is [1]; it must be 2 numbers"),
    ],
)
def test_drag_anything_messages(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = {**DRAG_ANYTHING, "1": {**DRAG_ANYTHING["1"], **change}}
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, json.dumps(data).encode())


def test_drag_anything_masks_must_have_the_images_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mask car\.png has 640 x 480 pixels, but the image 320 x 240"):
        load(tmp_path, FILES["DragAnything demo.json"], size=(320, 240))


def test_paths_get_boxes_of_the_users_size_or_a_quarter_of_the_shorter_side(tmp_path: Path) -> None:
    found = load(tmp_path, FILES["DragAnything trajectory JSON"], size=SIZE, box_size=(20, 10))
    assert [track.name for track in found.objects] == ["7", "12"]
    assert found.objects[0].boxes == ((0, 15, 20, 25), (5, 25, 25, 35))
    assert found.objects[1].boxes == ((290, 195, 310, 205),)
    found = load(tmp_path, FILES["ImageConductor JSON"])
    assert (found.width, found.height) == (384, 256)
    assert found.objects[0].boxes[1] == (118, 88, 182, 152)
    assert load(tmp_path, b"[]") == Tracks(384, 256)
    assert [track.name for track in load(tmp_path, b"[[], [[5, 6]]]").objects] == ["object 2"]


def test_cotrackers_hidden_points_go_straight_and_unseen_ones_are_left_out(tmp_path: Path) -> None:
    path = np.array([[10, 10], [99, 99], [99, 99], [40, 70]], dtype=np.float32)
    tracks = np.stack([path, path, path], axis=1)
    seen = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=bool).T
    for content in (
        npz(tracks=tracks[None], visibility=seen[None]),
        npz(pred_tracks=tracks, pred_visibility=np.where(seen, 0.95, 0.85)[None, ..., None]),
    ):
        found = load(tmp_path, content, size=SIZE, box_size=(2, 2))
        assert [track.name for track in found.objects] == ["point 1", "point 2"]
        assert found.objects[0].boxes[1] == (98, 98, 100, 100)
        assert found.objects[1].boxes == ((9, 9, 11, 11), (19, 29, 21, 31), (29, 49, 31, 51), (39, 69, 41, 71))
    assert len(load(tmp_path, npz(tracks=tracks), size=SIZE).objects) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tracks": np.zeros((2, 4, 3, 2))}, "tracks has shape (2, 4, 3, 2) of float64; it must be [1, frames, points"),
        ({"tracks": np.zeros((4, 3, 2)), "visibility": np.ones((3, 3))}, "visibility has shape (3, 3) of float64; it"),
        ({"tracks": np.zeros((4, 3, 2), dtype=str)}, "tracks has shape (4, 3, 2) of <U1"),
        ({"tracks": np.zeros((1, 2000, 2))}, "the file has 2000 tracks of 1 frames; at most 1000 of 10000"),
    ],
)
def test_cotracker_messages(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, npz(**arrays), size=SIZE)


def even(first: Box, shifts: list[tuple[float, float]], grow: float) -> tuple[Box, ...]:
    """Boxes that grow evenly by a factor about a moving centre: what AnyI2V can say."""
    (x0, y0, x1, y1), last = first, max(len(shifts) - 1, 1)
    out = []
    for k, (dx, dy) in enumerate([(0.0, 0.0), *shifts[1:]]):
        w, h = ((b - a) * (grow - 1) * k / last / 2 for a, b in ((x0, x1), (y0, y1)))
        out.append((x0 + dx - w, y0 + dy - h, x1 + dx + w, y1 + dy + h))
    return tuple(out)


SHIFTS = st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=9)


@given(boxes(), SHIFTS, st.floats(0.5, 2))
def test_anyi2v_and_back_keeps_evenly_growing_boxes(first: Box, shifts: list[tuple[float, float]], grow: float) -> None:
    given = Tracks(100, 100, (Track("object 1", even(first, shifts, grow)),))
    back = tracks_from_dict(json.loads(json.dumps(to_anyi2v(given))))
    # a dozen float32 roundings at up to 5000 pixels, 2.4e-4 each at the most
    np.testing.assert_allclose(back.objects[0].boxes, given.scaled(512, 512).objects[0].boxes, atol=4e-3)
    assert not any("sizes change" in line for line in lost_in_anyi2v(given))


@given(tracks())
def test_anyi2v_and_back_keeps_ends_centres_and_inner_points_of_any_tracks(given: Tracks) -> None:
    expected = given.scaled(512, 512).objects
    # float32 cannot tell the sides of thinner boxes apart
    assume(all(min(x1 - x0, y1 - y0) > 0.01 for track in expected for x0, y0, x1, y1 in track.boxes))
    back = tracks_from_dict(to_anyi2v(given)).objects
    assert len(back) == len(expected)
    for one, other in zip(back, expected, strict=True):
        a, b = np.array(one.boxes), np.array(other.boxes)
        # as above
        np.testing.assert_allclose(a[[0, -1]], b[[0, -1]], atol=4e-3)
        np.testing.assert_allclose(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:], atol=1e-2)
        x0, y0, x1, y1 = other.boxes[0]
        if all(x0 < x < x1 and y0 < y < y1 for x, y in other.points):
            # points stay as they are unless float32 moves the border past them
            np.testing.assert_allclose(one.points, other.salient_points, atol=4e-3)


def test_what_anyi2v_cannot_say_is_told(tmp_path: Path) -> None:
    track = Track("a", ((0, 0, 10, 10), (0, 0, 40, 40), (0, 0, 10, 10)), mask=np.ones((2, 2), dtype=bool))
    lost = "\n".join(lost_in_anyi2v(Tracks(512, 512, (track,))))
    assert "sizes change linearly in AnyI2V; these differ by up to 30 px" in lost
    assert "its mask is lost" in lost and "3 frames, but AnyI2V generates 16" in lost
    save_anyi2v(tmp_path / "a.json", Tracks(512, 512, (track,)))
    assert load_tracks(tmp_path / "a.json").objects[0].boxes == ((0, 0, 10, 10), (15, 15, 25, 25), (0, 0, 10, 10))
