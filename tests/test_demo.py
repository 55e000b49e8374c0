"""The demo on the shipped backbone, and the promise that a run's folder repeats the run."""

import subprocess
import sys
from pathlib import Path

import pytest

from anyi2v import cli
from anyi2v.micro.benchmark import demo
from anyi2v.reports.folder import claimed

from .test_report_page import Reader

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs


def test_demo_moves_the_object_and_its_run_repeats_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CASES", demo.CASES[:1])
    # this process has run backward passes, after which it must not be forked
    monkeypatch.setattr(demo, "START", "spawn")
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith(f"pictures: {tmp_path / 'demo' / demo.SHEET}; videos: ")
    error, iou = {}, {}
    for line in lines:
        if line.startswith("mean"):
            name = line[14:30].strip()
            error[name], iou[name] = float(line.split()[-3]), float(line.split()[-1])
    assert list(error) == ["full", "no optimisation", "no injection"]
    # on 200 cases the ratio is about 0.05; one case may be less lucky
    assert error["full"] < 0.5 * error["no optimisation"]
    assert iou["full"] > iou["no injection"]

    folder = tmp_path / "demo" / "edge"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("video.mp4", "video.gif", "side_by_side.mp4", "side_by_side.gif"),
        *("sheet.png", "tracks.png", "masks.png", "loss.png", "condition.png", "run.json", "report.html"),
    }
    assert (tmp_path / "demo" / "comparison.png").exists()
    page = tmp_path / "demo" / "index.html"
    assert lines[-1] == f"page: {page}"
    reader = Reader(page.read_text())
    assert [link for link in reader.links if not link.startswith("data:")] == ["edge/report.html"]
    for expected in (*error, f"{error['full']:.1f} px", "a red square on a teal background"):
        assert expected in reader.text

    # a picture that no run belongs to is not the demo's
    for name in demo.CASES:
        (tmp_path / "other" / name[0]).mkdir(parents=True)
    (tmp_path / "other" / "comparison.png").touch()
    assert cli.main(["demo", "--out", str(tmp_path / "other"), "--overwrite"]) == 2
    assert "comparison.png exists, but none of its runs" in capsys.readouterr().err
    (tmp_path / "other" / "comparison.png").rename(tmp_path / "other" / "index.html")
    assert cli.main(["demo", "--out", str(tmp_path / "other"), "--overwrite"]) == 2
    assert "index.html exists and was not written by anyi2v demo" in capsys.readouterr().err
    with claimed(tmp_path / "demo" / "edge"):
        code = "import sys; from anyi2v.cli import main; sys.exit(main(['demo', '--overwrite', '--out', sys.argv[1]]))"
        command = [sys.executable, "-c", code, str(tmp_path / "demo")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("anyi2v: error: another process is writing to folder")

    again = tmp_path / "again"
    assert cli.main(["animate", "--repeat", str(folder / "run.json"), "--out", str(again)]) == 0
    for name in ("video.mp4", "video.gif", "condition.png"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
