"""report.html: complete, escaped, self-contained; and in a real browser, where there is one."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anyi2v.errors import InputError
from anyi2v.images.media import load_image
from anyi2v.job import LossRecord
from anyi2v.method.config import MethodConfig
from anyi2v.reports.folder import GALLERY
from anyi2v.reports.page import curve, write_page
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import write_run
from anyi2v.tracks import Track, Tracks

from .test_report import CONDITION, result

EVIL = '</h1><script>document.title = "owned"</script><img src="http://example.org/x.png"> & $body "quoted"'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every free text is hostile, with a gallery."""
    folder = tmp_path_factory.mktemp("page")
    weights = folder / "<b>.safetensors"
    save_file({"weights": torch.zeros(3)}, weights)
    tracks = Tracks(16, 16, (Track(EVIL, ((1, 1, 5, 5), (2, 1, 6, 5), (3, 1, 7, 5))),))
    config = MethodConfig(lr=0.5, align=("<script>",))
    job = replace(result(), prompt=EVIL, negative_prompt=EVIL, tracks=tracks, config=config)
    write_run(folder / "run", job, CONDITION, Origin(str(weights), dtype="<i>float</i>"))
    gallery = folder / "run" / GALLERY
    gallery.parent.mkdir()
    shutil.copy(folder / "run" / "loss.png", gallery.parent / "a.png")
    section = {"title": EVIL, "text": EVIL, "pictures": [{"title": EVIL, "text": EVIL, "file": "../../a.png"}]}
    gallery.write_text(json.dumps({"sections": [section]}))
    write_page(folder / "run")
    return folder / "run"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that what is opened is closed."""

    VOID = ("meta", "img", "rect", "line", "circle", "polyline", "!doctype", "br")

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.text, self.open = "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "poster", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_is_fetched_and_nothing_runs(run: Path) -> None:
    reader = Reader((run / "report.html").read_text())
    assert reader.links
    data = re.compile(r"data:(image/png|image/gif|video/mp4);base64,[A-Za-z0-9+/=]+$")
    assert all(link.startswith("#") or data.match(link) for link in reader.links)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name in reader.names if name.startswith("on")]
    page = (run / "report.html").read_text()
    assert "default-src 'none'" in page
    assert "url(" not in page and "@import" not in page


def test_every_text_is_shown_as_it_is(run: Path) -> None:
    reader = Reader((run / "report.html").read_text())
    assert reader.text.count(EVIL) == 10  # title, prompt, negative prompt, object twice, four in the gallery, contents
    assert "<i>float</i>" in reader.text
    assert "<b>.safetensors" in reader.text
    assert reader.tags.count("i") == len(result().timings)  # the bars


def test_the_page_has_it_all(run: Path) -> None:
    text = Reader((run / "report.html").read_text()).text
    data = json.loads((run / "run.json").read_text())
    for expected in (
        *("anyi2v animate --repeat run.json --out again", data["backbone"]["sha256"]),
        *data["versions"].values(),
        *data["timings"],
        *data["method"],
        *("0.5 instead of 0.01", "6 updates of the latents: from 1 to 0.8", "step 0, iteration 1: 0.9", "seed 3"),
    ):
        assert expected in text


def test_a_run_without_objects(tmp_path: Path, run: Path) -> None:
    weights = run.parent / "<b>.safetensors"
    write_run(tmp_path / "out", result(objects=False), CONDITION, Origin(str(weights)))
    text = Reader((tmp_path / "out" / "report.html").read_text()).text
    assert "Nothing was optimised." in text
    assert "the motion left free" in text
    assert "whole boxes" not in text


def test_an_inspected_run_has_contents_and_another_says_how_to_inspect_it(tmp_path: Path, run: Path) -> None:
    reader = Reader((run / "report.html").read_text())
    inside = [link.removeprefix("#") for link in reader.links if link.startswith("#")]
    assert inside == ["loss", "tracks", "internals-1", "repeat", "timings", "settings", "versions"]
    assert set(inside) <= set(reader.ids) and len(set(reader.ids)) == len(reader.ids)
    assert "anyi2v inspect ." not in reader.text
    weights = str(run.parent / "<b>.safetensors")
    write_run(tmp_path / "out", result(), CONDITION, Origin(weights))
    plain = Reader((tmp_path / "out" / "report.html").read_text())
    assert "anyi2v inspect ." in plain.text
    assert not [link for link in plain.links if link.startswith("#")]


@pytest.mark.parametrize("mask", ["dynamic", "none"])
def test_masks_that_are_whole_boxes_are_said_to_be_so(tmp_path: Path, run: Path, mask: str) -> None:
    job = replace(result(), config=MethodConfig.from_dict({"mask": mask}))
    write_run(tmp_path / "out", job, CONDITION, Origin(str(run.parent / "<b>.safetensors")))
    text = Reader((tmp_path / "out" / "report.html").read_text()).text
    assert ("The masks are whole boxes" in text) == (mask == "none")


def test_a_sheet_is_not_squeezed_below_a_readable_width(run: Path) -> None:
    page = (run / "report.html").read_text()
    with Image.open(run / "sheet.png") as sheet, Image.open(run / "loss.png") as loss:
        widths = [min(picture.width, 900) for picture in (sheet, loss)]  # the gallery shows a copy of loss.png
    assert [int(width) for width in re.findall(r'style="min-width: (\d+)px"', page)] == widths


def test_a_part_that_is_missing_is_named_and_the_page_stays(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = (folder / "report.html").read_bytes()
    (folder / "video.mp4").unlink()
    with pytest.raises(InputError, match=r"cannot read .*video\.mp4, a part of the run: No such file"):
        write_page(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_run_without_mp4_shows_the_gif_and_says_why(tmp_path: Path, run: Path) -> None:
    weights = run.parent / "<b>.safetensors"
    why = {name: f"no encoder {EVIL}" for name in ("video.mp4", "side_by_side.mp4")}
    write_run(tmp_path / "out", result(), CONDITION, Origin(str(weights)), impossible=why)
    assert not list((tmp_path / "out").glob("*.mp4"))
    reader = Reader((tmp_path / "out" / "report.html").read_text())
    assert "video" not in reader.tags
    assert [link[:15] for link in reader.links].count("data:image/gif;") == 2
    assert reader.text.count(EVIL) == 2


def test_whatever_a_record_holds_is_text_on_the_page(tmp_path: Path, run: Path) -> None:
    """A record may come from elsewhere: every string in it, and strings in place of numbers."""
    folder = shutil.copytree(run, tmp_path / "run")
    data = json.loads((folder / "run.json").read_text())
    shown = 0
    for loss in data["losses"]:
        loss["step"] = loss["iteration"] = EVIL
        shown += 1
    for group in ("versions", "backbone", "timings", "failed_outputs"):
        data[group] = {f"{EVIL}{key}": value for key, value in data[group].items()} | data[group]
    data["failed_outputs"] = {EVIL: EVIL}
    data |= {"seed": EVIL, "fps": EVIL, "frames": EVIL, "dtype": EVIL, "threads": EVIL, "device": EVIL}
    (folder / "run.json").write_text(json.dumps(data))
    reader = Reader(write_page(folder).read_text())
    assert not {"script", "iframe", "object"} & set(reader.tags)
    assert all(link.startswith(("data:", "#")) for link in reader.links)
    assert reader.text.count(EVIL) > 2 * shown
    # what is put into the style sheet, or computed with, must be a number
    for change in ({"width": "1; } body { display: none"}, {"losses": [{"step": 0, "iteration": 0, "loss": EVIL}]}):
        (folder / "run.json").write_text(json.dumps(data | change))
        with pytest.raises(InputError, match=r"run\.json is not the record of a run: ValueError"):
            write_page(folder)


def test_the_curve_rises_where_the_loss_does() -> None:
    losses = [vars(LossRecord(step, 9, k, loss)) for step, k, loss in ((0, 0, 1.0), (0, 1, 4.0), (1, 0, 2.0))]
    values = curve(losses)
    assert [(step["name"], len(step["spots"])) for step in values["steps"]] == [(0, 2), (1, 1)]
    x, y = ([spot[axis] for step in values["steps"] for spot in step["spots"]] for axis in "xy")
    assert x == sorted(x)
    assert y[1] < y[2] < y[0]
    zeros = curve([vars(LossRecord(0, 9, 0, 0.0))])
    assert zeros["steps"][0]["spots"][0]["y"] == zeros["bottom"]


def test_every_update_of_the_latents_is_a_spot_on_the_page(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert len(re.findall(r'<circle cx="[\d.]+" cy="[\d.]+"', text)) == len(result().losses) == 6
    assert len(re.findall(r'<polyline points="[\d., ]+"', text)) == 2
    assert text.count("<rect ") == 1  # every other step is shaded


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", f"--user-data-dir={tmp_path}/p"]
    options += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [BROWSER, *options]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(run: Path, tmp_path: Path, browser: list[str], scheme: str) -> None:
    """It is drawn, pictures and all, by a browser that reaches no host; the page's script stays text."""
    shot, log = tmp_path / "shot.png", tmp_path / "net.json"
    scheme_flag = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    command = [*browser, scheme_flag, f"--log-net-log={log}", f"--screenshot={shot}", (run / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    picture = load_image(shot)
    corner = picture[:, -1, 0].mean()
    assert (corner > 0.9) if scheme == "light" else (corner < 0.2)
    # the condition is random pixels; text and lines alone have few colours
    assert len(picture.flatten(1).unique(dim=1).T) > 500
    assert "example.org" not in log.read_text()
    command = [*browser, "--dump-dom", (run / "report.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "<title>&lt;/h1&gt;" in dom
