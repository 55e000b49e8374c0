"""`anyi2v batch`: its files, their mistakes, and what is on disk whatever happens to the process that makes them."""

import csv
import dataclasses
import json
import logging
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anyi2v import cli, pipeline
from anyi2v.batch import ahead
from anyi2v.batch import run as batch_run
from anyi2v.batch.check import Task
from anyi2v.batch.jobs import BatchJob, read_jobs
from anyi2v.batch.report import MARK, write_report
from anyi2v.batch.request import Request
from anyi2v.batch.run import Outcome, largest_boxes
from anyi2v.batch.values import KEYS
from anyi2v.checkpoints.checkpoint import save
from anyi2v.cli.batch import Progress
from anyi2v.cli.messages import logged
from anyi2v.comparators.settings import TimeToMoveSettings
from anyi2v.errors import AnyI2VWarning, InputError, ResourceError
from anyi2v.execution import memory
from anyi2v.images import media
from anyi2v.images.source import ConditionSource
from anyi2v.reports import record
from anyi2v.reports.following import mean_error, problems, recorded
from anyi2v.tracks import Track, Tracks, read, save_tracks

from .networks import SHORT, tiny_backbone

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

GOOD = {"image": "image.png", "prompt": "a red ball", "tracks": "tracks.json", "backbone": "tiny.safetensors"}
OWN = {key: value for key, value in SHORT.to_dict().items() if value != type(SHORT)().to_dict()[key]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, an image and tracks over it."""
    folder = tmp_path_factory.mktemp("files")
    backbone = tiny_backbone()
    backbone.config = dataclasses.replace(backbone.config, method=OWN)
    save(backbone, folder / "tiny.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    save_tracks(folder / "tracks.json", Tracks(16, 16, (Track("ball", ((1, 1, 9, 9), (5, 1, 13, 9))),)))
    (folder / "broken.json").write_text('{"objects": 3}')
    (folder / "broken.png").write_text("no image")
    return folder


def write(folder: Path, *lines: Any, name: str = "jobs.jsonl") -> Path:
    """A file of jobs beside the others."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def batch(file: Path, out: Path, *flags: str) -> int:
    return cli.main(["batch", str(file), "--out", str(out), "--threads", "1", "--dtype", "float32", *flags])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run, without what tells of seconds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"}
    data = json.loads(found.pop("run.json"))
    return {**found, "record": json.dumps({**data, "timings": None}).encode()}


# reading


ROWS = st.lists(
    st.fixed_dictionaries(
        {"image": st.just("a.png"), "prompt": st.text("ab ,\"'\n:;", min_size=1)},
        optional={
            "seed": st.one_of(st.integers(0, 9), st.just("0..2"), st.just([3, 1])),
            "frames": st.integers(1, 8),
            "layers": st.just(["a.png", "b.png:c.png"]),
            "backbone_settings": st.booleans(),
            "method.lr": st.one_of(st.floats(0, 1), st.just([0.5, 0.25])),
            "method.pca_dim": st.just({"sweep": [1, 2]}),
            "method.mask": st.just("none"),
        },
    ),
    min_size=1,
    max_size=4,
)


@given(rows=ROWS)
def test_the_three_formats_say_the_same(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("formats")
    write(folder, *rows)
    write(folder, json.dumps(rows, indent=1), name="jobs.json")
    with (folder / "jobs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        for row in rows:
            # what is text is so in a cell, and all else is JSON
            plain = {key: value if key in ("image", "prompt") else json.dumps(value) for key, value in row.items()}
            writer.writerow(plain)
    jsonl, listed, table = (read_jobs(folder / f"jobs.{kind}") for kind in ("jsonl", "json", "csv"))
    assert not jsonl.problems and not listed.problems and not table.problems
    assert [job.request for job in jsonl.jobs] == [job.request for job in listed.jobs]
    assert [job.request for job in jsonl.jobs] == [job.request for job in table.jobs]
    assert [job.name for job in jsonl.jobs] == [job.name for job in listed.jobs]
    assert {job.line for job in jsonl.jobs} == set(range(1, len(rows) + 1))
    names = [job.name for job in jsonl.jobs]
    assert len(set(names)) == len(names)


def test_a_sweep_is_the_product_and_its_folders_say_what_differs(tmp_path: Path) -> None:
    line = {"image": "a.png", "prompt": "A red, red ball!", "seed": "-1..1", "method.lr": [0.1, 0.2]}
    jobs = read_jobs(write(tmp_path, line)).jobs
    assert [(job.request.seed, job.request.method.lr) for job in jobs] == [
        (seed, lr) for lr in (0.1, 0.2) for seed in (-1, 0, 1)
    ]
    assert jobs[0].name == "0001-a-red-red-ball-s-1-lr-0.1"
    assert jobs[0].request.source.image == tmp_path / "a.png"
    align = ["up_blocks.1.attentions.0.query"]
    line = {"image": "a.png", "prompt": "x", "name": "mine", "method": {"align": {"sweep": [align, align * 1, []]}}}
    (problem,) = read_jobs(write(tmp_path, line)).problems
    assert (problem.key, problem.line) == ("method.align", 1) and "is given twice" in problem.message
    line["method"] = {"align": {"sweep": [align, ["x"]]}, "lr": 0.5}
    assert [job.name for job in read_jobs(write(tmp_path, line)).jobs] == ["mine-align-1", "mine-align-2"]
    line |= {"method": {"align": align}, "seed": [4, 7]}  # a list that is one value
    jobs = read_jobs(write(tmp_path, line)).jobs
    assert [job.name for job in jobs] == ["mine-s4", "mine-s7"] and jobs[0].request.method.align == tuple(align)
    assert [job.settings for job in jobs] == [{"align": align}] * 2


def test_recipes_and_the_backbones_own_settings_are_as_for_animate(files: Path) -> None:
    lines = [GOOD, GOOD | {"recipe": "official"}, GOOD | {"backbone_settings": False}]
    jobs = read_jobs(write(files, *lines)).jobs
    for job, flags in zip(jobs, ([], ["--recipe", "official"], ["--no-backbone-settings"]), strict=True):
        single = cli.parse(["animate", "--backbone", str(files / "tiny.safetensors"), *flags])
        assert job.request.method == single.method


def test_layers_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a:b.png").touch()
    line = {"layers": ["x.png", "y.png:m.png", "a:b.png", "/z.png:/m.png"], "prompt": "a"}
    (job,) = read_jobs(write(tmp_path, line)).jobs
    here = tmp_path
    assert job.request.source.layer == (
        f"{here}/x.png",
        f"{here}/y.png:{here}/m.png",
        f"{here}/a:b.png",
        "/z.png:/m.png",
    )


def test_the_example_of_the_manual_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (tmp_path / "jobs.jsonl").write_text(block)
    found = read_jobs(tmp_path / "jobs.jsonl")
    assert not found.problems and Counter(job.line for job in found.jobs) == {1: 1, 2: 10, 3: 4, 4: 1}
    assert all(f"`{key}`" in text for key in KEYS if key != "method")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("jobs.txt", "{}", "must end in .jsonl, .json or .csv"),
        ("jobs.jsonl", "\n\n", "has no jobs"),
        ("jobs.json", "[]", "has no jobs"),
        ("jobs.json", "{}", "holds a JSON object; expected a list of jobs"),
        ("jobs.json", "[{]", "is not JSON: .* at line 1, column 3"),
        ("jobs.csv", "", "has no jobs"),
        ("jobs.csv", "image,prompt\n", "has no jobs"),
        ("jobs.csv", "image,image\n", "line 1: duplicate column 'image'"),
        ("jobs.csv", "image,\n", "line 1: a column has no name"),
        ("jobs.jsonl", b'{"prompt": "a"}\n\xff', "line 2: this is not text in UTF-8"),
        ("absent.jsonl", None, "cannot read .*absent.jsonl: No such file"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert batch(tmp_path / name, tmp_path / "out") == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# mistakes

HIDDEN = "up_blocks.1.resnets.0.hidden"
BAD: list[tuple[Any, str, str]] = [
    ("{", "", "this is not JSON"),
    ("[1]", "", "this is a JSON list; expected an object"),
    ('{"seed": 1, "seed": 2}', "", "duplicate key 'seed'"),
    ("[" * 100_000, "", "this JSON cannot be read"),
    ({"promt": "a"}, "promt", "unknown key; the closest are prompt"),
    ({"lr": 0.1}, "lr", "settings are written method.lr"),
    ({"prompt": None}, "prompt", "the prompt is missing"),
    ({"image": None}, "image", "the condition image is missing"),
    ({"prompt": 3}, "prompt", "it must be text"),
    ({"prompt": "a \ud800"}, "prompt", "a character that is not valid text"),
    ({"prompt": "a green ball"}, "prompt", "the word 'green' is not among"),
    ({"prompt": "a a a a a a a"}, "prompt", "the text tower takes at most 6"),
    ({"negative_prompt": "green"}, "negative_prompt", "the word 'green' is not among"),
    ({"image": "absent.png"}, "image", "absent.png: No such file"),
    ({"image": "broken.png"}, "image", "is not a readable image"),
    ({"image": None, "layers": ["image.png", "image.png"]}, "layers", "needs a mask"),
    ({"layers": "absent.png:image.png"}, "image", "absent.png"),
    ({"layers": []}, "layers", "it must be a list of file names"),
    ({"tracks": "absent.json"}, "tracks", "absent.json: No such file"),
    ({"tracks": "broken.json"}, "tracks", "broken.json"),
    ({"tracks": ""}, "tracks", "it is empty"),
    ({"backbone": "absent"}, "backbone", "no backbone"),
    ({"backbone": "image.png"}, "backbone", "is not a .safetensors file"),
    ({"embeddings": ["absent.pt"]}, "embeddings", "absent.pt"),
    ({"recipe": "mine"}, "recipe", "it must be 'paper' or 'official'"),
    ({"width": 17}, "width", "must be multiples of"),
    ({"height": -4}, "height", "must be multiples of"),
    ({"width": "16"}, "width", "it must be a whole number"),
    ({"frames": 0}, "frames", "0 frames requested"),
    ({"frames": 99}, "frames", "99 frames requested"),
    ({"fps": 0}, "fps", "0 frames per second"),
    ({"fit": "cut"}, "fit", "it must be 'crop' or"),
    ({"camera": [1, 2]}, "camera", "it must be a list of 3 numbers"),
    ({"sampler": "euler"}, "sampler", "it must be 'ddim' or"),
    ({"sampler": "dpm-solver-2m", "method.eta": 0.5}, "sampler", "is a setting of the sampler ddim"),
    ({"seed": 1.5}, "seed", "it must be a whole number"),
    ({"seed": True}, "seed", "it must be a whole number"),
    ({"seed": 2**64}, "seed", "at most 64 bits"),
    ({"seed": "3..1"}, "seed", "has no seed"),
    ({"seed": "0..99999999999"}, "seed", "has no seed, or more than"),
    ({"seed": []}, "seed", "is empty"),
    ({"seed": [1, 1]}, "seed", "1 is given twice"),
    ({"seed": {"list": [1]}}, "seed", 'write several values as {"sweep"'),
    ({"seed": "0..9999", "method.lr": [k / 100 for k in range(99)]}, "", "this expands to 990000 jobs"),
    ({"method": 3}, "method", "it must be an object of settings"),
    ({"method": {"lrr": 1}}, "method.lrr", "the method has no setting 'lrr'; the closest are lr"),
    ({"method.lr": "x"}, "method.lr", "lr='x' is not allowed"),
    ({"method.lr": [0.1, -1]}, "method.lr", "lr=-1.0 is not allowed"),
    ({"method.lr": 1, "method": {"lr": 2}}, "method.lr", "it is given twice"),
    ({"method.align": {"sweep": [["up_blocks.9.x"]]}}, "method.align", "up_blocks.9.x"),
    ({"method": {"inject_hidden": ["up_blocks.9.x"]}}, "method.inject_hidden", "up_blocks.9.x"),
    ({"method": {"align": []}}, "method", "leaves nothing to optimise"),
    ({"method.inversion_timestep": 9999}, "method.inversion_timestep", "9999"),
    ({"name": "a/b"}, "name", "cannot contain '/'"),
    ({"name": ".."}, "name", "must not start or end with a dot"),
    ({"name": "Index.html"}, "name", "the batch has a file of this name"),
    ({"name": "x" * 151}, "name", "longer than 150 bytes"),
    ({"name": "first"}, "name", "is also the folder of line 1"),
]


@pytest.mark.parametrize(("change", "key", "said"), BAD)
def test_a_bad_line_among_good_ones_is_refused_with_its_number_before_any_work(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, key: str, said: str
) -> None:
    bad = {**GOOD, **change} if isinstance(change, dict) else change
    file = write(files, {**GOOD, "name": "First"}, "", bad, GOOD)
    assert batch(file, tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    where = f"anyi2v: error: {file}, line 3{', ' if key else ''}{key}: "
    assert any(line.startswith(where) and said in line for line in lines), lines
    assert all(", line 3" in line for line in lines[:-1])
    assert lines[-1] == f"anyi2v: error: 1 line of {file} is unusable, for the reasons above; nothing was run"
    assert not (tmp_path / "out").exists()


def test_all_mistakes_of_all_lines_are_listed(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"promt": "a", "seed": "x", "width": "y"}
    worse = {**GOOD, "image": "absent.png", "prompt": "green", "negative_prompt": "green", "frames": 0, "seed": "0..4"}
    assert batch(write(files, json.dumps([bad, GOOD, worse]), name="jobs.json"), tmp_path / "out", "--check") == 2
    lines = [line.partition("jobs.json, ")[2] for line in capsys.readouterr().err.splitlines()]
    found = [line.partition(":")[0] for line in lines]
    keys = {"promt", "seed", "width", "image", "prompt"}
    assert set(found[:5]) == {f"entry 1, {key}" for key in keys}
    # the five jobs of an entry share its mistakes
    keys = ["frames", "image", "negative_prompt", "prompt"]
    assert sorted(found[5:-1]) == [f"entry 3, {key}" for key in keys]


def test_lines_of_csv_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    text = 'image,prompt,seed\na.png,"two\nlines",1\na.png,b\n\na.png,c,x\n"a"b,c,1\n'
    (tmp_path / "jobs.csv").write_text(text)
    found = read_jobs(tmp_path / "jobs.csv")
    assert [job.line for job in found.jobs] == [2]
    assert [(problem.line, problem.key) for problem in found.problems] == [(4, ""), (6, "seed"), (7, "")]
    assert "2 cells, but the header has 3 columns" in found.problems[0].message
    # a column that nobody knows is the header's mistake, not that of every line
    text = "image,promt,prompt,method.mask,method.lrr\na.png,x,a,none,1\na.png,x,b,dynamic,1\n"
    (tmp_path / "jobs.csv").write_text(text)
    found = read_jobs(tmp_path / "jobs.csv")
    assert [(problem.line, problem.key) for problem in found.problems] == [(1, "promt"), (1, "method.lrr")]
    assert [job.request.method.mask for job in found.jobs] == ["none", "dynamic"]


@given(
    st.dictionaries(
        st.sampled_from([*KEYS, "method.lr", "method.align", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sweep", "lr", "x"]), inner),
            max_leaves=4,
        ),
    )
)
def test_any_line_is_jobs_or_problems(tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any]) -> None:
    found = read_jobs(write(tmp_path_factory.mktemp("any"), line))
    assert bool(found.jobs) != bool(found.problems)
    assert all(problem.line == 1 and problem.message for problem in found.problems)


def test_each_file_is_read_once_for_a_thousand_lines(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(path: Any, *args: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(path, *args, **options)

        monkeypatch.setattr(module, name, call)

    counted(media.Image, "open")
    counted(read, "content_of")
    counted(record, "sha256")
    lines = [{**GOOD, "seed": k, "method.lr": k / 1e4} for k in range(998)]
    file = write(files, *lines, {**GOOD, "image": "broken.png"}, {**GOOD, "image": "broken.png"})
    assert batch(file, tmp_path / "out", "--check") == 2
    assert counts == {"open": 2, "content_of": 1, "sha256": 1}
    assert [line.split(", ")[1] for line in capsys.readouterr().err.splitlines()[:-1]] == ["line 999", "line 1000"]
    assert batch(write(files, *lines), tmp_path / "out", "--check") == 0
    assert "998 jobs, 0 of them done" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# work


JOBS = [{**GOOD, "seed": [0, 1]}, {**GOOD, "prompt": "a blue ball", "name": "blue"}, {**GOOD, "method.lr": 0.5}]
NAMES = ["0001-a-red-ball-s0", "0001-a-red-ball-s1", "blue", "0003-a-red-ball-s0"]
SINGLE = [["--seed=0"], ["--seed=1"], ["--prompt=a blue ball"], ["--method.lr=0.5"]]


@pytest.fixture(scope="module")
def singles(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What `anyi2v animate` makes of each of `JOBS`, by folder."""
    out = tmp_path_factory.mktemp("singles")
    found = {}
    for name, changes in zip(NAMES, SINGLE, strict=True):
        flags = [f"--{key}={files / GOOD[key]}" for key in ("image", "tracks", "backbone")]
        flags += [] if "--prompt" in changes[0] else ["--prompt=a red ball"]
        assert cli.main(["animate", *flags, *changes, "--threads=1", "--dtype=float32", f"--out={out / name}"]) == 0
        found[name] = contents(out / name)
    return found


def made(out: Path) -> dict[str, dict[str, bytes]]:
    """The runs of a batch that are there; nothing but runs, the page and the table is."""
    assert {path.name for path in out.iterdir() if path.is_file()} <= {"index.html", "jobs.csv"}
    return {path.name: contents(path) for path in out.iterdir() if path.is_dir()}


def table(out: Path) -> dict[str, dict[str, str]]:
    """The rows of jobs.csv by folder."""
    with (out / "jobs.csv").open(newline="", encoding="utf-8") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def test_runs_are_byte_equal_to_single_ones_and_made_once(
    files: Path,
    tmp_path: Path,
    singles: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loads, load = [], batch_run.load_backbone
    monkeypatch.setattr(batch_run, "load_backbone", lambda *args: loads.append(args) or load(*args))
    file, out = write(files, *JOBS), tmp_path / "out"
    assert batch(file, out, "--cache", str(tmp_path / "cache")) == 0
    assert len(loads) == 1
    assert made(out) == singles
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # of two prompts
    said = capsys.readouterr()
    assert re.search(r"^\[4/4\] line 3, 0003-a-red-ball-s0: made in \d+\.\d s$", said.err, re.MULTILINE)
    assert "4 made, 0 were there, 0 failed" in said.out
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")}
    (out / "blue" / "run.json").unlink()
    for path in (out / "blue").iterdir():
        path.unlink()
    assert batch(file, out, "--check") == 0
    assert "4 jobs, 3 of them done" in capsys.readouterr().err
    assert batch(file, out) == 0
    assert made(out) == singles
    assert "1 made, 3 were there, 0 failed" in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in out.glob("*/run.json")}
    assert [path.parent.name for path in times if times[path] != now[path]] == ["blue"]
    rows = table(out)
    assert list(rows) == NAMES and {row["status"] for row in rows.values()} == {"done"}
    assert rows["0003-a-red-ball-s0"]["method.lr"] == "0.5" and float(rows["blue"]["seconds"]) > 0
    data = json.loads((out / "blue" / "run.json").read_text())
    assert float(rows["blue"]["last_loss"]) == pytest.approx(data["losses"][-1]["loss"], rel=1e-5)
    error = mean_error(recorded(data))
    assert rows["blue"]["trajectory_error"] == ("" if error is None else f"{error:.2f}")
    assert recorded(data) and rows["blue"]["not_followed"] == "; ".join(problems(recorded(data)))
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and '<a href="blue/report.html">' in page


def test_changed_inputs_are_refused_or_made_again(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert batch(write(files, {**GOOD, "name": "a"}, {**GOOD, "name": "b", "seed": 1}), out) == 0
    before = made(out)
    capsys.readouterr()
    changed = write(files, {**GOOD, "name": "a"}, {**GOOD, "name": "b", "seed": 2})
    assert batch(changed, out) == 2
    said = capsys.readouterr().err
    assert "line 2, name: folder" in said and "has a run with other inputs (seed: 1, not 2)" in said
    assert "line 1," not in said and made(out) == before
    assert batch(changed, out, "--overwrite") == 0
    assert "1 made, 1 were there" in capsys.readouterr().out
    after = made(out)
    assert after["a"] == before["a"] and after["b"] != before["b"]
    # other files are not runs
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "notes.txt").write_text("mine")
    assert batch(changed, tmp_path / "other") == 2
    assert "line 1, name: folder" in capsys.readouterr().err
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("mine")
    assert batch(changed, tmp_path / "page", "--check") == 2
    assert "index.html exists and was not written by a batch" in capsys.readouterr().err
    assert batch(changed, out / "a") == 2
    assert "is a run; a batch needs a folder for its runs" in capsys.readouterr().err


def test_a_failure_leaves_its_reason_and_costs_no_other(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    animate, out = pipeline.animate, tmp_path / "out"

    def fails(*args: Any, seed: int, **options: Any) -> Any:
        if seed == 0:
            raise ZeroDivisionError("a <b>bug</b>\nin two lines")
        if seed == 1:
            raise InputError("the user's <i>mistake</i>")
        return animate(*args, seed=seed, **options)

    file = write(files, "", {**GOOD, "seed": "0..2"})
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "animate", fails)
        assert batch(file, out) == 1
    said = capsys.readouterr()
    assert "1 made, 0 were there, 2 failed" in said.out
    assert "[1/3] line 2, 0002-a-red-ball-s0: failed: a <b>bug</b> in two lines\n" in said.err
    errors = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/error.json")}
    bug, mistake = errors["0002-a-red-ball-s0"], errors["0002-a-red-ball-s1"]
    assert "in fails" in bug.pop("traceback")
    assert bug == {"message": "a <b>bug</b> in two lines", "kind": "ZeroDivisionError", "line": 2}
    assert mistake == {"message": "the user's <i>mistake</i>", "kind": "InputError", "line": 2}
    assert [path.name for path in (out / "0002-a-red-ball-s0").iterdir()] == ["error.json"]
    page, rows = (out / "index.html").read_text(), table(out)
    assert "a &lt;b&gt;bug&lt;/b&gt; in two lines" in page and "<b>bug" not in page
    assert rows["0002-a-red-ball-s1"]["error"] == "the user's <i>mistake</i>"
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "done"]
    assert batch(file, out) == 0
    assert "2 made, 1 were there, 0 failed" in capsys.readouterr().out
    assert not list(out.glob("*/error.json"))
    assert "bug" not in (out / "index.html").read_text()


def test_a_terminal_has_a_bar_and_lines_for_what_is_not_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    job = BatchJob(3, "a", Request(ConditionSource(image=Path("a.png")), "a"))
    with logged(logging.INFO):
        progress, task = Progress(3), Task(job, Path("a"), {})
        progress(Outcome(task, "made", 1.5))
        progress(Outcome(task, "failed", 0.5, "no room", ("a\nmistake?",)))
        progress(Outcome(task, "made", 0.5, warnings=("a\nmistake?", "another?")))
        progress.close()
    said = capsys.readouterr().err
    assert said.count("anyi2v: warning: line 3, a: a mistake?\n") == 1
    assert "anyi2v: warning: line 3, a: another?\n" in said
    assert (
        "anyi2v: error: [2/3] line 3, a: failed: no room\n" in said
        and "made in" not in said
        and "3/3" in said.splitlines()[-1]
    )


def test_names_and_prompts_are_escaped(tmp_path: Path) -> None:
    prompt, name = '<script>alert("x")</script>', "a&b <i>'%#ä"
    wanted = {"width": 16, "height": 16, "frames": 4}
    job = BatchJob(1, name, Request(ConditionSource(image=Path("a.png")), prompt))
    (tmp_path / name).mkdir()
    (tmp_path / name / "run.json").write_text(json.dumps({**wanted, "timings": {}, "losses": []}))
    (tmp_path / name / "report.html").touch()
    page = write_report(tmp_path, [Task(job, tmp_path / name, wanted)], title="<b>t").read_text()
    assert MARK in page
    assert "<script" not in page and "<i>" not in page and "<b>t" not in page and "&lt;b&gt;t" in page
    assert "a&amp;b &lt;i&gt;&#39;%#ä" in page
    assert 'href="a%26b%20%3Ci%3E%27%25%23%C3%A4/report.html"' in page
    (row,) = table(tmp_path).values()
    assert (row["prompt"], row["folder"], row["status"]) == (prompt, name, "done")


def test_other_methods_are_given_by_name_or_with_settings(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [GOOD | {"comparator": "time-to-move"}, GOOD | {"comparator": {"name": "time-to-move", "strong_step": 1}}]
    first, second = read_jobs(write(files, *lines)).jobs
    assert first.request.comparator == TimeToMoveSettings()
    assert second.request.comparator == TimeToMoveSettings(strong_step=1)
    assert batch(write(files, lines[1]), tmp_path / "out") == 0
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/run.json"))
    assert record["parts"] == {"method": "time-to-move"} and record["method_settings"]["strong_step"] == 1
    assert batch(write(files, lines[1]), tmp_path / "out", "--check") == 0
    still = {key: value for key, value in lines[0].items() if key != "tracks"}
    assert batch(write(files, still), tmp_path / "out", "--check") == 2
    assert "line 1, comparator: method time-to-move moves objects along tracks" in capsys.readouterr().err
    for value, said in (
        ("freetrajectory", "'freetrajectory' is not allowed; write one of freetraj, "),
        ({"edit_steps": 3}, "is not allowed; write one of"),
        ({"name": "freetraj", "edit_step": 3}, "edit_step"),
        ({"name": "freetraj", "edit_steps": -1}, "edit_steps"),
    ):
        (problem,) = read_jobs(write(files, GOOD | {"comparator": value})).problems
        assert problem.key == "comparator" and said in problem.message


def test_warnings_name_their_line_and_those_of_others_pass(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job = batch_run.run_job

    def warns(*args: Any, **options: Any) -> Any:
        warnings.warn("a picture is missing", AnyI2VWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return run_job(*args, **options)

    monkeypatch.setattr(batch_run, "run_job", warns)
    with pytest.warns(UserWarning, match="of a library"):
        assert batch(write(files, {**GOOD, "name": "one"}), tmp_path / "out") == 0
    assert "anyi2v: warning: line 1, one: a picture is missing\n" in capsys.readouterr().err


@pytest.mark.parametrize("boxes", [((1, 1, 9, 9), (5, 1, 13, 9)), ((-8, 0, 8, 16), (2.5, 3, 3, 3.5))])
@pytest.mark.parametrize("count", [1, 3])
def test_boxes_as_large_as_the_frame_need_the_most_memory(boxes: tuple[Any, ...], count: int) -> None:
    tracks = Tracks(16, 16, tuple(Track(f"ball {number}", boxes) for number in range(count)))
    config, video = tiny_backbone().config, (4, 16, 16)
    some, most = (memory.predict(config, SHORT, video, tracks=t) for t in (tracks, largest_boxes(tracks)))
    assert all(some.passes[stage] <= most.passes[stage] for stage in most.passes)


def test_jobs_that_fit_with_the_largest_boxes_are_predicted_once(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        box = (1 + number, 1, 9, 9)
        save_tracks(files / f"{number}.json", Tracks(16, 16, (Track("ball", (box, box)),)))
    lines = [GOOD | {"tracks": f"{number}.json"} for number in range(3)]
    asked: list[bool] = []
    whole = ((0, 0, 16, 16), (0, 0, 16, 16))

    def mode(job: Any, *_: Any, **__: Any) -> tuple[bool, str]:
        asked.append(job.tracks.objects[0].boxes == whole)
        if asked[-1] and not room:
            raise ResourceError("no room")
        return False, ""

    monkeypatch.setattr(batch_run, "memory_mode", mode)
    room = True
    assert batch(write(files, *lines), tmp_path / "out") == 0
    assert asked == [True]
    asked.clear()
    room = False
    assert batch(write(files, *lines), tmp_path / "again") == 0
    assert asked == [True, False, False, False]


def test_images_inverted_together_give_the_same_videos_but_for_rounding(
    files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []
    invert = ahead.invert_images

    def inverted(backbone: Any, images: Any, prompts: list[str], **options: Any) -> Any:
        assert len(images) == len(prompts)
        batches.append(prompts)
        return invert(backbone, images, prompts, **options)

    monkeypatch.setattr(ahead, "invert_images", inverted)
    # the same image under three prompts; one job has other settings, one noise instead of an inversion
    other = {**GOOD, "prompt": "a ball", "method.inversion_stride": 2}
    noise = {**GOOD, "prompt": "a ball", "seed": 5, "method.inversion": "noise"}
    lines = [*JOBS, {**GOOD, "prompt": "red ball"}, other, noise]
    file, out = write(files, *lines), tmp_path / "out"
    assert batch(file, out, "--invert-together", "2") == 0
    assert batches == [["a red ball", "a blue ball"], ["red ball"], ["a ball"]]
    for name in NAMES:
        record = json.loads((out / name / "run.json").read_text())
        alone = json.loads(singles[name]["record"])
        assert (record["features"], alone["features"]) == ("given", "computed")
        now, then = (
            iio.imread(found, extension=".gif").astype(int)
            for found in ((out / name / "video.gif").read_bytes(), singles[name]["video.gif"])
        )
        assert np.abs(now - then).max() <= 2  # of 255: sums in another order, and colours of a palette
    assert batch(file, out, "--invert-together", "2") == 0
    assert len(batches) == 3  # all are done


def test_a_batch_of_inversions_is_not_mixed_with_what_shares_them_otherwise(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (
        (["--cache", str(tmp_path)], "--invert-together cannot be combined with --cache"),
        (["--workers", "2"], "--invert-together cannot be combined with workers"),
        (["--invert-together", "0"], "--invert-together"),
    ):
        assert batch(write(files, *JOBS), tmp_path / "out", "--invert-together", "2", *flags) == 2
        assert said in capsys.readouterr().err


# processes

PROGRAM = """
import signal, sys, time
import anyi2v.pipeline

# a shell that starts the test run in the background has Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
animate, wait = anyi2v.pipeline.animate, {wait}

def slow(*args, **options):
    if options["seed"] in wait:
        print("begun", flush=True)
        time.sleep(60)
    return animate(*args, **options)

anyi2v.pipeline.animate = slow
{more}
from anyi2v.cli import main
sys.exit(main(sys.argv[1:]))
"""
SLOW_PAGE = """
import anyi2v.batch.report

def write_report(*args, **options):
    print("page", flush=True)
    time.sleep(60)

anyi2v.batch.report.write_report = write_report
"""


def process(file: Path, out: Path, *, wait: tuple[int, ...] = (), more: str = "") -> subprocess.Popen[str]:
    """The program in a process of its own, whose jobs of some seeds take a minute."""
    code = PROGRAM.format(wait=wait, more=more)
    flags = ["--out", str(out), "--threads", "1", "--dtype", "float32"]
    command = [sys.executable, "-c", code, "batch", str(file), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(running: subprocess.Popen[str], word: str = "begun") -> None:
    assert running.stdout is not None
    assert running.stdout.readline() == f"{word}\n", running.communicate()[1]


def test_a_batch_that_is_killed_goes_on_where_it_was(
    files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(files, *JOBS), tmp_path / "out"
    running = process(file, out, wait=(1,))
    begun(running)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert (out / NAMES[0] / "run.json").is_file()
    assert {path.name for path in (out / NAMES[1]).iterdir()} == {".anyi2v-lock"}
    first = (out / NAMES[0] / "run.json").stat().st_mtime_ns
    assert batch(file, out) == 0
    assert "3 made, 1 were there, 0 failed" in capsys.readouterr().out
    assert made(out) == singles
    assert (out / NAMES[0] / "run.json").stat().st_mtime_ns == first


def test_ctrl_c_discards_the_job_in_work_and_keeps_the_finished_ones(
    files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]]
) -> None:
    file, out = write(files, *JOBS), tmp_path / "out"
    running = process(file, out, wait=(1,))
    begun(running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1].startswith("anyi2v: interrupted; ") and "Traceback" not in said
    assert made(out) == {NAMES[0]: singles[NAMES[0]]}
    assert [row["status"] for row in table(out).values()] == ["done", "missing", "missing", "missing"]


def test_a_second_ctrl_c_stops_at_once(files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]]) -> None:
    running = process(write(files, *JOBS), tmp_path / "out", wait=(1,), more=SLOW_PAGE)
    for word in ("begun", "page"):
        begun(running, word)
        running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130 and "Traceback" not in said
    assert made(tmp_path / "out") == {NAMES[0]: singles[NAMES[0]]}


def test_two_processes_never_make_the_same_job(
    files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write(files, *JOBS), tmp_path / "out"
    other = process(file, out, wait=(1,))
    begun(other)
    try:
        # the one is done, the other is in the hands of the first process
        assert batch(file, out) == 0
    finally:
        other.kill()
        other.wait()
    said = capsys.readouterr()
    assert f"[2/4] line 1, {NAMES[1]}: skipped: another process is making it" in said.err
    assert "2 made, 1 were there, 0 failed, 1 are being made by another process" in said.out
    both = [process(file, out) for _ in range(2)]
    ends = [running.communicate(timeout=120) for running in both]
    assert [running.returncode for running in both] == [0, 0], ends
    assert sum(int(found) for text, _ in ends for found in re.findall(r"(\d+) made", text)) == 1
    assert made(out) == singles


ON_SMALL_DISK = """
out=$1 first=$2 last=$3 ballast=$4
shift 4
mount -t tmpfs -o size=8m none "$out" || exit 90
head -c "$ballast" /dev/zero > "$out/ballast"
"$@"
echo "first: $?"
cp -r "$out/." "$first"
rm "$out/ballast"
"$@"
echo "second: $?"
cp -r "$out/." "$last"
"""
"""Makes a batch twice on a file system of its own of 8 MiB: with a file that leaves little room, and without."""


def test_a_disk_that_fills_costs_what_did_not_fit_and_the_next_start_makes_it(
    files: Path, tmp_path: Path, singles: dict[str, dict[str, bytes]]
) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    folders = [tmp_path / name for name in ("out", "first", "last")]
    for folder in folders:
        folder.mkdir()
    block = 4096
    size = sum(-(-len(content) // block) * block for content in singles["blue"].values())
    program = [sys.executable, "-c", "import sys; from anyi2v.cli import main; sys.exit(main(sys.argv[1:]))"]
    flags = ["--out", str(folders[0]), "--threads", "1", "--dtype", "float32"]
    script = ["sh", "-c", ON_SMALL_DISK, "sh", *map(str, folders), str(2**23 - int(2.7 * size))]
    ended = subprocess.run(
        [*alone, *script, *program, "batch", str(write(files, *JOBS)), *flags], capture_output=True, text=True
    )
    # 2: there was no room for jobs.csv either
    assert re.search(r"first: [12]\n", ended.stdout) and "second: 0\n" in ended.stdout, ended.stderr
    assert "No space left on device" in ended.stderr and "Traceback" not in ended.stderr
    _, first, last = folders
    there = {path.parent.name for path in first.glob("*/run.json")}
    assert 1 <= len(there) < len(NAMES)
    assert "failed: cannot write" in ended.stderr
    for name in there:  # a run, of which some pictures may not have fitted
        found = contents(first / name)
        assert {"condition.png", "record"} <= found.keys() <= singles[name].keys()
        assert found.keys() & {"video.gif", "video.mp4"}
        assert all(found[file] == singles[name][file] for file in found.keys() - {"record"})
    for name in set(NAMES) - there:
        left = [path.name for path in (first / name).iterdir()] if (first / name).exists() else []
        assert left in ([], ["error.json"])
        assert contents(last / name) == singles[name]
    assert {path.parent.name for path in last.glob("*/run.json")} == set(NAMES)
