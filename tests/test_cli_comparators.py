"""`anyi2v animate --method ...`: settings as flags, records, repetitions, and what cannot be."""

import hashlib
import json
import typing
from pathlib import Path

import pytest

from anyi2v import cli
from anyi2v.checkpoints.sparse_control import load_control, save_control
from anyi2v.comparators.settings import SETTINGS, ComparatorName
from anyi2v.reports.record import differences

from .test_cli import files, flags, other_value, parse_animate  # noqa: F401  `files` is a fixture

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

SPARSE = ("--sparsectrl.control", "{files}/control.safetensors")
OWN = {
    "freetraj": ("--freetraj.edit-steps", "2", "--freetraj.subjects", "red"),
    "trailblazer": ("--trailblazer.trailing", "1", "--trailblazer.subjects", "red"),
    "sg-i2v": ("--sg-i2v.iterations", "1", "--sg-i2v.layers", "up_blocks.2.attentions.0", "--sg-i2v.injection"),
    "time-to-move": ("--time-to-move.strong-step", "2"),
    "sparsectrl": (*SPARSE, "--sparsectrl.frames", "1", "-1"),
}


def own(files: Path, name: str) -> list[str]:  # noqa: F811
    return [flag.format(files=files) for flag in OWN[name]]


@pytest.mark.parametrize("name", OWN)
def test_a_run_is_recorded_and_repeated_byte_for_byte(files: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main([*flags(files, out), "--method", name, *own(files, name)]) == 0
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(again)]) == 0
    for file in ("video.gif", "side_by_side.gif", "condition.png"):
        assert (out / file).read_bytes() == (again / file).read_bytes()
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (out, again))
    assert first.pop("timings").keys() == second.pop("timings").keys()
    assert first == second
    assert first["parts"] == {"method": name}
    recorded = SETTINGS[name].from_dict(first["method_settings"])  # type: ignore[index]
    assert recorded != SETTINGS[name]()  # type: ignore[index]
    assert getattr(parse_animate("--repeat", str(out / "run.json")), name.replace("-", "_")) == recorded


def test_a_control_network_that_has_changed_is_found(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy, out = tmp_path / "control.safetensors", tmp_path / "out"
    copy.write_bytes((files / "control.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert cli.main([*flags(files, out), "--method", "sparsectrl", "--sparsectrl.control", copy.name]) == 0
    recorded = json.loads((out / "run.json").read_text())
    assert recorded["method_settings"]["control"] == str(copy)  # a repetition may start elsewhere
    assert recorded["checksums"]["control"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    network = load_control(copy)
    network.bias.add_(1)
    save_control(network, copy)
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--out", str(tmp_path / "again")]) == 2
    assert f"{copy} is not the file that" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_another_method_may_be_asked_for_when_repeating(files: Path, tmp_path: Path) -> None:  # noqa: F811
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main([*flags(files, out), "--method", "time-to-move", *OWN["time-to-move"]]) == 0
    assert cli.main(["animate", "--repeat", str(out / "run.json"), "--method", "anyi2v", "--out", str(again)]) == 0
    assert json.loads((again / "run.json").read_text())["parts"] == {}
    assert (out / "video.gif").read_bytes() != (again / "video.gif").read_bytes()


def test_a_run_of_another_method_is_another_run() -> None:
    steered = {"parts": {"method": "freetraj"}, "method_settings": {"edit_steps": 2}}
    plain = {"parts": {}, "method_settings": {}}
    assert differences(steered, steered) == differences(plain, plain) == differences({}, plain) == []
    assert differences(steered, plain)[0] == 'parts method: "freetraj", not null'
    assert differences(plain, steered)[0] == 'parts method: null, not "freetraj"'
    other = {**steered, "method_settings": {"edit_steps": 3}}
    assert differences(steered, other) == ["method_settings edit_steps: 2, not 3"]


@pytest.mark.parametrize(
    ("method", "setting"),
    [(name, field) for name, kind in SETTINGS.items() for field in typing.get_type_hints(kind) if field != "subjects"],
)
def test_every_setting_is_a_flag(files: Path, method: ComparatorName, setting: str) -> None:  # noqa: F811
    kind, hint = SETTINGS[method], typing.get_type_hints(SETTINGS[method])[setting]
    (flag, *values), value = other_value(setting, hint, getattr(kind(), setting))
    flag = flag.replace("--method.", f"--{method}.")
    if isinstance(value, float):
        values, value = ["0.05"], 0.05
        value = value if getattr(kind(), setting) != value else 0.04
        values = [str(value)]
    job = parse_animate("--backbone", str(files / "tiny.safetensors"), "--method", method, flag, *values)
    assert job.comparator == kind.from_dict({setting: value}) != kind()


BAD = {
    "settings of another": (["--method", "trailblazer", "--freetraj.edit-steps", "3"], "add --method freetraj"),
    "settings of none": (["--time-to-move.weak-step", "3"], "the method is anyi2v; add --method time-to-move"),
    "subject": (["--method", "freetraj"], "in the order of the tracks, by `subjects` (flag --freetraj.subjects)"),
    "layer": (["--method", "sg-i2v"], "sg-i2v: layers: unknown hook point 'up_blocks.2.attentions.2'"),
    "clocks": (["--method", "time-to-move", "--time-to-move.strong-step", "3"], "smaller than steps"),
    "frames": (["--method", "sparsectrl", *SPARSE, "--sparsectrl.frames", "1", "9"], "frames has 9, but the video has"),
    "control": (["--method", "sparsectrl", "--sparsectrl.control", "absent"], "no sparse control network 'absent'"),
    "no control": (["--method", "sparsectrl"], "it is the default, give another with --sparsectrl.control"),
    "window": (["--method", "freetraj", "--freetraj.subjects", "red", "--method.window", "2"], "window=2"),
    "deep": (["--method", "trailblazer", "--trailblazer.subjects", "red", "--method.deep-every", "2"], "deep_every=2"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_one_line_and_no_run(
    files: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr("anyi2v.batch.work.load_backbone", None)  # nothing may be loaded
    args, message = BAD[case]
    assert cli.main([*flags(files, tmp_path / "out"), *(flag.format(files=files) for flag in args)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1
    assert not (tmp_path / "out" / "run.json").exists()


def test_tracks_are_needed(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    job = flags(files, tmp_path / "out")
    at = job.index("--tracks")
    assert cli.main([*job[:at], *job[at + 2 :], "--method", "time-to-move"]) == 2
    assert "time-to-move moves objects along tracks, but there are none" in capsys.readouterr().err


def test_inspect_says_that_it_shows_anyi2v(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert cli.main([*flags(files, tmp_path / "out"), "--method", "time-to-move"]) == 0
    assert cli.main(["inspect", str(tmp_path / "out")]) == 2
    assert "was made by time-to-move; inspect only supports AnyI2V" in capsys.readouterr().err
