"""The pages of runs in Chromium, on a phone and on a desktop."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyi2v.batch.check import Task
from anyi2v.batch.jobs import BatchJob
from anyi2v.batch.report import write_report
from anyi2v.batch.request import Request
from anyi2v.images.source import ConditionSource
from anyi2v.reports.overview import write_overview
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import write_run
from anyi2v.tracks import Track, Tracks

from .test_report import CONDITION, result
from .test_report_page import run  # noqa: F401  a fixture: a run with a gallery and hostile texts
from .test_studio_page import CHROMIUM, browser  # noqa: F401  `browser` is a fixture

MISSING = ([] if find_spec("playwright") else ["playwright"]) + ([] if CHROMIUM else ["chromium"])
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}"),
    pytest.mark.xdist_group("browser"),
]
LONG = "a" * 300
"""A word without a place to break."""
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """The pages by name."""
    out = tmp_path_factory.mktemp("pages")
    origin = Origin(str(run.parent / "<b>.safetensors"))
    boxes = ((1.25, 1.25, 5.5, 5.5), (2.25, 1.25, 6.5, 5.5), (3.25, 1.25, 7.5, 5.5))
    points = tuple((1.5 + k / 4, 2.5) for k in range(9))
    tracks = Tracks(16, 16, (Track("a", boxes, points), Track(LONG, boxes)))
    job = result()
    write_run(out / "run", replace(job, prompt=LONG, tracks=tracks, masks=job.masks * 2), CONDITION, origin)
    sheet = np.full((40, 1200, 3), 200, np.uint8)
    table = [["condition", "variant", "trajectory error"], [LONG, "full", "0.5 px"]]
    demo = write_overview(out, {"run": [LONG]}, sheet, generator="anyi2v demo", title=LONG, text=LONG, table=table)
    return {"report": out / "run" / "report.html", "inspection": run / "report.html", "demo": demo, "batch": batch(out)}


def batch(out: Path) -> Path:
    """The page of a batch with a finished, a failed and a missing job."""
    folder, tasks = out / "batch", []
    for name in ("done", "failed", "missing"):
        job = BatchJob(1, name, Request(ConditionSource(image=Path("a.png")), LONG))
        tasks.append(Task(job, folder / name, {"width": 16, "height": 16, "frames": 3}))
    shutil.copytree(out / "run", folder / "done")
    (folder / "failed").mkdir()
    (folder / "failed" / "error.json").write_text(json.dumps({"message": LONG}))
    return write_report(folder, tasks, title=LONG)


@pytest.fixture(scope="module", params=list(WIDTHS))
def device(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:  # noqa: F811
    """A tab as wide as a device."""
    tab = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 844})
    tab.set_default_timeout(60_000)
    yield tab
    tab.close()


@pytest.mark.parametrize("name", ["report", "inspection", "demo", "batch"])
def test_no_page_scrolls_sideways(device: Any, pages: dict[str, Path], name: str) -> None:
    device.goto(pages[name].as_uri())
    width, window = device.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert window == device.viewport_size["width"]
    assert width <= window
    assert device.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("name", ["report", "inspection", "demo"])
def test_sheets_keep_a_readable_size_and_scroll_in_their_frame(device: Any, pages: dict[str, Path], name: str) -> None:
    device.goto(pages[name].as_uri())
    code = "[...document.querySelectorAll('.sheet img')].map(x => [x.width, x.naturalWidth, x.parentNode.clientWidth])"
    sheets = device.evaluate(code)
    assert sheets
    for width, natural, frame in sheets:
        assert min(natural, 900) <= width <= max(natural, 900)
        assert width <= max(frame, 900)  # on a desktop they fit their frame
    inside = device.evaluate("[...document.querySelectorAll('.sheet')].map(x => getComputedStyle(x).overflowX)")
    assert set(inside) == {"auto"}


def test_letters_of_the_loss_chart_are_readable(device: Any, pages: dict[str, Path]) -> None:
    device.goto(pages["report"].as_uri())
    heights = device.evaluate("[...document.querySelectorAll('svg text')].map(x => x.getBoundingClientRect().height)")
    assert heights and min(heights) >= 10


def test_controls_have_a_place_below_the_video(device: Any, pages: dict[str, Path]) -> None:
    device.goto(pages["report"].as_uri())
    device.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 1)")
    code = """[...document.querySelectorAll('video')].map(video => {
      const box = video.getBoundingClientRect(), style = getComputedStyle(video);
      return [video.controls, style.objectFit, style.objectPosition,
              box.height - box.width * video.videoHeight / video.videoWidth];
    })"""
    videos = device.evaluate(code)
    assert len(videos) == 2
    for controls, fit, position, free in videos:
        assert (controls, fit, position) == (True, "contain", "50% 0%")
        assert 60 <= free <= 90  # pixels below the picture


def test_contents_lead_to_their_sections(device: Any, pages: dict[str, Path]) -> None:
    device.goto(pages["inspection"].as_uri())
    for link in device.locator("nav a").all():
        link.click()
        target = device.url.split("#")[1]
        top = device.evaluate("name => document.getElementById(name).getBoundingClientRect().top", target)
        assert -1 <= top < 844
