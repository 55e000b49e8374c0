"""`anyi2v tracks show | convert | check`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyi2v.cli import main
from anyi2v.tracks import load_tracks
from tests.trackfiles import FILES, SIZE, write_masks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_masks(tmp_path)
    Image.new("RGB", SIZE, (90, 120, 90)).save(tmp_path / "image.png")
    for i, content in enumerate(FILES.values()):
        (tmp_path / str(i)).write_bytes(content)
    return tmp_path


def run(*args: object) -> int:
    return main(["tracks", *map(str, args)])


def test_files_that_are_read_are_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    image, tracks = folder / "image.png", folder / "0"
    assert run("show", tracks, "--image", image, "--out", image) == 2
    assert run("convert", tracks, "--to", "anyi2v", "--out", tracks) == 2
    assert capsys.readouterr().err.count("is also an input; give another name") == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("i", range(len(FILES)), ids=list(FILES))
def test_every_format_is_checked_shown_and_converted(folder: Path, capsys: pytest.CaptureFixture[str], i: int) -> None:
    title, size = list(FILES)[i], ("--size", *SIZE)
    assert run("check", folder / str(i), *size) == 0
    assert capsys.readouterr().out.startswith(f"{title}, ")
    assert run("show", folder / str(i), "--image", folder / "image.png", "--out", folder / "show.png") == 0
    drawn = np.asarray(Image.open(folder / "show.png"))
    assert drawn.shape == (SIZE[1], SIZE[0], 3) and (drawn != (90, 120, 90)).any()
    for to in ("own", "anyi2v"):
        out = folder / f"{to}.json"
        capsys.readouterr()
        assert run("convert", folder / str(i), *size, "--to", to, "--out", out, "--frames", 16) == 0
        written = "anyi2v track file" if to == "own" else "JSON of the published AnyI2V code"
        assert f"{out}: {written}, " in capsys.readouterr().out
        found = load_tracks(out)
        expected = load_tracks(folder / str(i), size=SIZE).resample(16)
        assert (found == expected) if to == "own" else len(found.objects) == len(expected.objects)


def test_check_prints_objects_and_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [[10, 10, 11, 300], [600, 10, 700, 300]]
    data = {"width": 640, "height": 480, "objects": [{"name": "cow", "boxes": boxes}]}
    (folder / "t.json").write_text(json.dumps(data))
    assert run("check", folder / "t.json") == 0
    out = capsys.readouterr().out
    assert out.startswith("anyi2v track file, 1 object, 2 frames, 640 x 480 pixels\n")
    assert "  cow: 2 frames, (10, 10, 11, 300) to (600, 10, 700, 300), the box's centre\n" in out
    assert "warning: object 'cow' partly leaves the frame in 1 of 8 frames, first in frame 8" in out
    assert "warning: object 'cow' jumps by more than its box" in out
    assert "warning: object 'cow' has a box smaller than a cell" in out


def test_check_looks_at_the_image_that_the_tracks_were_drawn_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.new("L", SIZE, 0)
    image.paste(255, (100, 100, 200, 200))
    image.save(folder / "white.png")
    boxes = {"there": [[90, 90, 210, 210], [190, 90, 310, 210]], "beside": [[400, 200, 500, 300], [410, 200, 510, 300]]}
    objects = [{"name": name, "boxes": value} for name, value in boxes.items()]
    (folder / "t.json").write_text(json.dumps({"width": 640, "height": 480, "objects": objects}))
    assert run("check", folder / "t.json", "--image", folder / "white.png") == 0
    out = capsys.readouterr().out
    assert "warning: object 'beside': its first box (400, 200, 500, 300) shows nothing that stands out" in out
    assert "object 'there': its first box" not in out
    assert "aspect ratio" not in out
    Image.new("L", (64, 64), 0).save(folder / "square.png")
    assert run("check", folder / "t.json", "--image", folder / "square.png") == 0
    expected = "warning: the tracks are drawn on 640 x 480 pixels, but the image has 64 x 64, another aspect ratio"
    assert expected in capsys.readouterr().out
    # the image says the size, too
    points = list(FILES).index("CoTracker .npz")
    assert run("check", folder / str(points), "--image", folder / "white.png") == 0


def test_box_size_reaches_the_boxes(folder: Path) -> None:
    last = list(FILES).index("ImageConductor JSON")
    out = folder / "o.json"
    assert run("convert", folder / str(last), "--to", "own", "--out", out, "--box-size", 20, 10) == 0
    assert load_tracks(out).objects[0].boxes[0] == (90, 95, 110, 105)


def test_a_lossy_conversion_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drag = list(FILES).index("DragAnything demo.json")
    assert run("convert", folder / str(drag), "--to", "anyi2v", "--out", folder / "o.json") == 0
    assert "warning: object '1': its mask is lost" in capsys.readouterr().err


def test_errors_exit_with_2_and_write_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npy = list(FILES).index("SG-I2V .npy")
    assert run("convert", folder / str(npy), "--to", "own", "--out", folder / "o.json") == 2
    assert "give it by --size WIDTH HEIGHT" in capsys.readouterr().err
    assert run("convert", folder / "0", "--to", "own", "--out", folder / "o.json", "--frames", 0) == 2
    assert run("show", folder / "image.png", "--image", folder / "image.png", "--out", folder / "o.json") == 2
    assert run("check", folder / "none") == 2
    assert not (folder / "o.json").exists()
