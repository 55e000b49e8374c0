"""The track document of the page, and what comes from files into it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anyi2v.errors import InputError
from anyi2v.images.fit import plan
from anyi2v.images.media import load_placed
from anyi2v.studio.document import checked, document_of, empty, framed, imported, written
from anyi2v.tracks import Box, Track, Tracks, save_anyi2v, tracks_from_dict
from anyi2v.tracks.keyframes import INTERPOLATIONS

NUMBERS = st.floats(0, 40, allow_subnormal=False)
BOXES = st.tuples(NUMBERS, NUMBERS, st.floats(1, 20), st.floats(1, 20)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes=st.lists(BOXES, min_size=1, max_size=6), frames=st.integers(1, 20), weight=st.sampled_from([1.0, 0.5]))
def test_a_document_says_what_the_tracks_say(boxes: list[Box], frames: int, weight: float) -> None:
    mask = np.ones((3, 4), dtype=bool)
    tracks = Tracks(64, 64, (Track("a", tuple(boxes), mask=mask, weight=weight), Track("b", tuple(boxes[:1]))))
    document = document_of(tracks, frames)
    found, wanted = checked(written(document))[1], tracks.resample(frames)
    for here, there in zip(found.objects, wanted.objects, strict=True):
        assert (here.name, here.points, here.weight) == (there.name, there.points, there.weight)
        np.testing.assert_allclose(here.resample(frames).boxes, there.boxes, atol=1e-5)
    assert found.objects[0].mask is not None and found.objects[0].mask.all()
    # an object that stands still has one key frame, a straight movement two
    assert len(document["objects"][1]["keyframes"]) == 1
    line = Tracks(64, 64, (Track("a", (boxes[0], boxes[-1])),))
    assert len(document_of(line, frames)["objects"][0]["keyframes"]) <= 2


@given(
    keys=st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True).map(sorted),
    frames=st.integers(5, 30),
)
def test_another_number_of_frames_keeps_all_key_frames(keys: list[int], frames: int) -> None:
    item = {"name": "a", "keyframes": [{"frame": key, "box": [1, 1, 9, 9]} for key in keys]}
    document = {**empty(16, 16, 12), "objects": [item]}
    moved = framed(document, frames)
    numbers = [key["frame"] for key in moved["objects"][0]["keyframes"]]
    assert numbers == sorted(set(numbers)) and len(numbers) == len(keys)
    assert numbers[0] >= 1 and numbers[-1] <= frames == moved["frames"]
    assert (numbers[0] == 1) == (keys[0] == 1) or frames < 12
    tracks_from_dict(moved)
    assert framed(document, 12) is document


def test_too_few_frames_are_refused() -> None:
    keys = [{"frame": frame, "box": [1, 1, 9, 9]} for frame in (1, 2, 3)]
    document = {**empty(16, 16, 3), "objects": [{"name": "a", "keyframes": keys}]}
    with pytest.raises(InputError, match="'a' has 3 key frames; 2 frames"):
        framed(document, 2)
    with pytest.raises(InputError, match="frames is 0"):
        framed(document, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"tracks": {"width": 1, "height": 1, "objects": []}}', "no key 'objects'"),
        ('{"bounding_box": []}', "no key 'objects'"),
        (
            '{"width": 9, "height": 9, "objects": [{"name": "a", "box": [0,0,9,9], "mask": "/etc/passwd"}]}',
            "another file",
        ),
        (" " * ((1 << 23) + 1), "at most"),
        (["a"], "no text"),
    ],
    ids=["no json", "deep", "record", "other format", "mask in a file", "long", "no text"],
)
def test_unusable_documents_are_refused(text: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked(text)


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_what_was_exported_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    keys = [{"frame": 1, "box": [1.5, 2, 30, 40]}, {"frame": 8, "box": [20, 2.25, 50, 60]}]
    item = {"name": "<b>", "keyframes": keys, "interpolation": kind, "weight": 0.5, "points": [[4, 5]]}
    document = {**empty(64, 48, 8), "objects": [item], "camera": {"pan": [3, 0], "zoom": 1.2}}
    (tmp_path / "tracks.json").write_text(written(document))
    fit = plan((640, 480), 64, 48, "crop")
    title, found = imported(tmp_path / "tracks.json", fit, 8)
    assert found == document and title == "anyi2v track file"
    # into another number of frames it is resampled
    _, other = imported(tmp_path / "tracks.json", fit, 5)
    assert other["frames"] == 5 and tracks_from_dict(other).objects[0].name == "<b>"


def test_tracks_over_the_source_come_onto_the_fitted_image(tmp_path: Path) -> None:
    file = tmp_path / "anyi2v.json"
    save_anyi2v(file, Tracks(512, 512, (Track("a", ((100, 200, 200, 300), (300, 200, 400, 300))),)))
    fit = plan((512, 512), 64, 64, "crop")
    _, document = imported(file, fit, 8)
    found = tracks_from_dict(document).objects[0].resample(8)
    np.testing.assert_allclose(found.boxes, load_placed(file, fit).resample(8).objects[0].boxes, atol=1e-4)


def test_masks_in_other_files_are_not_read(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "secret.png")
    content = {"1": {"mask_name": "../secret.png", "trajectory": [[1, 1], [2, 2]]}}
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "demo.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"demo\.json: object '1': mask_name: it is in another file"):
        imported(tmp_path / "inside" / "demo.json", plan((8, 8), 8, 8, "crop"), 4)
