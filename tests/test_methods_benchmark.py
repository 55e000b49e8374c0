"""`anyi2v bench micro --methods`: other methods beside the full one, what is recorded, resumed and refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anyi2v import cli
from anyi2v.comparators.settings import SETTINGS, ComparatorName, FreeTrajSettings, SGI2VSettings, TimeToMoveSettings
from anyi2v.comparators.subjects import subject_words
from anyi2v.errors import InputError
from anyi2v.images.media import from_bytes, to_bytes
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark import bench, methods
from anyi2v.micro.benchmark.bench_report import names, write_report
from anyi2v.micro.benchmark.cases import conditions, make_case
from anyi2v.micro.benchmark.kinds import CAMERA_KINDS, KINDS, Kind
from anyi2v.micro.benchmark.methods import TUNED, Variant, leaderboard
from anyi2v.pipeline import animate
from benchmarks.claims import ablation_tables, merged
from benchmarks.tune_methods import ANYI2V, TRIALS, summary, trials

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

FAST = ["steps=2", "inject_steps=1", "optimise_steps=1", "iterations=1", "inversion_stride=100"]
QUICK: dict[ComparatorName, Any] = {
    "freetraj": FreeTrajSettings(injection=True, edit_steps=1),
    "sg-i2v": SGI2VSettings(injection=True, first_step=0, last_step=0, iterations=1, lr=0.08),
}
COMMON = ["bench", "micro", "--dtype", "float32", "--ablate", "--set", *FAST]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases by two methods; the second case and method are added to the first."""
    out = tmp_path_factory.mktemp("methods") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "TUNED", QUICK)
        assert cli.main([*COMMON, "--out", str(out), "--cases", "1", "--methods", "sg-i2v"]) == 0
        first = out / "cases" / "1000-edge" / "sg-i2v.npz"
        before = first.stat().st_mtime_ns
        assert cli.main([*COMMON, "--out", str(out), "--cases", "2", "--methods", "all"]) == 0
    assert first.stat().st_mtime_ns == before
    return out


def test_methods_stand_beside_the_full_one_with_their_settings(folder: Path) -> None:
    assert {"methods.png", "cases.png", "table.md", "scores.json"} <= {path.name for path in folder.iterdir()}
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores["summary"]) == {"full", *QUICK} and len(scores["rows"]) == 6
    assert all(row["seconds"] > 0 for row in scores["rows"])
    recorded = json.loads((folder / "bench.json").read_text())["methods"]
    assert recorded["sg-i2v"]["comparator"] == "sg-i2v" and recorded["sg-i2v"]["sg-i2v.lr"] == 0.08
    assert recorded["freetraj"]["freetraj.edit_steps"] == 1 and "comparator" not in recorded["full"]
    assert {Variant.from_dict(values).config for values in recorded.values()} == {
        MethodConfig.from_dict(recorded["full"])
    }


def test_frames_are_those_of_the_method_with_the_same_noise(folder: Path, tmp_path: Path) -> None:
    """Made by `animate` alone, without another variant's inversion, with the case's seed as noise."""
    (job,) = bench.jobs(folder, 1, 1000, "plain", "micro", torch.float32, {})
    case, backbone = job.case, bench.worker_backbone("micro", torch.float32)
    variant = Variant.from_dict(json.loads((folder / "bench.json").read_text())["methods"]["freetraj"])
    image = from_bytes(to_bytes(case.image))
    method = methods.comparator(replace(QUICK["freetraj"], subjects=case.subjects))
    made = animate(backbone, image, case.prompt, case.tracks, config=variant.config, seed=1000, method=method)
    # 8 bits each; another process may round differently
    assert (from_uint8(made.video) - bench.frames(job.path("freetraj"))).abs().max() <= 1.01 / 255
    assert (bench.frames(job.path("full")) - bench.frames(job.path("freetraj"))).abs().max() > 0.1


def from_uint8(video: torch.Tensor) -> torch.Tensor:
    """As it is read back from a file of frames."""
    return torch.stack([from_bytes(frame) for frame in to_bytes(video)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sg-i2v": replace(QUICK["sg-i2v"], lr=0.1)}, r"'sg-i2v' with other settings: sg-i2v\.lr 0\.08 \(now 0\.1\)"),
        ({"freetraj": replace(QUICK["freetraj"], injection=False)}, r"freetraj\.injection True \(now False\)"),
        ({"sg-i2v": QUICK["freetraj"]}, r"comparator sg-i2v \(now freetraj\)"),
    ],
)
def test_other_settings_are_not_mixed(folder: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    (tmp_path / "bench.json").write_bytes((folder / "bench.json").read_bytes())
    config = Variant.from_dict(json.loads((folder / "bench.json").read_text())["methods"]["full"]).config
    wanted = {name: Variant(config, settings) for name, settings in changed.items()}
    with pytest.raises(InputError, match=message):
        bench.prepare(tmp_path, "micro", torch.float32, wanted, cases=2, seed=1000, kind="plain")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "time-to-move", "--set", *FAST], "time-to-move: weak_step=2 and strong_step="),
        (["--methods", "freetraj", "--set", "deep_every=2"], "freetraj edits attention in all levels"),
        (["--methods", "all", "--kind", "pan"], "--methods freetraj links objects of the prompt to their tracks"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert cli.main(["bench", "micro", "--dtype", "float32", "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*CAMERA_KINDS, "mesh")])
def test_each_object_is_in_the_prompt(kind: Kind) -> None:
    """Also a hexagon, which the prompt calls a circle."""
    for seed in (1000, 1001):
        case = make_case(seed, conditions(kind)[0], kind)
        assert len(set(case.subjects)) == len(case.tracks.objects)
        assert subject_words("freetraj", case.subjects, case.tracks, case.prompt) == list(case.subjects)
        assert all(words.split()[0] == target.colour for words, target in zip(case.subjects, case.targets, strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_variants_are_read_back_as_they_were(name: ComparatorName) -> None:
    for variant in (Variant(MethodConfig(lr=0.5)), Variant(MethodConfig(), TUNED[name])):
        assert Variant.from_dict(json.loads(json.dumps(variant.to_dict()))) == variant
    assert Variant(MethodConfig(), replace(TUNED[name], injection=False)).points == set()
    assert list(leaderboard(MethodConfig(), (name, name), "plain")) == [name]


def test_seconds_have_the_inversion_that_another_variant_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {name: torch.zeros(1) for name in Variant(MethodConfig()).points}

    def made(_: object, image: torch.Tensor, *__: object, **given: Any) -> SimpleNamespace:
        inversion = {} if given["features"] else {"inversion": 5.0}
        video = image.expand(8, -1, -1, -1)
        return SimpleNamespace(features=features, timings={"denoising": 2.0, **inversion}, video=video)

    monkeypatch.setattr(bench, "animate", made)
    monkeypatch.setattr(bench, "worker_backbone", lambda *_: None)
    wanted = {
        "full": Variant(MethodConfig()),
        "with": Variant(MethodConfig(), TimeToMoveSettings(injection=True)),
        "without": Variant(MethodConfig(), TimeToMoveSettings()),
    }
    (job,) = bench.jobs(tmp_path, 1, 3, "plain", "micro", torch.float32, wanted)
    bench.run_case(job)
    assert [float(np.load(job.path(name))["seconds"]) for name in wanted] == [7, 7, 2]


def test_claims_take_folders_with_other_methods(folder: Path) -> None:
    """They are a table of their own, beside the ablations."""
    found = json.loads((folder / "bench.json").read_text()), json.loads((folder / "scores.json").read_text())["rows"]
    settings, rows = merged([found])
    assert set(rows) == {"full", *QUICK} == set(names(found[1]))
    text = ablation_tables(rows, settings)
    assert text.count("### ") == 1 and "### Other methods" in text and "| sg-i2v | " in text


def test_a_report_without_methods_has_no_sheet_of_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    (out / "methods.png").unlink()
    data = json.loads((out / "bench.json").read_text())
    full = {"full": Variant.from_dict(data["methods"]["full"])}
    work = bench.jobs(out, 2, 1000, "plain", "micro", torch.float32, full)
    rows = list(bench.rows(work))
    write_report(out, work, rows, {})
    assert not (out / "methods.png").exists()


def test_the_search_tries_each_method_equally_often_and_takes_the_least_error() -> None:
    tried = trials("micro")
    assert set(tried) == {"full", *SETTINGS} and {len(variants) for variants in tried.values()} == {len(ANYI2V)}
    assert {name: len(some) for name, some in TRIALS.items()} == dict.fromkeys(SETTINGS, len(ANYI2V))
    others = [v for name, some in tried.items() for v in some.values() if name != "sparsectrl"]
    assert all(v.comparator is None or v.comparator.injection for v in others)
    common = {"first_frame_iou": 0.5, "colour_right": True, "background_right": 1.0}
    rows = [
        {**common, "variant": label, "seed": seed, "trajectory_error": float((number + 2) % 8)}
        for variants in tried.values()
        for number, label in enumerate(variants)
        for seed in (3000, 3001)
    ]
    found = summary(rows, tried)
    assert found["sg-i2v"]["best"] == "sg-i2v lr=0.1 last_step=3" and found["sg-i2v"]["settings"]["sg-i2v.lr"] == 0.1
    assert found["full"]["settings"]["lr"] == 0.12
