"""The inputs that ship with the package: complete, small, usable, and made by their command."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from anyi2v import cli, examples
from anyi2v.backbone.text import tokenize
from anyi2v.checkpoints.header import read_config
from anyi2v.examples import FOLDER, INDEX, ExampleName, copy_examples, example
from anyi2v.images.conditions import load_condition
from anyi2v.images.media import load_placed
from anyi2v.micro.world.world import MODALITIES
from anyi2v.tracks.contents import doubtful
from benchmarks.examples import main as make

CONFIG = read_config("micro")
NAMES = get_args(ExampleName)


def test_there_is_an_example_of_each_modality_and_nothing_else_in_the_folder() -> None:
    assert tuple(examples.examples()) == NAMES and set(MODALITIES) < set(NAMES)
    named = {file for name in NAMES for file in example(name).files} | {INDEX, "__init__.py"}
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == named
    assert sum((FOLDER / file).stat().st_size for file in named) < 200_000


def test_the_command_makes_the_shipped_files(tmp_path: Path) -> None:
    make(tmp_path)
    for path in tmp_path.iterdir():
        shipped = FOLDER / path.name
        if path.suffix == ".png":  # compressed by another library, the bytes may differ
            assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(shipped))), path
        else:
            assert path.read_text() == shipped.read_text(), path
    assert len(list(tmp_path.iterdir())) == len({file for name in NAMES for file in example(name).files}) + 1


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_job_without_doubts(name: str) -> None:
    chosen = example(name)
    if name == "mesh" and find_spec("embreex") is None:
        pytest.skip("meshes need embreex")
    image, fit = load_condition(**chosen.source().condition(CONFIG))
    tracks = load_placed(FOLDER / chosen.tracks, fit)
    assert tracks.objects and doubtful(image.numpy(), tracks) == []
    assert {len(track.boxes) for track in tracks.objects} == {CONFIG.frames}
    tokenize(CONFIG.text, [chosen.prompt])


def test_the_flags_of_an_example_make_the_same_request(tmp_path: Path) -> None:
    copy_examples(tmp_path)
    for name in NAMES:
        shipped = cli.parse(["animate", "--example", name])
        assert shipped.prompt == (example(name).prompt,) and shipped.tracks == FOLDER / f"{name}.json"
        copied = cli.parse(["animate", *example(name).arguments(tmp_path)])
        for field in ("prompt", "render", "camera"):
            assert getattr(copied, field) == getattr(shipped, field)
        first, second = (load_condition(**job.condition(CONFIG))[0] for job in (shipped, copied))
        assert (first == second).all()


def test_given_flags_replace_those_of_an_example() -> None:
    job = cli.parse(["animate", "--example", "edge", "--prompt", "a blue star", "--tracks", "t.json", "--seed", "3"])
    assert (job.prompt, job.tracks, job.seed) == (("a blue star",), Path("t.json"), 3)
    assert job.image == FOLDER / "edge.png"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--example", "edge", "--image", "x.png"], "--example edge has its own image"),
        (["--example", "layers", "--layer", "x.png"], "--example layers has its own image"),
        (["--example", "edge", "--repeat", "run.json"], "--repeat and --example cannot be combined"),
    ],
)
def test_an_example_is_not_mixed_with_another_image(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["animate", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"anyi2v: error: {said}")


def test_an_unknown_example_is_refused_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["animate", "--example", "photos"]) == 2
    names = "edge, depth, segmentation, photo, sketch, silhouette, mixed, mesh, layers"
    assert f"no example 'photos'; the closest are photo (all: {names})" in capsys.readouterr().err
    with pytest.raises(examples.InputError, match="no example 'photos'; the closest are photo"):
        example("photos")


def test_examples_are_listed_and_copied_but_never_over_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["examples"]) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == list(NAMES)
    assert all(example(name).prompt in said.out for name in NAMES) and "--example NAME" in said.err
    out = tmp_path / "inputs"
    assert cli.main(["examples", "--out", str(out)]) == 0
    assert f"--image {out / 'edge.png'}" in capsys.readouterr().out
    assert all((out / file).read_bytes() == (FOLDER / file).read_bytes() for file in example("layers").files)
    (out / "edge.png").unlink()
    (out / "depth.json").write_text("mine")
    assert cli.main(["examples", "--out", str(out)]) == 2
    assert "has edge.json, depth.png, depth.json; give another folder, nothing was" in capsys.readouterr().err
    assert (out / "depth.json").read_text() == "mine" and not (out / "edge.png").exists()


def test_a_run_of_an_example_names_no_file_of_the_package(tmp_path: Path) -> None:
    few = ["--method.steps", "2", "--method.optimise-steps", "0", "--method.inversion-stride", "100", "--threads", "1"]
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main(["animate", "--example", "edge", *few, "--method.inject-steps", "2", "--out", str(out)]) == 0
    record = (out / "run.json").read_text()
    assert str(FOLDER) not in record and json.loads(record)["prompt"] == example("edge").prompt
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(again)]) == 0
    assert (out / "video.gif").read_bytes() == (again / "video.gif").read_bytes()
