"""The page that joins several runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyi2v.errors import InputError
from anyi2v.reports.overview import check_overview, write_overview
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import write_run

from .test_report import CONDITION, result
from .test_report_page import EVIL, Reader

SHEET = np.full((40, 1200, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, one of which has a hostile prompt; not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    save_file({"weights": torch.zeros(3)}, folder / "w.safetensors")
    origin = Origin(str(folder / "w.safetensors"))
    write_run(folder / "a", result(), CONDITION, origin)
    why: dict[str, str] = dict.fromkeys(("video.mp4", "side_by_side.mp4"), "no encoder")
    write_run(folder / "b #?", replace(result(), prompt=EVIL), CONDITION, origin, impossible=why)
    return folder


def write(out: Path, **options: str) -> Reader:
    values = {"generator": "anyi2v demo", "title": EVIL, "text": "Two runs.", **options}
    table = [["condition", "error"], ["edge", EVIL]]
    return Reader(write_overview(out, {"a": ["0.5 px"], "b #?": [EVIL]}, SHEET, table=table, **values).read_text())


def test_every_run_has_its_condition_video_facts_and_link(tmp_path: Path, runs: Path) -> None:
    out = shutil.copytree(runs, tmp_path / "out")
    reader = write(out)
    assert [link for link in reader.links if not link.startswith("data:")] == [
        "a/report.html",
        "b%20%23%3F/report.html",
    ]
    kinds = [link[5:15] for link in reader.links if link.startswith("data:")]
    # condition and video of the first run, condition and GIF of the second, which has no mp4, and the sheet
    assert kinds == ["image/png;", "video/mp4;", "image/png;", "image/gif;", "image/jpeg"]
    assert reader.text.count(EVIL) == 5  # page title, heading, prompt, fact, cell
    assert "script" not in reader.tags
    assert "0.5 px" in reader.text
    (out / "a" / "report.html").unlink()
    assert [link for link in write(out).links if link.endswith(".html")] == ["b%20%23%3F/report.html"]


def test_only_a_page_of_the_same_command_is_replaced(tmp_path: Path, runs: Path) -> None:
    out = shutil.copytree(runs, tmp_path / "out")
    check_overview(out, "anyi2v demo")
    write(out)
    check_overview(out, "anyi2v demo")
    with pytest.raises(InputError, match=r"index\.html exists and was not written by anyi2v animate; move it away"):
        check_overview(out, "anyi2v animate")
    (out / "index.html").write_text("mine")
    with pytest.raises(InputError, match="was not written by anyi2v demo"):
        check_overview(out, "anyi2v demo")


def test_a_part_that_is_missing_is_named_and_no_page_is_written(tmp_path: Path, runs: Path) -> None:
    out = shutil.copytree(runs, tmp_path / "out")
    (out / "a" / "condition.png").unlink()
    with pytest.raises(InputError, match=r"cannot read .*condition\.png, a part of the run"):
        write(out)
    assert not (out / "index.html").exists()
    assert json.loads((out / "a" / "run.json").read_text())["prompt"] == "a"
