"""The page in Chromium: what a user does, and what is then on disk."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyi2v.images.media import write_image
from anyi2v.studio.document import checked
from anyi2v.studio.examples import example
from anyi2v.tracks import Track, Tracks, save_anyi2v, tracks_from_dict
from anyi2v.tracks.keyframes import INTERPOLATIONS, Interpolation, between
from anyi2v.tracks.masks import decode, encode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + (
    ["chromium"] if not CHROMIUM else []
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}"),
    pytest.mark.xdist_group("browser"),
]
WAIT = 240_000
"""Milliseconds, of a machine that does other things too."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """The command in a process of its own: gradio does not recognise generators that the test run wraps in checks."""
    command = [sys.executable, "-m", "anyi2v", "studio", "--out", str(root), "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Page:
    """A tab, in words of the tests."""

    def __init__(self, tab: Any, address: str):
        self.tab, self.outside, self.errors = tab, list[str](), list[str]()
        tab.set_default_timeout(WAIT)
        tab.on("request", self._request)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = address
        tab.goto(address)
        tab.wait_for_selector(".ed-stage")
        self.until("sessionStorage.getItem('anyi2v-studio')?.includes('token')")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def until(self, condition: str) -> None:
        self.tab.wait_for_function(condition)

    def says(self, words: str) -> str:
        self.until(f"document.querySelector('#status textarea')?.value.includes({json.dumps(words)})")
        return self.tab.input_value("#status textarea")

    def upload(self, button: str, *files: Path) -> None:
        with self.tab.expect_file_chooser() as chooser:
            self.tab.click(button)
        chooser.value.set_files(list(map(str, files)))

    def open(self, name: str) -> None:
        self.tab.get_by_role("button", name=name).click()

    def frame(self, number: int) -> None:
        self.tab.locator(".ed-frame").fill(str(number))

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.tab.input_value(".ed-json"))

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the frame is on the screen."""
        code = """([x, y]) => {
          const p = new DOMPoint(x, y).matrixTransform(document.querySelector('.ed-stage').getScreenCTM());
          return [p.x, p.y];
        }"""
        found = self.tab.evaluate(code, [x, y])
        return found[0], found[1]

    def drag(self, *points: tuple[float, float]) -> None:
        """Presses the mouse at the first point, in pixels of the frame, and lifts it at the last one."""
        mouse = self.tab.mouse
        mouse.move(*self.screen(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.screen(*point), steps=4)
        mouse.up()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = Page(context.new_page(), address)
    yield page
    assert page.outside == [] and page.errors == []
    context.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "edges.png"
    write_image(path, example("Edge map").image)
    return path


def start(page: Page, picture: Path) -> None:
    page.upload("#upload", picture)
    page.says("condition image: whole of 64x64 px")


def close(found: Any, wanted: Any, pixels: float = 0.5) -> None:
    np.testing.assert_allclose(found, wanted, atol=pixels)


def test_draw_drag_run_and_see_the_video(page: Page, picture: Path, root: Path) -> None:
    start(page, picture)
    page.drag((10, 30), (36, 58))
    page.frame(8)
    page.drag((23, 44), (31, 20))
    item = page.json["objects"][0]
    assert [key["frame"] for key in item["keyframes"]] == [1, 8]
    close([key["box"] for key in item["keyframes"]], [[10, 30, 36, 58], [18, 6, 44, 34]])
    tab = page.tab
    tab.fill("#prompt textarea, #prompt input", "a red square on a teal background")
    tab.get_by_role("button", name="Settings").click()
    for name in ("steps", "optimise_steps", "iterations", "inject_steps"):
        tab.fill(f"#setting-{name} input", "2")
    tab.click("#run")
    page.says("memory:")
    page.until("document.querySelector('#progress progress').value > 0")
    page.says("done:")
    page.until("(v => v && v.readyState === 4 && v.currentTime > 0)(document.querySelector('#video video'))")
    (job,) = (root / "jobs").iterdir()
    document, tracks = checked((job / "tracks.json").read_text())
    assert document == page.json
    boxes = [key["box"] for key in item["keyframes"]]
    assert tracks.objects[0].boxes == between((1, 8), [tuple(box) for box in boxes], 8)
    shown = tab.evaluate(
        "(() => { const s = document.querySelector('#editor .ed').parentElement.studio;"
        "return s.between(s.state.doc.objects[0].keyframes, 8, 'linear'); })()"
    )
    close(shown, tracks.objects[0].boxes, 1e-9)
    record = json.loads((root / "runs" / job.name / "run.json").read_text())
    assert record["method"]["steps"] == 2 and record["prompt"] == "a red square on a teal background"
    tab.get_by_role("tab", name="Command").click()
    tab.wait_for_selector("#command .cm-content")
    assert "--method.steps 2" in tab.inner_text("#command .cm-content")
    # the run is in the list, and can be compared and loaded
    tab.get_by_role("button", name="Delete", exact=True).click()
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_label("Compare with").click()
    tab.get_by_role("option", name=job.name).click()
    tab.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value === 'the inputs are the same')")
    tab.get_by_role("button", name="Load image, tracks").click()
    page.says(f"loaded {job.name}")
    page.until("document.querySelectorAll('.ed-objects button').length === 1")
    assert page.json == document


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_the_page_interpolates_as_the_library_does(page: Page, kind: Interpolation) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 5):
        frames = sorted(generator.choice(np.arange(1, 25), count, replace=False).tolist())
        boxes = [(x, y, x + w, y + h) for x, y, w, h in generator.uniform(1, 30, (count, 4)).tolist()]
        keys = [{"frame": frame, "box": box} for frame, box in zip(frames, boxes, strict=True)]
        code = "([keys, kind]) => document.querySelector('#editor .ed').parentElement.studio.between(keys, 24, kind)"
        close(page.tab.evaluate(code, [keys, kind]), between(frames, boxes, 24, kind), 1e-9)


def test_undo_redo_keys_and_removal(page: Page, picture: Path) -> None:
    start(page, picture)
    page.drag((10, 10), (30, 30))
    page.frame(4)
    page.drag((20, 20), (28, 20))
    two = page.json
    page.tab.keyboard.press("Control+z")
    assert len(page.json["objects"][0]["keyframes"]) == 1
    page.tab.keyboard.press("Control+z")
    assert page.json["objects"] == []
    page.tab.keyboard.press("Control+Shift+z")
    page.tab.keyboard.press("Control+y")
    assert page.json == two
    page.frame(4)
    page.tab.locator(".ed-stage").focus()
    page.tab.keyboard.press("ArrowDown")
    close(
        page.json["objects"][0]["keyframes"][1]["box"],
        np.add(two["objects"][0]["keyframes"][1]["box"], [0, 1, 0, 1]),
        0.01,
    )
    page.tab.keyboard.press("Delete")
    assert len(page.json["objects"][0]["keyframes"]) == 1
    page.tab.keyboard.press("Shift+Delete")
    assert page.json["objects"] == []


def test_handles_points_masks_and_paths(page: Page, picture: Path) -> None:
    start(page, picture)
    page.drag((10, 30), (30, 50))
    page.drag((30, 50), (40, 54))  # the corner
    close(page.json["objects"][0]["keyframes"][0]["box"], [10, 30, 40, 54])
    page.tab.get_by_role("radio", name="Points").click()
    page.drag((20, 40), (20, 40))
    page.drag((20, 40), (25, 60))  # it stays inside of the box
    close(page.json["objects"][0]["points"], [[25, 54]])
    page.tab.get_by_role("radio", name="Mask").click()
    page.drag((15, 35), (35, 50))
    mask = page.json["objects"][0]["mask"]
    pixels = decode(mask, "mask")
    assert encode(pixels) == mask and pixels[(35 * 4), (15 * 4)] and not pixels[0, 0]
    page.tab.get_by_role("radio", name="Path").click()
    page.drag((25, 42), (45, 42), (45, 20))
    item = page.json["objects"][0]
    assert [key["frame"] for key in item["keyframes"]] == list(range(1, 9))
    centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (key["box"] for key in item["keyframes"])]
    steps = [math.dist(a, b) for a, b in pairwise(centres)]
    assert max(steps) < 1.5 * min(steps)
    close(centres[-1], (45, 20), 1.0)
    tracks_from_dict(page.json)


def test_click_an_object(page: Page, picture: Path) -> None:
    start(page, picture)
    page.tab.get_by_role("radio", name="Pick").click()
    page.drag((22, 44), (22, 44))
    page.until("document.querySelectorAll('.ed-objects button').length === 1")
    (track,) = tracks_from_dict(page.json).objects
    assert track.mask is not None and track.mask[44, 22] and len(track.points) == 1


def test_import_and_export_round_trip(page: Page, picture: Path, tmp_path: Path) -> None:
    start(page, picture)
    tracks = Tracks(512, 512, (Track("a", ((80, 80, 240, 240), (240, 80, 400, 240))),))
    save_anyi2v(tmp_path / "foreign.json", tracks.resample(8))
    page.open("Import, export")
    page.upload("#import", tmp_path / "foreign.json")
    page.says("imported: AnyI2V JSON")
    first = page.json
    close(
        tracks_from_dict(first).objects[0].resample(8).boxes, tracks.scaled(64, 64).resample(8).objects[0].boxes, 1e-3
    )
    page.tab.click("#export")
    page.says("exported")
    with page.tab.expect_download() as download:
        page.tab.get_by_role("link", name=re.compile("tracks.*json|Download|KB|B")).first.click()
    download.value.save_as(tmp_path / "tracks.json")
    page.tab.get_by_role("button", name="Delete", exact=True).click()
    assert page.json["objects"] == []
    page.upload("#import", tmp_path / "tracks.json")
    page.says("imported: anyi2v JSON")
    assert page.json == first


def test_a_reload_keeps_the_work_and_tabs_do_not_mix(page: Page, picture: Path, browser: Any, address: str) -> None:
    start(page, picture)
    page.drag((10, 30), (36, 58))
    page.tab.fill("#prompt textarea, #prompt input", "a <b>bold</b> ball")
    page.tab.get_by_label("Seed", exact=True).fill("17")
    page.tab.get_by_label("Seed", exact=True).blur()
    page.until("sessionStorage.getItem('anyi2v-studio').includes('\"seed\":17')")
    before = page.json
    page.tab.reload()
    page.says("is there again")
    page.until("document.querySelectorAll('.ed-objects button').length === 1")
    assert page.json == before
    assert page.tab.input_value("#prompt textarea, #prompt input") == "a <b>bold</b> ball"
    assert page.tab.get_by_label("Seed", exact=True).input_value() == "17"
    other = Page(page.tab.context.new_page(), address)
    assert other.tab.locator(".ed-objects button, .ed-stage image").count() == 0
    assert other.tab.input_value("#prompt textarea, #prompt input") == ""


def test_bad_uploads_and_names_do_no_harm(page: Page, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("<script>no image</script>")
    page.upload("#upload", tmp_path / "bad.png")
    page.says("is not a readable image")
    Image.new("1", (16384, 8192)).save(tmp_path / "huge.png")
    page.upload("#upload", tmp_path / "huge.png")
    page.says("at most 67108864 in all are read")
    start(page, picture)
    (tmp_path / "tracks.json").write_text(
        '{"width": 64, "height": 64, "objects": [{"name": "a", "mask": "/etc/passwd"}]}'
    )
    page.open("Import, export")
    page.upload("#import", tmp_path / "tracks.json")
    page.says("another file")
    page.drag((10, 30), (36, 58))
    name = "<img src=x onerror=alert(1)>${alert(2)}`"
    page.tab.fill(".ed-name", name)
    page.tab.locator(".ed-name").blur()
    assert page.json["objects"][0]["name"] == name
    assert page.tab.locator(".ed-objects button").inner_text() == name
    assert page.tab.locator("#editor img").count() == 0
    page.tab.click("#run")
    page.says("the prompt is empty")
    status = page.tab.evaluate("fetch('/gradio_api/file=/etc/passwd').then(answer => answer.status)")
    assert status == 403


def test_cancel(page: Page, picture: Path, root: Path) -> None:
    start(page, picture)
    page.drag((10, 30), (36, 58))
    page.tab.fill("#prompt textarea, #prompt input", "a blue star")
    page.tab.click("#run")
    page.says("inversion")
    page.tab.click("#cancel")
    page.says("cancelled; nothing was written")
    assert not [path for path in (root / "runs").glob("*blue-star*") if (path / "run.json").exists()]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_its_screen(page: Page, width: int, height: int, theme: str) -> None:
    page.tab.set_viewport_size({"width": width, "height": height})
    page.tab.goto(f"{page.address}?__theme={theme}")
    page.tab.wait_for_selector(".ed-stage")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    places = [page.tab.locator(name).bounding_box() for name in ("#run", "#prompt", ".ed-stage", ".ed-time")]
    for place in places:
        assert place is not None and place["x"] >= 0 and place["x"] + place["width"] <= width
        assert width < 1000 or place["y"] + place["height"] <= height  # one screen
    # every control has a name
    code = """() => [...document.querySelectorAll('button, input, select, textarea')].filter((node) => {
      const words = [node.ariaLabel, node.title, node.textContent.trim(), node.placeholder];
      return node.offsetParent && !node.labels?.length && !words.some(Boolean);
    }).map((node) => node.outerHTML.slice(0, 200))"""
    assert page.tab.evaluate(code) == []
