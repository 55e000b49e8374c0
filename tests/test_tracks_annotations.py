"""Files of spline editors and annotation programs, lines of numbers, and texts in any encoding."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks import Tracks, load_tracks
from tests.trackfiles import COCO, FILES, LABELME, MOT, SIZE, SPLINE


def load(folder: Path, content: Any, **hints: Any) -> Tracks:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "file").write_text(text)
    return load_tracks(folder / "file", **hints)


def centres(tracks: Tracks, number: int = 0) -> list[tuple[float, float]]:
    return [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in tracks.objects[number].boxes]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
@pytest.mark.parametrize("title", ["anyi2v track file", "FreeTraj .txt", "JSON of the published AnyI2V code"])
def test_texts_of_any_byte_order_are_read(tmp_path: Path, mark: bytes, title: str) -> None:
    encoding = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    text = (
        FILES[title].decode()
        if title != "anyi2v track file"
        else '{"width":9,"height":9,"objects":[{"name":"ö","box":[1,1,5,5]}]}'
    )
    (tmp_path / "plain").write_text(text, encoding="utf-8")
    (tmp_path / "marked").write_bytes(mark + text.encode(encoding.get(mark, "utf-32-le")))
    assert load_tracks(tmp_path / "marked") == load_tracks(tmp_path / "plain")


def test_half_a_letter_of_utf_16_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(codecs.BOM_UTF16_LE + b"{\0x")
    with pytest.raises(InputError, match="neither text nor NumPy"):
        load_tracks(tmp_path / "file")


@pytest.mark.parametrize(("content", "objects"), [(SPLINE[0], 1), (SPLINE, 2), ([[], *SPLINE], 2)])
@pytest.mark.filterwarnings("ignore:.*empty path:anyi2v.errors.AnyI2VWarning")
def test_splines_are_paths_in_pixels_of_the_canvas(tmp_path: Path, content: Any, objects: int) -> None:
    found = load(tmp_path, content, size=(512, 400), box_size=(10, 6))
    assert (found.width, found.height, len(found.objects)) == (512, 400, objects)
    assert centres(found) == [(100 + 8 * k, 200) for k in range(16)]
    assert found.objects[0].boxes[0] == (95, 197, 105, 203)
    with pytest.raises(InputError, match="spline editor JSON has pixel coordinates, but not the image's size"):
        load(tmp_path, content)


def test_an_empty_path_is_named(tmp_path: Path) -> None:
    with pytest.warns(AnyI2VWarning, match="'object 1' has an empty path and was left out"):
        load(tmp_path, [[], *SPLINE], size=SIZE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"x": 1, "y": 2}, {"x": 1}], "spline editor JSON, path 1, point 2 has no 'y'"),
        ([{"x": 1, "y": 2}, 3], "path 1, point 2 must be an object {...}, not 3"),
        ([{"x": 1, "y": "a"}], "path 1, point 1: y must be a number, not 'a'"),
        ([[{"x": 1, "y": 2}], 5], "path 2 must be a list, not 5"),
    ],
)
def test_what_is_wrong_about_splines_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, content, size=SIZE)


def test_mot_has_an_object_per_id_linear_in_gaps(tmp_path: Path) -> None:
    found = load(tmp_path, MOT, size=SIZE)
    assert [track.name for track in found.objects] == ["object 1", "object 2"]
    for i, track in enumerate(found.objects, 1):
        np.testing.assert_allclose(
            track.boxes, [(100 * i + 10 * k, 50, 100 * i + 10 * k + 80, 170) for k in range(1, 9)]
        )
    spaced = "\n".join(line.replace(",", " ") for line in MOT.splitlines())
    assert load(tmp_path, spaced, size=SIZE) == found


def test_mot_counts_from_its_first_frame_and_names_who_comes_later(tmp_path: Path) -> None:
    lines = "5,1,10,10,20,20,1,1,1\n5,3,10,10,20,20,0,1,1\n7,1,30,10,20,20,1,1,1\n6,2,50,50,20,20,1,1,1\n"
    with pytest.warns(
        AnyI2VWarning, match=r"frame 5, that of the image, lacks 1 of 2 objects.*: object 2 \(from frame 6\)"
    ):
        found = load(tmp_path, lines, size=SIZE)
    assert [track.name for track in found.objects] == ["object 1"]  # and 3 does not count
    assert [box[0] for box in found.objects[0].boxes] == [10, 20, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,0,0,9,9\n1,1,0,0,9\n", "MOT .txt, line 2 is '1,1,0,0,9'; it must be frame, id, left, top, width, height"),
        ("1,1,0,0,9,9\n1,1,0,0,9,x\n", "MOT .txt, line 2 is"),
        ("1,1,0,0,9,9\n1,1,0,0,9,9\n", "line 2: id 1 already has a box in frame 1"),
        ("1.5,1,0,0,9,9\n", "line 1: frame 1.5 and id 1 must be whole numbers"),
        ("1,1,0,0,0,9\n", "object 1 ('object 1'), frame 1: box (0, 0, 0, 9) has zero width"),
        ("1,1,0,0,9,9\n9999999,1,0,0,9,9\n", "line 2: frame is 9999999; it must be 0 to 10000"),
        ("1,2\n3\n", "x,y .txt, line 2 is '3'; it must be x, y"),
    ],
)
def test_messages_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, text, size=SIZE)


@pytest.mark.parametrize("text", ["100,100\n150,120.5\n\n\n50 , 60\n", "100 100\n1.5e2\t120.5\n\n50;60"])
def test_lines_of_x_and_y_are_paths_between_empty_lines(tmp_path: Path, text: str) -> None:
    found = load(tmp_path, text, size=SIZE, box_size=(4, 4))
    assert centres(found) == [(100, 100), (150, 120.5)] and centres(found, 1) == [(50, 60)]


def test_labelme_joins_paths_to_the_shapes_of_their_label(tmp_path: Path) -> None:
    found = load(tmp_path, LABELME)
    assert (found.width, found.height) == SIZE
    objects = {track.name: track for track in found.objects}
    assert list(objects) == ["car", "wall", "sun", "sun 2", "bird"]
    assert objects["car"].boxes == ((200, 240, 330, 360), (220, 250, 350, 370), (280, 260, 410, 380))
    assert objects["sun"].boxes == ((480, 60, 520, 100),) and objects["sun 2"].boxes == ((340, 40, 460, 160),)
    assert [(x0 + 60, y0 + 60) for x0, y0, *_ in objects["bird"].boxes] == [(500, 60), (420, 80)]
    wall = objects["wall"]
    assert wall.boxes == ((40, 160, 200, 300),) and wall.mask is not None and wall.mask.shape == SIZE[::-1]
    assert wall.mask.sum() == pytest.approx(160 * 140 / 2, rel=0.02)
    assert wall.mask[170, 120] and not wall.mask[290, 60]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"shape_type": "mask"}, "LabelMe JSON, shape 1 ('car'): shape_type is 'mask'; it must be one of rectangle, "),
        ({"points": [[1, 2]]}, "shape 1 ('car'): a rectangle has 1 points; it needs 2 or more"),
        ({"points": [[1]]}, "shape 1 ('car'): points: entry 1 is [1]; it must be 2 numbers"),
        ({"label": 3}, "shape 1: label must be a text, not 3"),
        ({"points": [[1, 2], [1, 9]]}, "object 1 ('car'), frame 1: box (1, 2, 1, 9) has zero width"),
    ],
)
def test_what_is_wrong_about_shapes_is_named(tmp_path: Path, shape: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, {**LABELME, "shapes": [{**LABELME["shapes"][0], **shape}]})


def test_coco_of_one_image_stands_still(tmp_path: Path) -> None:
    found = load(tmp_path, COCO)
    assert (found.width, found.height) == SIZE
    assert [(track.name, track.boxes) for track in found.objects] == [
        ("car", ((200, 240, 330, 360),)),
        ("car 2", ((40.5, 160, 200.5, 300),)),
    ]
    with pytest.raises(InputError, match="COCO JSON has pixel coordinates, but not the image's size"):
        load(tmp_path, {"annotations": COCO["annotations"]})


@pytest.mark.parametrize("key", ["track_id", "instance_id"])
def test_coco_of_a_video_follows_its_track_ids(tmp_path: Path, key: str) -> None:
    images = [{"id": f"i{k}", "width": 100, "height": 80, "frame_id": k} for k in (2, 0, 1)]
    places = {("i0", 5): 10, ("i2", 5): 30, ("i0", 6): 50, ("i1", 6): 52, ("i2", 6): 54}
    items = [{"image_id": i, key: t, "category_id": 1, "bbox": [x, 0, 8, 8]} for (i, t), x in places.items()]
    data = {"images": images, "annotations": items, "categories": [{"id": 1, "name": "cat"}]}
    found = load(tmp_path, data)
    assert [(track.name, [box[0] for box in track.boxes]) for track in found.objects] == [
        ("cat 5", [10, 20, 30]),
        ("cat 6", [50, 52, 54]),
    ]
    for item in items:
        del item[key]
    with pytest.raises(InputError, match="annotation 1 has no track_id, but there are annotations of 3 images"):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "COCO JSON, annotation 1: bbox is [1, 2, 3]; it must be 4 numbers"),
        ({"image_id": None}, "COCO JSON, annotation 1: image_id is None; it must be a whole number or a text"),
    ],
)
def test_what_is_wrong_about_annotations_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, {**COCO, "annotations": [{**COCO["annotations"][0], **change}]})
