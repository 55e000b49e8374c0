import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyi2v import cli
from anyi2v.checkpoints.checkpoint import save
from anyi2v.images.media import load_image, write_image
from anyi2v.reports.plots import draw_tracks
from anyi2v.tracks import Track, Tracks, load_tracks, save_tracks
from tests.networks import QUERIES, SHORT, tiny_backbone

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a picture of 60 x 40 with tracks, a mask, a cloud of points, a random backbone."""
    monkeypatch.chdir(tmp_path)
    save(tiny_backbone(), tmp_path / "tiny.safetensors")
    pixels = np.full((40, 60, 3), 240, dtype=np.uint8)
    pixels[10:30, 5:25] = (200, 30, 30)
    Image.fromarray(pixels).save("photo.png")
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:, 30:] = 255
    Image.fromarray(mask).save("mask.png")
    save_tracks("tracks.json", Tracks(60, 40, (Track("box", ((5, 10, 25, 30), (25, 10, 45, 30)), ((15, 20),)),)))
    np.save("cloud.npy", np.random.default_rng(0).random((100, 3)))
    return tmp_path


def show(*args: str) -> int:
    return cli.main(["condition", "--backbone", "tiny.safetensors", *args, "--out", "c.png"])


def test_what_is_read_and_parts_of_runs_are_not_replaced(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in files.iterdir()}
    read = "is also an input"
    for args, message in (
        (["photo.png", "--out", "photo.png"], read),
        (["photo.png", "--layer", "photo.png:mask.png", "--out", "mask.png"], read),
    ):
        assert cli.main(["condition", "--backbone", "tiny.safetensors", *args]) == 2
        assert message in capsys.readouterr().err
    Path("run.json").touch()
    assert cli.main(["condition", "--backbone", "tiny.safetensors", "photo.png"]) == 2
    assert "--out condition.png would replace a part of the run" in capsys.readouterr().err
    Path("run.json").unlink()
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def red(image: torch.Tensor) -> torch.Tensor:
    return (image[0] - image[1] > 0.3).nonzero().float().mean(0)


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_what_is_shown_is_what_animate_gets(files: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--fit", mode, "--width", "24", "--height", "20"]
    assert show("photo.png", "--tracks", "tracks.json", *size) == 0
    assert "c.png: " in capsys.readouterr().out
    settings = [f"--method.{key.replace('_', '-')}={getattr(SHORT, key)}" for key in ("steps", "inversion_timestep")]
    settings += ["--method.inject-hidden", "up_blocks.1.resnets.0.hidden", "--method.inject-query", *QUERIES]
    settings += ["--method.align", *QUERIES, "--method.optimise-steps", "1", "--method.iterations", "1"]
    # 12 x 10 latents: patches of 4 divide neither the width nor the height of all maps
    settings += ["--method.pca-dim", "4", "--method.patch", "4", "--prompt", "a red ball", "--threads", "1"]
    args = ["--image", "photo.png", "--tracks", "tracks.json", *size, *settings, "--out", "run"]
    assert cli.main(["animate", "--backbone", "tiny.safetensors", *args]) == 0
    assert Path("run/condition.png").read_bytes() == Path("c.png").read_bytes()
    # the run's picture has the video's frames for numbers
    write_image("expected.png", draw_tracks(load_image("run/condition.png"), load_tracks("run/run.json")))
    assert Path("run/tracks.png").read_bytes() == Path("expected.png").read_bytes()
    record = json.loads(Path("run/run.json").read_text())
    assert (record["width"], record["height"]) == (24, 20)
    # the box is where the thing is
    box = load_tracks("run/run.json").objects[0].boxes[0]
    row, column = red(load_image("run/condition.png")).tolist()
    assert (box[0] + box[2]) / 2 == pytest.approx(column + 0.5, abs=1)
    assert (box[1] + box[3]) / 2 == pytest.approx(row + 0.5, abs=1)
    # a repeated run starts from the fitted files, and fits nothing twice
    again = ["--repeat", "run/run.json", "--fit", mode, "--out", "again"]
    assert cli.main(["animate", *again]) == 0
    for name in ("condition.png", "tracks.png", "video.mp4"):
        assert Path("run", name).read_bytes() == Path("again", name).read_bytes()


def test_layers_lie_over_the_image_or_over_the_first(files: Path) -> None:
    assert show("photo.png", "--layer", "cloud.npy:mask.png", "--fit", "stretch") == 0
    first = Path("c.png").read_bytes()
    assert show("--layer", "photo.png", "--layer", "cloud.npy:mask.png", "--fit", "stretch") == 0
    assert Path("c.png").read_bytes() == first
    assert show("photo.png", "--fit", "stretch") == 0
    left = load_image("c.png")[..., :7]
    Path("d.png").write_bytes(first)
    assert torch.equal(load_image("d.png")[..., :7], left)
    assert not torch.equal(load_image("d.png"), load_image("c.png"))


@pytest.mark.parametrize(
    "flag",
    [
        ["--render", "depth"],
        ["--camera", "-60", "10", "3"],
        ["--fov", "20"],
        ["--up", "z"],
        ["--background", "0", "0", "1"],
    ],
)
def test_flags_of_geometry_change_its_picture_and_the_same_ones_do_not(files: Path, flag: list[str]) -> None:
    pictures = []
    for flags in ([], flag, flag):
        assert show("cloud.npy", *flags) == 0
        pictures.append(Path("c.png").read_bytes())
    assert pictures[0] != pictures[1] == pictures[2]


def test_the_help_does_not_name_a_flag_that_condition_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        show("--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The image is the first argument, without --image" in said and said.count("--image") == 1


@pytest.mark.parametrize("clusters", ["1", "99999"])
def test_a_number_of_segments_is_refused_before_the_image_is_read(
    files: Path, capsys: pytest.CaptureFixture[str], clusters: str
) -> None:
    assert cli.main(["segments", "absent.png", "--clusters", clusters]) == 2
    assert re.search(rf"{clusters} segments? requested; choose 2 to \d+, at most one", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "there is no condition image: give an image, or --layer"),
        (["nix.png"], "cannot read image nix.png"),
        (["nix.obj"], "cannot read nix.obj"),
        (
            ["photo.png", "--width", "17"],
            "the video's size is 17x16 px; both must be multiples of 2 .*; nearest: 16x16 and 18x16",
        ),
        (["photo.png", "--height", "0"], "the video's size is 16x0 px; .*; nearest: 16x2"),
        (["photo.png", "--layer", "photo.png"], "layer 2 .photo.png. needs a mask"),
        (["cloud.npy", "--fov", "0"], "camera: fov 0 is not allowed"),
        (["photo.png", "--tracks", "nix.json"], "cannot read nix.json"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    before = set(files.iterdir())
    assert show(*args) == 2
    assert re.fullmatch(f"anyi2v: error: .*{message}.*\n", capsys.readouterr().err)
    assert set(files.iterdir()) == before


def test_stretch_reaches_the_image_and_warnings_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth = np.full((40, 60), 800, dtype=np.uint16)
    depth[10:30, 5:25] = 3600
    Image.fromarray(depth).save("depth.png")
    assert show("depth.png") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("anyi2v: warning: image depth.png only has values from 3 to 14 of 255")
    assert show("depth.png", "--stretch", "--fit", "stretch", "--tracks", "tracks.json") == 0
    assert not capsys.readouterr().err
    assert load_image("c.png").aminmax() == (0, 1)


def test_doubtful_tracks_are_named_once_by_condition_and_animate(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = Track("cow", ((44, 10, 59, 25), (45, 10, 60, 25)))
    save_tracks("beside.json", Tracks(60, 40, (beside,)))
    Path("none.json").write_text('{"width": 60, "height": 40, "objects": []}')
    empty = "anyi2v: warning: object 'cow': its first box ("
    cut = "anyi2v: warning: object 'cow', frame 1: the crop keeps 40% of its box"
    settings = ["--image", "photo.png", "--method.steps", "2", "--method.inversion-timestep", "1", "--threads", "1"]
    settings += ["--method.inject-hidden", "up_blocks.1.resnets.0.hidden", "--method.inject-query", *QUERIES]
    settings += ["--method.align", *QUERIES, "--method.optimise-steps", "1", "--method.iterations", "1"]
    settings += ["--method.pca-dim", "4", "--prompt", "a red ball"]
    for command in (["condition", "photo.png", "--out", "d.png"], ["animate", *settings]):
        for tracks, fit, starts in (
            ("beside.json", "pad", [empty]),
            ("beside.json", "crop", [cut, empty]),
            ("none.json", "pad", ["anyi2v: warning: none.json has no objects to follow"]),
            (None, "pad", []),
        ):
            more = ["--tracks", tracks] if tracks else []
            where = ["--out", f"run{fit}{tracks}"] if command[0] == "animate" else []
            assert cli.main([*command, "--backbone", "tiny.safetensors", "--fit", fit, *more, *where]) == 0
            lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
            assert len(lines) == len(starts) and all(map(str.startswith, lines, starts)), lines


def test_only_png_is_written(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["condition", "photo.png", "--out", "c.jpg"]) == 2
    assert "cannot write c.jpg: the suffix must be .png" in capsys.readouterr().err
