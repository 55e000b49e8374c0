"""Runs beside each other on one page: results, frames, and only the settings that differ."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from anyi2v import cli
from anyi2v.files import replaceable
from anyi2v.method.config import MethodConfig
from anyi2v.reports.record import Origin, varied
from anyi2v.reports.writing import write_run

from .test_report import CONDITION, result
from .test_report_page import EVIL, Reader


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with runs one, two (other settings and a hostile prompt) and a folder `deep/one` (without objects)."""
    folder = tmp_path_factory.mktemp("runs")
    save_file({"weights": torch.zeros(3)}, folder / "x.safetensors")
    origin = Origin(str(folder / "x.safetensors"))
    write_run(folder / "one", result(), CONDITION, origin)
    changed = replace(result(), seed=4, prompt=EVIL, config=MethodConfig(lr=0.25), parts={"sampler": "dpm++"})
    write_run(folder / "two", changed, CONDITION, origin)
    write_run(folder / "deep" / "one", result(objects=False), CONDITION, origin)
    return folder


def compare(out: Path, *folders: Path) -> int:
    return cli.main(["compare", *map(str, folders), "--out", str(out)])


def test_the_page_has_results_frames_and_what_differs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "of all"
    assert compare(out, runs / "one", runs / "two", runs / "deep" / "one") == 0
    assert capsys.readouterr().out == f"page: {out / 'index.html'}\n"
    assert {path.name for path in out.iterdir()} == {"index.html", "comparison.png"}
    reader = Reader((out / "index.html").read_text())
    assert not {"script", "iframe", "form"} & set(reader.tags)
    links = [link for link in reader.links if not link.startswith("data:image/jpeg;base64,")]
    assert links == ["../one/report.html", "../two/report.html", "../deep/one/report.html"]
    assert reader.tags.count("img") == 3
    assert reader.text.count(EVIL) == 1
    for words in ("3 runs compared", "1 one", "2 two", "3 one", "0.8", "0.1 s", "not measured", "method.lr", "0.25"):
        assert words in reader.text
    assert "parts.sampler" in reader.text and '"dpm++"' in reader.text
    assert "method.guidance_scale" not in reader.text and "versions" not in reader.text
    with Image.open(out / "comparison.png") as picture:
        assert picture.height > 3 * 256
    # the same command again replaces its own files
    assert compare(out, runs / "one", runs / "deep" / "one") == 0
    assert "2 runs compared" in (out / "index.html").read_text()


def test_equal_runs_have_no_differing_settings_and_need_no_sheet_nor_mp4(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs / "one", tmp_path / "copy")
    for name in ("sheet.png", "video.mp4", "report.html"):
        (copy / name).unlink()
    assert compare(tmp_path / "out", runs / "one", copy) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert "all inputs are the same" in text and "sheet.png is missing" in text
    assert text.count("<a href") == 1


def test_what_cannot_be_compared_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(runs / "one", tmp_path / "copy")
    bad = shutil.copytree(runs / "one", tmp_path / "bad")
    (bad / "run.json").write_text(json.dumps({"prompt": "a"}))
    strange = shutil.copytree(runs / "one", tmp_path / "strange")
    data = json.loads((strange / "run.json").read_text())
    (strange / "run.json").write_text(json.dumps(data | {"losses": [3]}))
    (tmp_path / "empty").mkdir()
    for name in ("video.mp4", "video.gif"):
        (copy / name).unlink()
    broken = shutil.copytree(runs / "one", tmp_path / "broken")
    (broken / "video.mp4").write_bytes(b"no video")
    one = runs / "one"
    for folders, message in (
        ([one], "needs at least two runs"),
        ([one, runs / "deep" / ".." / "one"], "is given twice"),
        ([one, tmp_path / "none"], "none does not exist"),
        ([one, one / "run.json"], r"run\.json is a file; give the folder"),
        ([one, tmp_path / "empty"], r"empty has no run: run\.json is missing"),
        ([one, copy], r"copy has no video: video\.mp4 and video\.gif are missing"),
        ([one, bad], r"bad/run\.json is not the record of a run: 'timings' is missing"),
        ([one, strange], r"strange/run\.json is not the record of a run"),
        ([one, broken], r"cannot read .*broken/video\.mp4"),
    ):
        assert compare(tmp_path / "out", *folders) == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split())), message
        assert not (tmp_path / "out").exists()


def test_nothing_but_a_comparison_is_replaced(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = (runs / "one", runs / "two")
    for name in ("index.html", "comparison.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        assert compare(tmp_path / name, *two) == 2
        assert "files that are not a comparison" in capsys.readouterr().err
        assert (tmp_path / name / name).read_text() == "mine"
    assert compare(runs / "one", *two) == 2
    assert "is a file or a run" in capsys.readouterr().err


def test_a_file_is_replaceable_if_it_is_ours(tmp_path: Path) -> None:
    assert replaceable(tmp_path / "none", "sign") and not replaceable(tmp_path, "sign")
    (tmp_path / "a").write_bytes(b"\xff a sign")
    assert replaceable(tmp_path / "a", "sign") and not replaceable(tmp_path / "a", "signs")


values = st.one_of(st.none(), st.integers(0, 2), st.text(max_size=3), st.lists(st.integers(0, 1), max_size=2))
records = st.dictionaries(st.sampled_from("abc"), st.one_of(values, st.dictionaries(st.sampled_from("xy"), values)))


@given(st.lists(records, min_size=2, max_size=4))
def test_settings_vary_where_records_do(found: list[dict[str, object]]) -> None:
    table = varied(found)
    assert all(len(row) == len(found) for row in table.values())
    assert all(len({*row}) > 1 or '"' in row[0] for row in table.values())
    assert varied([found[0], found[0]]) == {}
    for name in "abc":
        plain = [record.get(name) for record in found]
        if not any(isinstance(value, dict) for value in plain):
            assert (name in table) == any(value != plain[0] for value in plain)
    results = [record | {"timings": k, "losses": k, "trajectories": k, "tracks": k} for k, record in enumerate(found)]
    assert varied(results) == table
