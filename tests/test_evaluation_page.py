"""eval.html: all scores, plots whose spots lie where the numbers are, the worst videos; escaped and self-contained."""

import base64
import io
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anyi2v import cli
from anyi2v.errors import InputError
from anyi2v.evaluation.evaluate import Evaluation
from anyi2v.evaluation.inputs import Inputs
from anyi2v.evaluation.page import FRAMES, SIDE, WORST, check_page, plot, worst_videos, write_page
from anyi2v.evaluation.request import Request
from anyi2v.evaluation.scores import Score
from anyi2v.evaluation.videos import Shape
from anyi2v.images.video import write_video
from anyi2v.tracks import Track, Tracks, save_tracks
from tests.test_report_page import EVIL, Reader, browser  # noqa: F401 (a fixture)

NAN = float("nan")
Better = Literal["lower", "higher"]


def score(key: str = "k", better: Better = "lower", low: float = NAN, high: float = NAN, value: float = 1.0) -> Score:
    return Score(f"title of {key}", value, low, high, "px", 3, 5, "64x48", "mine", {"network": "n"}, better, key)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Six videos of 64 x 48 px whose every text is hostile; grey values and boxes tell them apart."""
    folder = tmp_path_factory.mktemp("videos")
    videos = {}
    for number in range(6):
        name = f"v{number}" + (EVIL.replace("/", "|") if number == 5 else "")
        videos[name] = folder / f"{number}.npz"
        write_video(videos[name], torch.full((5, 3, 48, 64), number / 10), fps=8)
    own = {name: {"error": float(number), "iou": number / 10} for number, name in enumerate(videos)}
    own["v0"] = {"iou": 0.0}  # an object that was never found
    scores = (
        Score(EVIL, NAN, NAN, NAN, EVIL, 6, 5, "64x48", EVIL, {EVIL: EVIL}),
        score("error", low=2.0, high=4.0, value=3.0),
        score("iou", "higher", value=0.25),
    )
    tracks = {name: Tracks(128, 96, (Track("a", ((16, 16, 80, 64),)),)) for name in videos}
    return Evaluation(scores, own, Inputs(videos, Shape(5, 64, 48), tracks=tracks))


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "eval.html"
    write_page(path, Request(Path("runs") / EVIL.replace("/", "|")), evaluation)
    return path


def test_every_number_is_there_with_what_it_depends_on(page: Path) -> None:
    text = Reader(page.read_text()).text
    for expected in ("title of error", "2 to 4", "title of iou", "0.25", "higher", "64x48", "mine", "network"):
        assert expected in text
    assert "nan" not in text
    assert text.count(EVIL) == 6  # metric twice, unit, convention, detail and its value


def test_nothing_is_fetched_and_nothing_runs(page: Path) -> None:
    reader = Reader(page.read_text())
    assert reader.links and all(re.match(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+$", link) for link in reader.links)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name in reader.names if name.startswith("on")]
    assert "default-src 'none'" in page.read_text()
    assert reader.text.count(EVIL.replace("/", "|")) >= 3  # title, heading, and the worst video's name


def test_the_worst_of_each_metric_are_shown(evaluation: Evaluation, page: Path) -> None:
    worst = worst_videos(evaluation)
    names = list(evaluation.videos)
    assert {name for name, keys in worst.items() if "error" in keys} == set(names[-WORST:])
    assert {name for name, keys in worst.items() if "iou" in keys} == set(names[:WORST])
    reader = Reader(page.read_text())
    assert len(reader.links) == len(worst)
    for name, link in zip(worst, reader.links, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))) as picture:
            assert picture.size == (FRAMES * round(64 * SIDE / 48), SIDE)
            for frame in range(FRAMES):
                left = frame * picture.width // FRAMES
                pixels = np.asarray(picture.convert("RGB")).astype(int)[:, left:]
                assert pixels[5, 5].tolist() == pytest.approx([255 * names.index(name) / 10] * 3, abs=3)
                assert pixels[27, 80, 0] > pixels[27, 80, 2] + 60  # the upper edge of the box is yellow


def test_without_own_numbers_there_are_no_plots(evaluation: Evaluation, tmp_path: Path) -> None:
    only = Evaluation(evaluation.scores[:1], {name: {} for name in evaluation.videos}, evaluation.inputs)
    write_page(tmp_path / "eval.html", Request(Path("runs")), only)
    reader = Reader((tmp_path / "eval.html").read_text())
    assert "svg" not in reader.tags and not reader.links and "Worst videos" not in reader.text


def test_a_metric_without_numbers_of_videos_has_no_plot(evaluation: Evaluation, tmp_path: Path) -> None:
    scores = (*evaluation.scores, score("lost", value=NAN))
    write_page(tmp_path / "eval.html", Request(Path("runs")), replace(evaluation, scores=scores))
    reader = Reader((tmp_path / "eval.html").read_text())
    assert reader.tags.count("svg") == 2 and reader.text.count("No video has a value.") == 1


@given(
    values=st.lists(st.floats(-1e3, 1e3), max_size=8),
    ends=st.none() | st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
    better=st.sampled_from(["lower", "higher"]),
)
def test_plots_show_values_in_order_inside_their_frame(
    values: list[float], ends: tuple[float, float] | None, better: Better
) -> None:
    low, high = sorted(ends) if ends else (NAN, NAN)
    videos = {f"v{k}": {"k": value} for k, value in enumerate(values)} | {"none": {}}
    mean = sum(values) / len(values) if values else NAN
    found = plot(score(better=better, low=low, high=high, value=mean), videos)
    heights = [spot["y"] for spot in found["spots"]]
    assert len(heights) == len(values)
    assert heights == sorted(heights, reverse=better == "lower")  # larger values lie higher, so their y is smaller
    assert all(0 <= y <= found["height"] for y in heights)
    lines = {float(line["text"]): line["y"] for line in found["grid"]}
    assert lines[max(lines)] <= lines[min(lines)]
    places = [spot["x"] for spot in found["spots"]]
    assert places == sorted(places) and all(found["left"] < x < found["width"] for x in places)
    if ends:
        top, extent = found["band"]
        assert extent >= 0 and top >= 0 and top + extent <= found["height"]
    else:
        assert found["band"] is None
    assert (found["mean"] is None) == (not values)


def test_the_axis_begins_at_zero_unless_values_are_far_from_it() -> None:
    near = plot(score(), {"a": {"k": 1.0}, "b": {"k": 10.0}})
    far = plot(score(), {"a": {"k": 9.0}, "b": {"k": 10.0}})
    assert [line["text"] for line in near["grid"]] == ["0", "5", "10"]
    assert [line["text"] for line in far["grid"]] == ["9", "9.5", "10"]
    assert near["spots"][0]["text"] == "a: 1"


def test_other_files_are_not_replaced(tmp_path: Path, page: Path) -> None:
    check_page(tmp_path / "eval.html")
    check_page(page)
    (tmp_path / "eval.html").write_text("mine")
    (tmp_path / "folder.html").mkdir()
    for name in ("eval.html", "folder.html"):
        with pytest.raises(InputError, match=f"{name} exists and was not written by anyi2v eval; move it away"):
            check_page(tmp_path / name)


def test_the_command_writes_it_and_refuses_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_video(tmp_path / "v" / f"{name}.npz", torch.rand(1, 3, 48, 48).repeat(3, 1, 1, 1), fps=8)
        save_tracks(tmp_path / "t" / f"{name}.json", Tracks(48, 48, (Track("x", ((8, 8, 40, 40),)),)))
    args = ["eval", "videos", "--generated", "v", "--tracks", "t", "--metrics", "objmc", "trajectory"]
    assert cli.main([*args, "--out", "e.json"]) == 0
    assert "e.html: the same with plots and the worst videos" in capsys.readouterr().out
    text = Reader(Path("e.html").read_text()).text
    for row in json.loads(Path("e.json").read_text())["scores"]:
        assert row["metric"] in text and row["convention"] in text and f"{row['value']:.4g}" in text
    Path("e.html").write_text("mine")
    Path("e.json").unlink()
    assert cli.main([*args, "--out", "e.json"]) == 2
    assert "e.html exists and was not written by anyi2v eval" in capsys.readouterr().err
    assert Path("e.html").read_text() == "mine" and not Path("e.json").exists()


def test_a_narrow_screen_scrolls_tables_and_plots_not_the_page(page: Path, tmp_path: Path, browser: list[str]) -> None:  # noqa: F811
    frame = tmp_path / "frame.html"  # browsers have a least width of windows, but not of frames
    frame.write_text(
        f'<iframe id="f" src="{page.as_uri()}" style="width: 390px; height: 800px; border: 0"></iframe><p id="out"></p>'
        "<script>f.onload = () => { const e = f.contentDocument.documentElement; const wide = ['.scores', 'svg'].map("
        "s => f.contentDocument.querySelector(s).getBoundingClientRect().width > 390);"
        "out.textContent = `${e.clientWidth} ${e.scrollWidth} ${wide}` }</script>"
    )
    command = [*browser, "--allow-file-access-from-files", "--dump-dom", frame.as_uri()]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert '<p id="out">390 390 true,true</p>' in shown
