"""`anyi2v animate` and its runs on disk: interruptions, second processes, sweeps, repetitions, the home folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import anyi2v
from anyi2v import cli, versions
from anyi2v.batch import work
from anyi2v.reports.folder import claimed

from .test_cli import files, flags  # noqa: F401  `files` is a fixture

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

RECORDS = Path(__file__).parent / "records"
SLOW = """
import signal, sys, time
import anyi2v.pipeline

# a shell that starts the test run in the background has Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

def animate(*args, **kwargs):
    print("begun", flush=True)
    time.sleep(60)

anyi2v.pipeline.animate = animate
from anyi2v.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The program, with a job that takes a minute."""


@pytest.fixture(scope="module")
def run(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A finished run, not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main([*flags(files, out), "--seed", "7"]) == 0
    return out


def slow(*args: str) -> subprocess.Popen[str]:
    """The program, once its job has begun."""
    command = [sys.executable, "-c", SLOW, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("prompts", [1, 2])
def test_ctrl_c_is_one_line_and_130_and_leaves_nothing(files: Path, tmp_path: Path, prompts: int) -> None:  # noqa: F811
    process = slow(*flags(files, tmp_path / "new" / "out"), *["--prompt", "a a"] * (prompts - 1))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.fullmatch(r"memory: predicting what the job needs\nmemory: .*\nanyi2v: interrupted; .*\n", said)
    assert not list(tmp_path.iterdir())


def test_a_second_process_ends_at_once_and_a_killed_one_is_no_obstacle(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    process = slow(*flags(files, out))
    assert cli.main(flags(files, out)) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"anyi2v: error: another process is writing to folder .*out; wait until .*\n", said)
    process.kill()
    process.wait()
    assert [path.name for path in out.iterdir()] == [".anyi2v-lock"]
    assert cli.main(flags(files, out)) == 0
    assert not list(out.glob(".*"))


def test_workers_leave_ctrl_c_to_their_parent_and_tidy_up(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from multiprocessing import get_context
from anyi2v.cli import main
from anyi2v.files import atomic
from anyi2v.micro.benchmark.workers import quiet

signal.signal(signal.SIGINT, signal.default_int_handler)

class Job:
    def run(self):
        with get_context("fork").Pool(2, initializer=quiet) as pool:
            pool.map(work, range(2))

def work(number):
    with atomic("{tmp_path}/" + str(number)) as temporary:
        temporary.write_text("half")
        os.write(1, b"begun\\n")
        time.sleep(60)

from anyi2v import cli
cli.parse = lambda args: Job()
sys.exit(main([]))
"""
    command = [sys.executable, "-c", code]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **options, start_new_session=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.count("\n") == 1
    for _ in range(100):
        if not list(tmp_path.iterdir()):
            break
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_without_ffmpeg_all_but_the_mp4_is_written(
    files: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    there: bool,
) -> None:
    if not there:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nonexistent/ffmpeg")
    out = tmp_path / "out"
    assert cli.main([*flags(files, out), "--prompt", "a a"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("anyi2v: warning: no .mp4 files will be written, only GIFs:") == (not there)
    assert printed.err.count("warning") == (not there)
    assert printed.out.count("video.mp4: 3 frames" if there else "video.gif: 3 frames") == 2
    assert (out / "prompts.png").is_file()
    for folder in (out / "01-a-red", out / "02-a-a"):
        assert len(list(folder.glob("*.mp4"))) == 2 * there and len(list(folder.glob("*.gif"))) == 2
        failed = json.loads((folder / "run.json").read_text())["failed_outputs"]
        assert failed.keys() == (set() if there else {"video.mp4", "side_by_side.mp4"})
        assert ("data:image/gif" in (folder / "report.html").read_text()) != there


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seed", "8"], "seed: 0, not 8"),
        (["--method.lr", "0.5"], "method lr: 0.01, not 0.5"),
        (["--negative-prompt", "red"], 'negative_prompt: "", not "red"'),
        (["--fps", "9"], "fps: 8, not 9"),
        (["--frames", "2"], "frames: 3, not 2"),
        (["--width", "16"], "width: 32, not 16"),
        (["--fit", "pad"], "checksums condition: "),
        (["--dtype", "bfloat16"], 'dtype: "float32", not "bfloat16"'),
        (["--low-memory"], "low_memory: false, not true"),
        (["--tracks", "other.json"], "checksums tracks: "),
        (["--backbone", "other.safetensors"], "backbone sha256: "),
    ],
)
def test_a_run_of_a_sweep_counts_as_finished_only_if_all_that_was_asked_for_is_equal(
    files: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: Path,
    change: list[str],
    said: str,
) -> None:
    data = json.loads((run / "run.json").read_text())
    shutil.copy(files / "tracks.json", tmp_path / "other.json")
    text = (tmp_path / "other.json").read_text()
    (tmp_path / "other.json").write_text(text.replace("20", "21"))
    monkeypatch.chdir(tmp_path)
    other = anyi2v.load(files / "tiny.safetensors")
    next(other.unet.parameters()).data.add_(1)
    anyi2v.save(other, "other.safetensors")
    # a folder that the sweep would make, as it would be
    for folder, prompt in (("01-a-red", "a red"), ("02-a-a", "a a")):
        shutil.copytree(run, tmp_path / "out" / folder)
        record = {**data, "prompt": prompt, "seed": 0, "dtype": "float32"}
        (tmp_path / "out" / folder / "run.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    job = [*flags(files, tmp_path / "out"), "--prompt", "a a"]
    assert cli.main([*job, *change]) == 2
    error = capsys.readouterr().err
    assert said in error and "01-a-red has a run with other inputs" in error
    assert "use --overwrite to rerun all" in error
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    if change[0] == "--seed":
        assert cli.main(job) == 0  # nothing is missing
        assert cli.main([*job, *change, "--overwrite"]) == 0
        assert json.loads((tmp_path / "out" / "01-a-red" / "run.json").read_text())["seed"] == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prompts.png", "prompts.png exists, but none of the runs"),
        ("index.html", "index.html exists and was not written by anyi2v animate"),
    ],
)
def test_a_file_that_no_sweep_made_is_not_replaced(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    (tmp_path / name).write_text("mine")
    assert cli.main([*flags(files, tmp_path), "--prompt", "a a"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def repeat(run: Path, *more: str) -> int:
    return cli.main(["animate", "--repeat", str(run / "run.json"), "--out", str(run.parent / "again"), *more])


def test_an_exchanged_condition_or_track_is_not_repeated(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    image = Image.open(copy / "condition.png")
    image.save(copy / "condition.png", compress_level=0)  # another file, the same pixels
    assert repeat(copy) == 0
    shutil.rmtree(tmp_path / "again")
    image.putpixel((3, 4), (1, 2, 3))
    image.save(copy / "condition.png")
    capsys.readouterr()
    assert repeat(copy) == 2
    error = capsys.readouterr().err
    assert f"{copy / 'condition.png'} is not the image that {copy / 'run.json'} was made with" in error
    assert "checksums.condition" in error and "--image" in error
    assert cli.main(["inspect", str(copy)]) == 2
    image.save(tmp_path / "mine.png")
    assert repeat(copy, "--image", str(tmp_path / "mine.png")) == 0
    shutil.copy(run / "condition.png", copy)
    data = json.loads((copy / "run.json").read_text())
    data["tracks"]["objects"][0]["boxes"][0][0] += 0.25
    (copy / "run.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert repeat(copy, "--overwrite") == 2
    assert "checksums.tracks" in capsys.readouterr().err
    assert repeat(copy, "--overwrite", "--tracks", str(run / "run.json")) == 0


def test_other_versions_are_said_in_one_line(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    data = json.loads((copy / "run.json").read_text())
    data["versions"] |= {"torch": "1.0", "python": "3.0"}
    data |= {"processor": "abacus", "features": "given"}
    (copy / "run.json").write_text(json.dumps(data))
    assert repeat(copy) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 2
    assert f"torch 1.0 (here {torch.__version__})" in said[0] and "python 3.0" in said[0]
    assert "processor abacus" in said[0] and "numpy" not in said[0]
    assert "with features of another job" in said[1]


def test_a_run_of_an_earlier_version_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record is as version 0.1.0 wrote it; what it asks for is unchanged, and the new version is said."""
    former = shutil.copytree(RECORDS / "0.1.0", tmp_path / "run")
    monkeypatch.setattr(versions, "version", lambda name: "1.0.0" if name == "anyi2v" else version(name))
    assert repeat(former) == 0
    assert "run.json was made with anyi2v 0.1.0 (here 1.0.0)" in capsys.readouterr().err
    wanted, found = (json.loads((folder / "run.json").read_text()) for folder in (former, tmp_path / "again"))
    assert found.pop("versions")["anyi2v"] == "1.0.0"
    assert wanted.pop("method").items() <= found.pop("method").items()  # later versions may have further settings
    measured = ("versions", "processor", "timings", "losses")
    assert {key: value for key, value in wanted.items() if key not in measured}.items() <= found.items()


@pytest.mark.parametrize("low_memory", [True, False])
def test_low_memory_is_recorded_as_used_and_repeated_as_recorded(
    tmp_path: Path,
    files: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    low_memory: bool,
) -> None:
    monkeypatch.setattr(work, "memory_mode", lambda *_: (low_memory, ""))  # as chosen by what is free
    out = tmp_path / "out"
    assert cli.main(flags(files, out)) == 0
    assert json.loads((out / "run.json").read_text())["low_memory"] == low_memory
    job = cli.parse(["animate", "--repeat", str(out / "run.json")])
    assert job.low_memory == low_memory
    monkeypatch.setattr(work, "memory_mode", lambda *_: (True, ""))  # there is less memory now
    assert repeat(out) == 0
    assert ("needed more memory than is free here" in capsys.readouterr().err) != low_memory


def test_operators_are_recorded_and_repeated(
    tmp_path: Path,
    files: Path,  # noqa: F811
) -> None:
    out = tmp_path / "out"
    assert cli.main([*flags(files, out), "--operators", "reference"]) == 0
    assert json.loads((out / "run.json").read_text())["operators"] == "reference"
    job = cli.parse(["animate", "--repeat", str(out / "run.json")])
    assert job.operators == "reference"


def test_a_run_that_was_killed_while_it_was_put_in_place_can_be_repeated(tmp_path: Path, run: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / ".anyi2v-placing").mkdir()
    (copy / "run.json").rename(copy / ".anyi2v-placing" / "run.json")
    assert repeat(copy) == 0
    assert {path.name for path in copy.iterdir()} == {path.name for path in run.iterdir()}


def test_an_inspection_keeps_what_is_not_its_own_and_is_claimed(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "inspection").mkdir()
    for name in ("notes.txt", "features_step_77.png"):
        (copy / "inspection" / name).write_text("x")
    assert cli.main(["inspect", str(copy), "--steps", "0"]) == 0
    names = {path.name for path in (copy / "inspection").iterdir()}
    assert {"notes.txt", "gallery.json", "features_step_00.png"} <= names and "features_step_77.png" not in names
    # another process writes to it: this one is asked through a thread's own claim
    code = "import sys; from anyi2v.cli import main; sys.exit(main(['inspect', sys.argv[1]]))"
    with claimed(copy):
        ended = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("anyi2v: error: another process is writing to folder")


def test_the_home_folder_in_every_flag_and_in_python(
    files: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    shutil.copytree(files, home)
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    names = {"image": "image.png", "tracks": "tracks.json", "backbone": "tiny.safetensors"}
    job = ["animate", *(f"--{flag}=~/{name}" for flag, name in names.items()), "--prompt=a red", "--threads=1"]
    assert cli.main([*job, "--out=~/out", "--cache=~/kept"]) == 0
    assert (home / "out" / "run.json").is_file() and list((home / "kept" / "anyi2v-inversions").iterdir())
    assert cli.main(["animate", "--repeat=~/out/run.json", "--out=~/again"]) == 0
    assert cli.main(["animate", *job[1:], "--layer=~/image.png:~/image.png", "--out=~/layers"]) == 0
    assert cli.main(["inspect", "~/out"]) == 0
    assert cli.main(["tracks", "convert", "~/tracks.json", "--to=own", "--out=~/t.json"]) == 0
    backbone = anyi2v.load("~/tiny.safetensors")
    image = anyi2v.load_image("~/out/condition.png")
    result = anyi2v.animate(backbone, image, "a red", anyi2v.load_tracks("~/t.json"), cache=Path("~/kept"))
    result.save("~/saved.gif")
    anyi2v.save(backbone, "~/saved.safetensors")
    assert (home / "saved.gif").is_file() and (home / "saved.safetensors").is_file()
    assert not list(here.iterdir())
    assert not [path for path in home.rglob("*") if path.name.startswith((".anyi2v-", "~"))]


@pytest.mark.parametrize("flag", ["out", "image", "tracks", "cache", "backbone", "repeat"])
def test_a_name_of_260_letters_is_one_line(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    assert cli.main([*flags(files, tmp_path / "out"), f"--{flag}", str(tmp_path / ("x" * 260))]) == 2
    assert re.fullmatch(r"anyi2v: error: .*xxx.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
    if flag == "backbone":
        with pytest.raises(anyi2v.AnyI2VError, match="no backbone"):
            anyi2v.load(tmp_path / ("x" * 260))
