"""What the command line prints where: --quiet, --verbose, completion, and Ctrl-C."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from anyi2v import cli
from anyi2v.cli import messages
from anyi2v.cli.subcommands import completion, flat

from . import foreign
from .test_cli import files, flags  # noqa: F401  `files` is a fixture

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs


def test_a_plain_log_names_the_stages_and_quiet_prints_the_path_alone(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(flags(files, tmp_path / "plain")) == 0
    said = capsys.readouterr()
    assert re.match(r"memory: predicting what the job needs\nmemory: .* GiB.*\n", said.err)
    for stage in ("inversion", "optimisation", "denoising", "decode"):
        assert re.search(rf"^{stage}: started \(0 of \d+\)$", said.err, re.MULTILINE), stage
        assert re.search(rf"^{stage}: finished in \d+\.\d s \((\d+) of \1\)$", said.err, re.MULTILINE), stage
    video, followed, *_ = said.out.splitlines()
    assert "3 frames in" in video and followed.startswith("  thing: ")
    out = tmp_path / "quiet"
    assert cli.main(["--quiet", *flags(files, out)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{out / 'video.mp4'}\n", "")
    for name in ("video.gif", "masks.png"):
        assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_verbose_adds_the_machine_its_dtype_the_prediction_and_the_cache(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = [*flags(files, tmp_path / "a"), "--cache", str(tmp_path / "cache"), "-v"]
    assert cli.main(job) == 0
    first = capsys.readouterr().err
    assert re.search(r"execution\.machine: a matrix multiplication takes .* ms in float32, .* ms in bfloat16\n", first)
    assert re.search(r"cli\.device: device cpu, networks in torch\.\w+, 1 CPU threads\n", first)
    assert re.search(r"batch\.work: memory predicted in .* s: .* GiB", first)
    assert "features_cache: computing the inverted image in" in first
    assert re.search(r"batch\.work: stages: text .* s, .*decode .* s\n", first)
    assert cli.main([*job, "--out", str(tmp_path / "b"), "--seed", "1"]) == 0
    assert "features_cache: found the inverted image in" in capsys.readouterr().err


def test_errors_are_printed_also_with_quiet_and_the_last_flag_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["animate", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("anyi2v: error: animate needs --image")
    assert messages.split_level(["a", "--quiet", "b", "-v"]) == (logging.DEBUG, ["a", "b"])
    assert messages.split_level(["a", "--prompt=-v"]) == (logging.INFO, ["a", "--prompt=-v"])


def test_logging_is_as_before_once_a_command_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("anyi2v")
    before = (logger.level, logger.propagate, list(logger.handlers))
    assert cli.main(["-v", "examples"]) == 0
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_the_import_prints_nothing_and_configures_no_logging() -> None:
    code = (
        "import logging, anyi2v, anyi2v.timing\n"
        "lines = anyi2v.timing.Lines()\nlines('stage', 0, 1)\nlines('stage', 1, 1)\n"
        "named = [x for n, x in logging.root.manager.loggerDict.items() if n.startswith('anyi2v')]\n"
        "assert named and not any(getattr(x, 'handlers', ()) or getattr(x, 'level', 0) for x in named)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_messages_stand_above_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    with messages.logged(logging.INFO), tqdm(total=2, desc="bar") as bar:
        messages.LOGGER.warning("two\nlines")
        bar.update(2)
    assert "\ranyi2v: warning: two lines\n" in capsys.readouterr().err.replace(" \r", "\r").replace("\x1b[A", "")


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_tyro_anyi2v
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Completes words with the script for bash."""
    script = tmp_path_factory.mktemp("completion") / "anyi2v.bash"
    script.write_text(completion(["bash"], cli.COMMANDS))
    shell = shutil.which("bash")
    assert shell is not None, "this test needs bash"
    subprocess.run([shell, "-n", script], check=True)

    def complete(*words: str) -> list[str]:
        command = [shell, "-c", COMPLETE, "bash", script, "anyi2v", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    return complete


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["an"], ["animate"]),
        (["tracks", "ch"], ["check"]),
        (["bench", "s"], ["scaling", "stages"]),
        (["animate", "--method.mask"], ["--method.mask", "--method.mask-margin"]),
        (["animate", "--example", "s"], ["segmentation", "silhouette", "sketch"]),
        (["tracks", "show", "--qui"], ["--quiet"]),
    ],
)
def test_bash_completes_commands_flags_and_choices(
    bash: Callable[..., list[str]], words: list[str], found: list[str]
) -> None:
    assert sorted(bash(*words)) == found


def test_the_completion_script_is_printed_for_known_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef anyi2v\n")
    for wrong in ([], ["dish"], ["bash", "zsh"]):
        assert cli.main(["--print-completion", *wrong]) == 2
        assert "needs the name of a shell: bash, zsh" in capsys.readouterr().err


@pytest.mark.parametrize("name", flat(cli.COMMANDS))
def test_the_help_of_every_command_has_examples_and_the_flags_of_all(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*name.split(), "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"$ anyi2v {name}" in said
    assert "--quiet" in said and "--verbose" in said


INTERRUPTIBLE = """
import signal, sys

# a shell that starts the test run in the background has Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
from anyi2v.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("command", "begun"),
    [
        ("demo", "demo: started"),
        ("bench micro --cases 2", "cases: started"),
        ("bench backbone --cases 2", "measurements: started"),
        ("bench scaling", "axes: started"),
        ("segments {image}", "inversion: started"),
    ],
)
def test_ctrl_c_is_one_line_and_130(command: str, begun: str, files: Path, tmp_path: Path) -> None:  # noqa: F811
    words = [word.format(image=files / "image.png") for word in command.split()]
    options: dict[str, typing.Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    arguments = [sys.executable, "-c", INTERRUPTIBLE, *words]
    process = subprocess.Popen(arguments, cwd=tmp_path, start_new_session=True, **options)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(begun)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, said = process.communicate(timeout=240)
    assert process.returncode == 130 and out == ""
    assert said.splitlines()[-1].startswith("anyi2v: interrupted; ") and "Traceback" not in said


STOPPED = """
import importlib, signal, sys, time

# a shell that starts the test run in the background has Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

def stop(*args, **options):
    print("begun", flush=True)
    time.sleep(60)

name, function, *sys.argv[1:] = sys.argv[1:]
setattr(importlib.import_module(name), function, stop)
from anyi2v.__main__ import main
sys.exit(main())
"""
"""The program, which takes a minute as soon as it calls the named function."""


def interrupted(tmp_path: Path, function: str, *command: str) -> str:
    """What the command says when it is interrupted in `function`, such as "json.loads"."""
    arguments = [sys.executable, "-c", STOPPED, *function.rsplit(".", 1), *command]
    options: dict[str, typing.Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, cwd=tmp_path, **options)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    return said


def test_ctrl_c_leaves_no_file_of_a_conversion(tmp_path: Path) -> None:
    foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    command = ("convert", "--base", "base.safetensors", "--out", "out.safetensors")
    said = interrupted(tmp_path, "anyi2v.checkpoints.checkpoint._raw", *command)
    assert said.splitlines()[-1].startswith("anyi2v: interrupted; ") and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_ctrl_c_leaves_an_inspected_run_as_it_was(files: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "run"
    assert cli.main(flags(files, out)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = interrupted(tmp_path, "anyi2v.reports.inspection.write_inspection", "inspect", str(out))
    assert said.splitlines()[-1].startswith("anyi2v: interrupted; ") and "Traceback" not in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_ctrl_c_leaves_no_scores(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.gif").write_bytes(b"")
    command = ("eval", "videos", "--generated", ".", "--real", ".", "--metrics", "fd", "--out", "new/scores.json")
    said = interrupted(tmp_path, "anyi2v.evaluation.evaluate.evaluate", *command)
    assert re.fullmatch(r"anyi2v: interrupted; .*\n", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.gif", "1.gif"]


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    assert interrupted(tmp_path, "dataclasses.dataclass", "examples") == "anyi2v: interrupted\n"
