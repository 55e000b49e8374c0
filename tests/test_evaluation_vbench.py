"""Runs under VBench's names: all of them, as they are, and none in the place of another."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyi2v import cli
from anyi2v.evaluation.vbench import VIDEO, plan


def run_of(folder: Path, prompt: object, seed: object, content: bytes = b"video") -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"prompt": prompt, "seed": seed}))
    (folder / VIDEO).write_bytes(content)


def export(*args: str) -> int:
    return cli.main(["eval", "vbench-export", *args])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_videos_are_named_after_prompt_and_order_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("z", 3), ("a", 20), ("m", 1)):
        run_of(Path("runs", name), "a red circle, moving.", seed, name.encode())
    run_of(Path("runs", "other"), "a blue star", 0, b"star")
    (Path("runs") / "unfinished").mkdir()
    assert export("runs", "--out", "named") == 0
    found = {path.name: path.read_bytes() for path in Path("named").iterdir()}
    assert found == {
        "a red circle, moving.-0.mp4": b"m",
        "a red circle, moving.-1.mp4": b"z",
        "a red circle, moving.-2.mp4": b"a",
        "a blue star-0.mp4": b"star",
    }
    assert "named: 4 videos of 2 prompts" in capsys.readouterr().out


def test_an_interrupted_export_can_be_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        run_of(Path("runs", name), "a red circle", seed, name.encode())
    assert export("runs", "--out", "named") == 0
    Path("named/a red circle-1.mp4").unlink()
    before = Path("named/a red circle-0.mp4").stat().st_mtime_ns
    assert export("runs", "--out", "named") == 0
    assert "named: 1 video of 1 prompt" in capsys.readouterr().out
    assert Path("named/a red circle-1.mp4").read_bytes() == b"b"
    assert Path("named/a red circle-0.mp4").stat().st_mtime_ns == before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(st.tuples(st.sampled_from(["a-1", "a", "b - 0", "c.mp4"]), st.integers(0, 9)), min_size=1, max_size=8)
)
def test_every_run_has_a_name_of_its_own(tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[str, int]]) -> None:
    runs = tmp_path_factory.mktemp("runs")
    for number, (prompt, seed) in enumerate(jobs):
        run_of(runs / str(number), prompt, seed)
    names = plan(runs, runs / "out")
    assert len({*names.values()}) == len(jobs)
    stems = Counter(re.sub(r"-\d+$", "", path.stem) for path in names.values())  # how VBench reads prompts
    assert stems == Counter(prompt for prompt, _ in jobs)
    for prompt, count in stems.items():
        assert {path.stem for path in names.values()} >= {f"{prompt}-{index}" for index in range(count)}


def existing() -> None:
    run_of(Path("runs/a"), "a", 0)
    Path("named").mkdir()
    Path("named/a-0.mp4").write_bytes(b"of somebody else")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "runs is not a folder"),
        (lambda: Path("runs/x").mkdir(parents=True), "runs holds no run"),
        (
            lambda: run_of(Path("runs/a"), "up/down", 0),
            "cannot be a file's name, which VBench reads it from: it has '/'",
        ),
        (lambda: run_of(Path("runs/a"), "a\nb", 0), "it has '\\n'"),
        (lambda: run_of(Path("runs/a"), "", 0), "it is empty"),
        (lambda: run_of(Path("runs/a"), "ä" * 200, 0), "406 bytes"),
        (lambda: run_of(Path("runs/a"), None, 0), "it has no prompt or no seed"),
        (lambda: run_of(Path("runs/a"), "a", "0"), "it has no prompt or no seed"),
        (lambda: (run_of(Path("runs/a"), "a", 0), Path("runs/a", VIDEO).unlink()), "runs/a has no video.mp4"),
        (lambda: (run_of(Path("runs/a"), "a", 0), Path("runs/a/run.json").write_text("{")), "is not JSON"),
        (lambda: (run_of(Path("runs/a"), "a", 0), Path("named").touch()), "named is a file; give a folder"),
        (existing, "named/a-0.mp4 already exists with other contents"),
    ],
)
def test_what_cannot_be_named_is_one_line_and_nothing_is_copied(
    capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    assert callable(make)
    make()
    assert export("runs", "--out", "named") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert [path.read_bytes() for path in Path("named").glob("*")] in ([], [b"of somebody else"])
