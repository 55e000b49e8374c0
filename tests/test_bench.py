"""`anyi2v bench micro`: frames, scores, resumption, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anyi2v import cli, versions
from anyi2v.errors import HookError, InputError, ResourceError
from anyi2v.execution.cluster import Death, Workers
from anyi2v.images.media import to_bytes
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark import bench
from anyi2v.micro.benchmark.bench_report import names, paired, table, values, write_report
from anyi2v.micro.benchmark.kinds import KINDS, Kind
from anyi2v.micro.benchmark.methods import Variant
from anyi2v.micro.benchmark.provenance import provenance
from anyi2v.micro.benchmark.statistics import estimate
from anyi2v.reports import record as run_record
from anyi2v.tracks import Tracks
from benchmarks.claims import ablation_tables, comparison, merged

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

FLAGS = ["steps=2", "inject_steps=1", "optimise_steps=1", "iterations=1", "inversion_stride=100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases by three variants, interrupted after the first and resumed."""
    out = tmp_path_factory.mktemp("bench") / "out"
    common = ["bench", "micro", "--out", str(out), "--dtype", "float32"]
    assert cli.main([*common, "--cases", "1", "--ablate", "baselines", "--set", *FLAGS]) == 0
    first = out / "cases" / "1000-edge" / "full.npz"
    before = first.stat().st_mtime_ns
    assert cli.main([*common, "--cases", "2", "--ablate", "baselines", "recipe", "--set", *FLAGS]) == 0
    assert first.stat().st_mtime_ns == before
    return out


def test_the_folder_holds_frames_truth_scores_and_pictures(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        *("bench.json", "cases", "scores.json", "table.md", "differences.png", "cases.png"),
    }
    variants = ["full", "no optimisation", "no injection", "recipe official"]
    variants += ["dynamic mask, joint clusters", "dynamic mask, optimiser anew"]
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores["summary"]) == variants
    assert len(scores["rows"]) == 2 * len(variants)
    files = {path.name for path in (folder / "cases" / "1001-depth").iterdir()}
    assert files == {"truth.npz", *(name.replace(" ", "_") + ".npz" for name in variants)}


def test_scores_are_those_of_the_saved_frames(folder: Path) -> None:
    row = next(r for r in json.loads((folder / "scores.json").read_text())["rows"] if r["seed"] == 1001)
    job = bench.Job(folder / "cases" / "1001-depth", 1001, "depth", "plain", "micro", torch.float32, {})
    (scores,) = job.case.scores(bench.frames(job.path("full")))
    again = vars(scores)
    assert {key: row[key] for key in again} == again
    with np.load(folder / "cases" / "1001-depth" / "truth.npz") as truth:
        assert truth["frames"].shape == (8, 64, 64, 3)
        assert truth["targets"].shape == (1, 8, 2)


def test_shared_inversion_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """A variant made alone has the frames that it has when it takes another one's features."""
    config = MethodConfig.from_dict(json.loads((folder / "bench.json").read_text())["methods"]["recipe official"])
    job = bench.Job(tmp_path, 1000, "edge", "plain", "micro", torch.float32, {"recipe official": Variant(config)})
    threads = torch.get_num_threads()
    bench.run_case(job)
    torch.set_num_threads(threads)
    shared = bench.Job(folder / "cases" / "1000-edge", 1000, "edge", "plain", "micro", torch.float32, {})
    ours, theirs = bench.frames(job.path("recipe official")), bench.frames(shared.path("recipe official"))
    # 8 bits each; another process may round differently
    assert (ours - theirs).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "steps=3"], "other settings"),
        (["--recipe", "official", "--set", *FLAGS], "other settings"),
        (["--ablate", "table 7"], "table 2"),
        (["--set", "lr"], "not JSON"),
        (["--set", "wrong=1"], "no setting 'wrong'"),
        (["--cases", "0"], "--cases 0 is not allowed; it must be 1 to 100000"),
        (["--backbone", "absent"], "absent"),
    ],
)
def test_unusable_flags_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert cli.main(["bench", "micro", "--out", str(folder), "--dtype", "float32", *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("key", "former", "message"),
    [
        ("sha256", "0" * 64, "backbone 000000000000 (now "),
        ("dtype", "bfloat16", "dtype bfloat16 (now float32)"),
        ("dtype", None, "dtype not recorded (now float32)"),
        ("kind", "pan", "kind pan (now plain)"),
        ("seed", 2000, "seed 2000 (now 1000)"),
        ("torch", "1.0", "torch 1.0 (now "),
        ("anyi2v", "0.0.1", "anyi2v 0.0.1 (now "),
        ("sources", "1" * 64, "anyi2v's sources 111111111111 (now "),
        ("sources", None, "anyi2v's sources not recorded (now "),
        ("cases", 3, "3 cases (now 2)"),
    ],
)
def test_a_folder_made_otherwise_is_not_continued(
    folder: Path, tmp_path: Path, key: str, former: object, message: str
) -> None:
    """Each difference alone is enough, and is named."""
    settings = json.loads((folder / "bench.json").read_text())
    changed = {name: value for name, value in {**settings, key: former}.items() if value is not None}
    record = tmp_path / "bench.json"
    record.write_text(json.dumps(changed))
    before = record.read_bytes()
    methods = {"full": Variant.from_dict(settings["methods"]["full"])}
    with pytest.raises(InputError) as error:
        bench.prepare(tmp_path, "micro", torch.float32, methods, cases=2, seed=1000, kind="plain")
    words = str(error.value)
    assert message in words and words.endswith("use another --out") and words.count("(now ") == 1
    assert record.read_bytes() == before and list(tmp_path.iterdir()) == [record]


def test_other_settings_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_bytes((folder / "bench.json").read_bytes())
    full = MethodConfig.from_dict(json.loads((folder / "bench.json").read_text())["methods"]["full"])
    methods = {"full": Variant(replace(full, lr=0.5))}
    with pytest.raises(InputError, match=r"a variant 'full' with other settings: lr 0\.08 \(now 0\.5\)"):
        bench.prepare(tmp_path, "micro", torch.float32, methods, cases=2, seed=1000, kind="plain")


def test_the_digest_is_of_what_makes_frames(tmp_path: Path) -> None:
    package = tmp_path / "anyi2v"
    shutil.copytree(versions.PACKAGE, package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    digest, recorded = versions.code_digest.__wrapped__, provenance()["sources"]
    assert digest(package) == recorded == versions.code_digest()
    for pattern in versions.REPORTING:
        assert list(package.glob(f"{pattern}.py")), f"there is no {pattern}"
    for name in ("cli/bench.py", "reports/page.py", "micro/benchmark/bench_report.py"):
        (package / name).write_text("1\n")
    assert digest(package) == recorded
    for name in ("pipeline.py", "micro/benchmark/input_cases.py", "micro/benchmark/bench.py", "backbone/layers.py"):
        former = (package / name).read_text()
        (package / name).write_text(f"{former}\n")
        assert digest(package) != recorded, name
        (package / name).write_text(former)
    (package / "method" / "new.py").touch()
    assert digest(package) != recorded


def test_a_backbone_of_parts_is_known_by_all_of_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run_record.weights_sha256("micro")
    assert alone == run_record.sha256(run_record.resolve("micro"))
    assert run_record.weights_sha256("micro-lavie") != run_record.sha256(run_record.resolve("micro-lavie"))
    before, real = run_record.weights_sha256("micro-lavie"), run_record.sha256
    monkeypatch.setattr(run_record, "sha256", lambda path: "0" if path.stem == "micro" else real(path))
    assert run_record.weights_sha256("micro-lavie") != before, "its spatial layers are in micro's file"


def test_former_variants_stay_in_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for fewer of them, the folder still reports all; of one that lacks a case it says so."""
    monkeypatch.setattr(bench, "run", lambda *_, **__: None)  # nothing is missing of what is asked for
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    (out / "cases" / "1001-depth" / "recipe_official.npz").unlink()
    flags = ["--cases", "2", "--dtype", "float32", "--ablate", "baselines", "--set", *FLAGS]
    assert cli.main(["bench", "micro", "--out", str(out), *flags]) == 0
    said = capsys.readouterr().err
    assert "not in the report, as cases are missing: recipe official (add them with --ablate, --methods)" in said
    kept = ["full", "no optimisation", "no injection", "dynamic mask, joint clusters", "dynamic mask, optimiser anew"]
    assert list(json.loads((out / "scores.json").read_text())["summary"]) == kept
    assert "recipe official" in json.loads((out / "bench.json").read_text())["methods"]


def test_true_masks_are_given_to_their_variants_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def made(_: object, image: torch.Tensor, __: str, tracks: Tracks, **___: object) -> SimpleNamespace:
        seen.append([track.mask for track in tracks.objects])
        return SimpleNamespace(features={}, timings={}, video=image.expand(8, -1, -1, -1))

    monkeypatch.setattr(bench, "animate", made)
    monkeypatch.setattr(bench, "worker_backbone", lambda *_: None)
    full = Variant(MethodConfig(mask="none", inject_hidden=(), inject_query=()))
    methods = {"full": full, "true mask": full}
    for kind in ("two objects", "loose box"):
        seen.clear()
        (job,) = bench.jobs(tmp_path / kind, 1, 3, kind, "micro", torch.float32, methods)
        bench.run_case(job)
        none, masks = seen
        assert none == [None] * len(masks)
        for mask, target in zip(masks, job.case.targets, strict=True):
            assert np.array_equal(mask, target.mask.numpy())


def test_kinds_are_named_with_hyphens_or_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("loose-box", "loose box"):
        assert cli.parse(["bench", "micro", "--kind", name]).kind == "loose box"
    with pytest.raises(SystemExit):
        cli.parse(["bench", "micro", "--kind", "loose"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.parse(["bench", "micro", "--help"])
    text = "".join(capsys.readouterr().out.replace("│", "").split())
    assert f"--kind{{{','.join(kind.replace(' ', '-') for kind in KINDS)}}}" in text
    assert "{{" not in text


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="files that are not a benchmark"):
        bench.prepare(
            tmp_path, "micro", torch.float32, {"full": Variant(MethodConfig())}, cases=1, seed=0, kind="plain"
        )


def test_a_layer_that_the_backbone_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    methods = {"full": Variant(MethodConfig(align=("up_blocks.9.attentions.0.query",)))}
    with pytest.raises(HookError, match=r"up_blocks\.9"):
        bench.prepare(tmp_path, "micro", torch.float32, methods, cases=1, seed=0, kind="plain")
    assert not list(tmp_path.iterdir())


def rows() -> list[dict[str, object]]:
    common = {"relative_error": 0.0, "first_frame_iou": 0.5, "found": 1.0, "colour_right": True}
    common |= {"background_right": 1.0, "jerk": float("nan"), "seconds": 1.0, "modality": "edge"}
    return [
        {**common, "seed": seed, "variant": name, "trajectory_error": float(seed % 7) + extra}
        for seed in range(20)
        for name, extra in (("full", 0.0), ("worse", 2.0), ("same", 0.1 * (-1) ** seed))
    ]


def test_tables_say_what_is_not_significant() -> None:
    assert names(rows()) == ["full", "worse", "same"]
    assert paired(rows(), "worse", "trajectory_error").mean == pytest.approx(2)
    lines = table(rows()).splitlines()
    assert lines[3].endswith("+2.00 [+2.00, +2.00] |")
    assert lines[4].endswith("(not significant) |")
    assert "20 cases" in lines[-1]


def test_rows_are_paired_by_seed_whatever_their_order() -> None:
    assert torch.equal(values(rows()[::-1], "worse", "trajectory_error"), values(rows(), "worse", "trajectory_error"))


def test_every_object_and_a_pan_are_measured(tmp_path: Path) -> None:
    kinds: tuple[tuple[Kind, int], ...] = (("two objects", 2), ("pan", 1))
    for kind, objects in kinds:
        (job,) = bench.jobs(tmp_path, 1, 5, kind, "micro", torch.float32, {"full": Variant(MethodConfig())})
        job.folder.mkdir(parents=True, exist_ok=True)
        np.savez(job.path("full"), frames=to_bytes(job.case.truth), seconds=np.array(1.0))
        rows = list(bench.rows([job]))
        assert [row["object"] for row in rows] == list(range(1, objects + 1))
        assert all(row["trajectory_error"] < 1 for row in rows)
        assert len(values(rows, "full", "trajectory_error")) == 1
        assert ("error of the pan" in table(rows)) == (kind == "pan")
        assert ("identity kept" in table(rows)) == (kind == "two objects")
        assert [row.get("identity_kept") for row in rows] == ([1, 1] if kind == "two objects" else [None])
        if kind == "pan":
            assert rows[0]["pan_error"] < 0.1  # 8 bit frames


def test_report_can_be_written_again(folder: Path) -> None:
    data = json.loads((folder / "bench.json").read_text())
    methods = {name: Variant.from_dict(values) for name, values in data["methods"].items()}
    work = bench.jobs(folder, 2, 1000, "plain", "micro", torch.float32, methods)
    before = (folder / "table.md").read_text()
    text = write_report(folder, work, list(bench.rows(work)), {})
    assert text == before == (folder / "table.md").read_text()


def test_kinds_are_compared_with_plain_cases_and_backbones_with_micro() -> None:
    def case(seed: int, error: float, **more: float) -> list[dict[str, object]]:
        common = {**rows()[0], "seed": seed, "object": 1, **more}
        return [
            {**common, "variant": "full", "trajectory_error": error},
            {**common, "variant": "no optimisation", "trajectory_error": 10.0},
        ]

    def of(kind: str, backbone: str = "micro", lr: float = 1) -> dict[str, Any]:
        return {"kind": kind, "backbone": backbone, "methods": {"full": {"lr": lr, "steps": 8}}}

    plain = [row for seed in range(3) for row in case(seed, 2.0)]
    resized = [row for seed in range(3) for row in case(seed, 3.0, area_error=0.25)]
    lines = comparison([(of("plain"), plain), (of("resize"), resized)], "kind").splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ") for line in lines[2:]}
    baseline, area = (str(estimate(torch.full((3,), value))) for value in (10.0, 0.25))
    assert cells["| plain"][-4:] == ["1.00", baseline, "0.20", " |"]
    assert cells["| resize"][-4:] == ["1.50", baseline, "0.30", f"{area} |"]
    alone = comparison([(of("plain"), plain[::2]), (of("resize", lr=2), resized)], "kind")
    assert alone.splitlines()[-1].split(" | ")[-2:] == ["1.50", f"{area} |"], "not every folder has the baseline"
    assert alone.splitlines()[-1].startswith("| resize (lr=2.0) |")
    lines = comparison([(of("plain"), plain), (of("plain", "b"), resized)], "backbone").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| micro", "| b"]
    assert "| to micro |" in lines[0] and lines[3].split(" | ")[-4] == "1.50"


def bench_of(*names: str, off: float = 0.0, **changes: object) -> tuple[dict[str, Any], list[dict[str, object]]]:
    """A folder of variants; by how much its full method is `off`, the others are too."""
    settings = {"sha256": "1", "dtype": "float32", "kind": "plain", "seed": 0, "cases": 2}
    methods = {name: MethodConfig(lr=len(name)).to_dict() for name in names}
    lines = [
        {**rows()[0], "variant": name, "seed": seed, "object": 1, "trajectory_error": seed + len(name) + off}
        for name in names
        for seed in (0, 1)
    ]
    return {**settings, "methods": methods, **changes}, lines


def test_folders_of_the_same_cases_become_one() -> None:
    settings, found = merged([bench_of("full", "no PCA"), bench_of("full", "no queries", off=10)])
    assert list(settings["methods"]) == list(found) == ["full", "no PCA", "no queries"]
    assert values(found["full"], "full", "trajectory_error").tolist() == [4, 5]
    assert paired(found["no PCA"], "no PCA", "trajectory_error").mean == 2
    assert paired(found["no queries"], "no queries", "trajectory_error").mean == 6, "not 16: of its own folder"
    _, found = merged([bench_of("full", "no PCA"), bench_of("no queries", off=10)])
    assert paired(found["no queries"], "no queries", "trajectory_error").mean == 16, (
        "of the first folder: there is none"
    )
    with pytest.raises(InputError, match="no full method"):
        merged([bench_of("no PCA")])
    with pytest.raises(InputError, match="differ in dtype: float32 and bfloat16"):
        merged([bench_of("full"), bench_of("full", dtype="bfloat16")])
    with pytest.raises(InputError, match="two variants 'full'"):
        merged([bench_of("full"), bench_of("full", methods={"full": MethodConfig(lr=9).to_dict()})])


def test_rows_of_other_folders_are_marked() -> None:
    settings, found = merged([bench_of("full", "no PCA"), bench_of("full", "no queries", off=1)])
    text = ablation_tables(found, settings)
    assert "| no queries * | " in text and "+6.00 [+6.00, +6.00]" in text
    assert "| no PCA | " in text and "*: made later than the others" in text
    settings, found = merged([bench_of("full", "no PCA", "no queries")])
    assert "*" not in ablation_tables(found, settings)


def test_older_records_say_which_layers_shared_keys_and_values() -> None:
    """A truth value then meant the layers of the injected queries."""
    older, now = bench_of("full"), bench_of("full")
    older[0]["methods"]["full"]["share_kv"] = True
    settings, _ = merged([older, now])
    assert settings["methods"]["full"] == MethodConfig(lr=4).to_dict()


def test_a_case_that_costs_its_workers_is_named_after_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = bench.jobs(tmp_path, 3, 5, "plain", "micro", torch.float32, {}), []

    def spread(make: Any, items: Any, workers: Workers) -> Any:
        for number, item in enumerate(items):
            seen.append(item.seed)
            yield item, Death("it died") if number < 2 else None

    monkeypatch.setattr(bench, "spread", spread)
    with pytest.raises(ResourceError, match="case 5-edge: it died; case 6-depth: it died"):
        bench.run(work, Workers(2), progress=False)
    assert seen == [5, 6, 7]
