"""The page in Chromium: what a user does, and what is then on disk."""

import base64
import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyi2v.batch.jobs import read_jobs
from anyi2v.images.conditions import Layer, load_condition
from anyi2v.images.media import load_image, write_image
from anyi2v.studio.document import checked
from anyi2v.studio.examples import example
from anyi2v.studio.server import MAX_UPLOAD
from anyi2v.tracks import Track, Tracks, save_anyi2v, tracks_from_dict
from anyi2v.tracks.keyframes import INTERPOLATIONS, between
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
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
STATE = "document.querySelector('#editor .ed').parentElement.studio.state"
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
        if not request.url.startswith((self.address.partition("?")[0], "data:", "blob:")):
            self.outside.append(request.url)

    def until(self, condition: str) -> None:
        self.tab.wait_for_function(condition)

    def says(self, words: str) -> str:
        self.until(f"document.querySelector('#status textarea')?.value.includes({json.dumps(words)})")
        return self.tab.input_value("#status textarea")

    def estimate(self, words: str) -> str:
        """Presses "Estimate" until the answer has the words: a click during another event is ignored."""
        from playwright.sync_api import TimeoutError

        said = f"document.querySelector('#status textarea')?.value.includes({json.dumps(words)})"
        for _ in range(8):
            self.tab.click("#estimate")
            with contextlib.suppress(TimeoutError):
                self.tab.wait_for_function(said, timeout=WAIT / 8)
                break
        return self.says(words)

    def set(self, name: str, value: int) -> None:
        """Fills in a setting until the page has taken it: what is filled in while the form is mounted is lost."""
        from playwright.sync_api import TimeoutError

        kept = f"JSON.parse(sessionStorage.getItem('anyi2v-studio')).form?.['method.{name}'] === {value}"
        for _ in range(8):
            self.tab.fill(f"#setting-{name} input", str(value))
            with contextlib.suppress(TimeoutError):
                self.tab.wait_for_function(kept, timeout=WAIT / 8)
                return
        pytest.fail(f"{name} was not taken")

    def upload(self, button: str, *files: Path) -> None:
        with self.tab.expect_file_chooser() as chooser:
            self.tab.click(button)
        chooser.value.set_files(list(map(str, files)))

    def open(self, name: str) -> None:
        self.tab.get_by_role("button", name=name).click()

    def frame(self, number: int) -> None:
        self.tab.locator(".ed-frame").fill(str(number))

    def pick(self, label: str, option: str) -> None:
        self.tab.get_by_label(label, exact=True).click()
        self.tab.get_by_role("option", name=option, exact=True).click()
        self.until("!document.querySelector('[role=option]')")  # the list fades out

    def tool(self, name: str) -> None:
        self.tab.get_by_role("radio", name=name).click()

    @property
    def image(self) -> Any:
        """The condition image, as bytes of a PNG."""
        code = "fetch(document.querySelector('.ed-stage image').href.baseVal).then((a) => a.arrayBuffer())"
        return bytes(self.tab.evaluate(f"{code}.then((bytes) => [...new Uint8Array(bytes)])"))

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


def tab_of(browser: Any, address: str, **options: Any) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    page = Page(context.new_page(), address)
    yield page
    assert page.outside == [] and page.errors == []
    context.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    yield from tab_of(browser, address)


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
        page.set(name, 2)
    assert re.search(r"memory: .*; about \d+ s", page.estimate("about"))
    tab.click("#run")
    page.says("memory:")
    page.until("document.querySelector('#progress progress').value > 0")
    page.until("document.querySelector('#preview img')?.naturalWidth > 0")
    assert re.fullmatch(r"done: 0001-[\w-]+", page.says("done:").splitlines()[0])
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
    jobs = read_jobs(job / "jobs.jsonl")
    assert not jobs.problems and jobs.jobs[0].request.method.steps == 2
    record = json.loads((root / "runs" / job.name / "run.json").read_text())
    assert record["method"]["steps"] == 2 and record["prompt"] == "a red square on a teal background"
    tab.get_by_role("tab", name="Command").click()
    tab.wait_for_selector("#command .cm-content")
    assert "--method.steps 2" in tab.inner_text("#command .cm-content")
    tab.get_by_role("tab", name="Pictures").click()
    page.until("document.querySelectorAll('#pictures img').length >= 4")
    # the run is in the list, and can be compared and loaded
    tab.get_by_role("button", name="Delete", exact=True).click()
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_label("Compare with").click()
    tab.get_by_role("option", name=job.name).click()
    tab.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value === 'the inputs are the same')")
    for name in ("video_a", "video_b"):
        page.until(f"document.querySelector('#{name} video')?.readyState === 4")
    tab.get_by_role("button", name="Load image, tracks").click()
    page.says(f"loaded {job.name}")
    page.until("document.querySelectorAll('.ed-objects button').length === 1")
    assert page.json == document


def test_the_page_interpolates_as_the_library_does(page: Page) -> None:
    generator = np.random.default_rng(0)
    for kind in INTERPOLATIONS:
        for count in (1, 2, 3, 5):
            frames = sorted(generator.choice(np.arange(1, 25), count, replace=False).tolist())
            boxes = [(x, y, x + w, y + h) for x, y, w, h in generator.uniform(1, 30, (count, 4)).tolist()]
            keys = [{"frame": frame, "box": box} for frame, box in zip(frames, boxes, strict=True)]
            code = (
                "([keys, kind]) => document.querySelector('#editor .ed').parentElement.studio.between(keys, 24, kind)"
            )
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
    page.drag((15, 45), (15, 45))
    while len(page.json["objects"][0]["points"]) > 1:  # two clicks may be too slow on a busy machine
        page.tab.mouse.dblclick(*page.screen(25, 54))
    close(page.json["objects"][0]["points"], [[15, 45]])
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


def diamond(page: Page, frame: int) -> Any:
    return page.tab.locator(f'.ed-keys [title="frame {frame}"]')


def along(page: Page, frame: int) -> tuple[float, float]:
    """Where a frame is on the time line, on the screen."""
    lane = page.tab.locator(".ed-keys").bounding_box()
    assert lane is not None
    return lane["x"] + lane["width"] * (frame - 1) / 7, lane["y"] + lane["height"] / 2


def frames_of(page: Page) -> list[int]:
    return [key["frame"] for key in page.json["objects"][0]["keyframes"]]


def test_the_time_line_and_several_objects(page: Page, picture: Path) -> None:
    start(page, picture)
    page.drag((10, 30), (26, 46))
    for frame, x in ((4, 24.0), (8, 50.0)):
        page.frame(frame)
        page.drag((18, 38) if frame == 4 else (24, 38), (x, 38))
    assert frames_of(page) == [1, 4, 8]
    tab, mouse = page.tab, page.tab.mouse
    for wish, found in ((6, [1, 6, 8]), (8, [1, 7, 8])):  # not beyond its neighbour
        mouse.move(*along(page, frames_of(page)[1]))
        mouse.down()
        mouse.move(*along(page, wish), steps=4)
        mouse.up()
        assert frames_of(page) == found and tab.inner_text(".ed-now") == f"{found[1]} / 8"
    diamond(page, 7).focus()
    tab.keyboard.press("ArrowLeft")
    assert frames_of(page) == [1, 6, 8]
    tab.get_by_role("button", name="Undo").click()
    assert frames_of(page) == [1, 7, 8]
    assert tab.locator(".ed-stage .onion").count() == 7 and tab.locator(".ed-stage .way").count() == 1
    numbers = tab.locator(".ed-stage text").all_text_contents()
    assert {"1", "7", "8"} <= {text.strip() for text in numbers}
    tab.get_by_role("button", name="Even speed").click()
    assert frames_of(page) == [1, 2, 8]  # 6 of 32 pixels
    tab.select_option(".ed-kind", "smooth")
    page.frame(5)
    tab.get_by_role("button", name="+ Key").click()
    assert frames_of(page) == [1, 2, 5, 8] and page.json["objects"][0]["interpolation"] == "smooth"
    # an anchor of another colour, and the camera
    page.frame(1)
    page.drag((2, 2), (8, 8))
    tab.get_by_role("button", name="Stand still").click()
    tab.fill(".ed-weight", "0.5")
    tab.locator(".ed-weight").blur()
    tab.get_by_text("Camera", exact=True).click()
    for name, value in ((".ed-pan-x", "3"), (".ed-zoom", "1.2")):
        tab.fill(name, value)
        tab.locator(name).blur()
    document = page.json
    assert [item["name"] for item in document["objects"]] == ["object 1", "object 2"]
    assert document["objects"][1]["weight"] == 0.5 and len(document["objects"][1]["keyframes"]) == 1
    assert document["camera"] == {"pan": [3, 0], "zoom": 1.2}
    colours = "[...document.querySelectorAll('.ed-objects i')].map((node) => node.style.background)"
    assert len(set(tab.evaluate(colours))) == 2
    tracks_from_dict(document)
    tab.get_by_text("Track JSON", exact=True).click()
    tab.get_by_role("button", name="Copy", exact=True).click()
    tab.fill("#prompt textarea, #prompt input", "")
    tab.keyboard.press("Control+v")
    assert "".join(tab.input_value("#prompt textarea, #prompt input").split()) == "".join(json.dumps(document).split())


@pytest.fixture
def phone(browser: Any, address: str) -> Iterator[Page]:
    for page in tab_of(browser, address, has_touch=True):
        page.tab.set_viewport_size({"width": 390, "height": 844})
        yield page


def swipe(page: Page, *points: tuple[float, float], last: str = "touchEnd") -> None:
    """Puts a finger on the first point of the screen, and lifts it at the last one."""
    protocol = page.tab.context.new_cdp_session(page.tab)
    for number, (x, y) in enumerate(points):
        kind = "touchMove" if number else "touchStart"
        protocol.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    protocol.send("Input.dispatchTouchEvent", {"type": last, "touchPoints": []})


def test_everything_is_drawn_by_touch(phone: Page, picture: Path) -> None:
    start(phone, picture)
    tab, place = phone.tab, phone.screen
    before = tab.evaluate("scrollY")
    swipe(phone, place(10, 30), place(20, 40), place(36, 58))
    close(phone.json["objects"][0]["keyframes"][0]["box"], [10, 30, 36, 58], 1)
    phone.frame(8)
    swipe(phone, place(23, 44), place(28, 34), place(31, 24))
    close(phone.json["objects"][0]["keyframes"][1]["box"], [18, 10, 44, 38], 1)
    swipe(phone, place(44, 38), place(46, 40), place(50, 44))  # the corner
    drawn = phone.json
    close(drawn["objects"][0]["keyframes"][1]["box"], [18, 10, 50, 44], 1)
    swipe(phone, place(23, 24), place(40, 40), last="touchCancel")
    assert phone.json == drawn
    assert tab.evaluate("scrollY") == before  # the page stays where it is
    swipe(phone, along(phone, 8), along(phone, 7), along(phone, 6))
    assert frames_of(phone) == [1, 6]
    tab.get_by_role("radio", name="Points").click()
    tab.touchscreen.tap(*place(20, 40))
    phone.until(f"{STATE}.doc.objects[0].points?.length === 1")
    close(phone.json["objects"][0]["points"], [[20, 40]], 1)
    while "points" in phone.json["objects"][0]:  # two taps may be too slow on a busy machine
        tab.touchscreen.tap(*place(20, 40))
    tab.get_by_role("radio", name="Mask").click()
    phone.until(f"{STATE}.tool === 'brush'")
    swipe(phone, place(15, 35), place(30, 50))
    assert "mask" in phone.json["objects"][0]
    tab.get_by_role("button", name="No mask").click()
    phone.until(f"!{STATE}.doc.objects[0].mask")


TETRAHEDRON = """v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
f 1 3 2
f 1 2 4
f 1 4 3
f 2 3 4
"""


def test_meshes_layers_sizes_and_masks_of_files(page: Page, picture: Path, tmp_path: Path) -> None:
    mesh, over, seen = tmp_path / "mesh.obj", tmp_path / "over.png", tmp_path / "seen.png"
    mesh.write_text(TETRAHEDRON)
    Image.new("RGB", (64, 64), (255, 0, 0)).save(over)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    mask.save(seen)

    def expect(*layers: Layer, side: int = 64) -> None:
        (tmp_path / "shown.png").write_bytes(page.image)
        found, wanted = load_image(tmp_path / "shown.png"), load_condition(layers, side, side)[0]
        assert found.shape == wanted.shape and (found == wanted).all()

    page.upload("#upload", mesh)
    page.until("document.querySelector('.ed-stage image')")
    expect(Layer(mesh))
    page.open("Condition image: fit")
    for name, file in (("#layer", over), ("#layer-mask", seen)):
        page.tab.locator(f"{name} input[type=file]").set_input_files(file)
        page.tab.locator(name).get_by_text(file.stem).first.wait_for()
    former = page.image
    page.tab.get_by_role("button", name="Make the condition image").click()
    page.until(f"document.querySelector('.ed-stage image').href.baseVal !== {json.dumps(url_of(former))}")
    expect(Layer(mesh), Layer(over, seen))
    for name in ("width", "height"):
        page.tab.fill(f"#setting-source-{name} input, #setting-source-{name} textarea", "32")
    page.tab.get_by_role("button", name="Make the condition image").click()
    page.until(f"{STATE}.doc.width === 32")
    expect(Layer(mesh), Layer(over, seen), side=32)
    page.open("Import, export")
    page.upload("#mask", seen)
    page.says("mask loaded")
    (item,) = page.json["objects"]
    assert (decode(item["mask"], "mask") == (np.asarray(mask) > 0)).all()
    close(item["keyframes"][0]["box"], [0, 16, 32, 32], 0.01)


def url_of(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def test_other_methods_can_be_chosen(page: Page, picture: Path) -> None:
    start(page, picture)
    page.drag((10, 30), (36, 58))
    page.tab.fill("#prompt textarea, #prompt input", "a red circle on a teal background")
    page.open("Settings")
    assert not page.tab.locator("#setting-freetraj-subjects").is_visible()
    page.pick("method", "freetraj")
    subjects = page.tab.locator("#setting-freetraj-subjects").locator("input, textarea")
    subjects.fill("gold circle")
    page.estimate("'gold circle'")
    subjects.fill("red circle")
    subjects.blur()
    assert re.search(r"memory: .*; at least \d+ s", page.estimate("at least"))
    page.until("sessionStorage.getItem('anyi2v-studio').includes('red circle\"')")
    page.tab.reload()
    page.says("is there again")
    page.open("Settings")
    subjects.wait_for()
    assert subjects.input_value() == "red circle"
    assert not page.tab.locator("#setting-trailblazer-subjects").is_visible()


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
    page.says("imported: JSON of the published AnyI2V code")
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
    page.says("imported: anyi2v track file")
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
    page.pick("Example", "Examples")  # the list's title changes nothing
    page.tab.click("#run")
    page.says("the prompt is empty")
    assert page.tab.locator(".toast-body").count() == 0
    status = page.tab.evaluate("fetch('/gradio_api/file=/etc/passwd').then(answer => answer.status)")
    assert status == 403


def test_jobs_wait_for_each_other_and_can_be_cancelled(page: Page, picture: Path, root: Path, address: str) -> None:
    other = Page(page.tab.context.new_page(), address)
    for tab in (page, other):
        start(tab, picture)
        tab.drag((10, 30), (36, 58))
        tab.tab.fill("#prompt textarea, #prompt input", "a blue star")
    page.tab.click("#run")
    page.says("inversion")
    other.tab.click("#run")
    other.says("waiting for other jobs")
    other.tab.click("#cancel")
    page.tab.click("#cancel")
    for tab in (page, other):
        tab.says("cancelled; nothing was written")
    assert not [path for path in (root / "runs").glob("*blue-star*") if (path / "run.json").exists()]
    other.tab.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_its_screen_and_can_be_read(browser: Any, address: str, theme: str) -> None:
    for page in tab_of(browser, f"{address}?__theme={theme}"):
        page.pick("Example", "Edge map")
        page.tab.wait_for_selector(".ed-stage .box")
        for width, height in ((390, 844), (1280, 800)):
            page.tab.set_viewport_size({"width": width, "height": height})
            assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
            names = ("#run", "#prompt", ".ed-stage", ".ed-time", "#results", "#settings", "#exchange")
            for place in (page.tab.locator(name).bounding_box() for name in names):
                assert place is not None and place["x"] >= 0 and place["x"] + place["width"] <= width
                assert width < 1000 or place["y"] + place["height"] <= height  # one screen
        for name in ("Condition image: fit", "Import, export", "Settings"):
            page.open(name)
        for name in ("Camera", "Track JSON"):
            page.tab.get_by_text(name, exact=True).click()
        page.pick("method", "sparsectrl")
        page.tab.wait_for_selector("#setting-sparsectrl-scale")
        read = page.tab.evaluate(CONTRAST)
        assert read["found"] == [] and read["texts"] > 150 and read["fields"] > 50
        narrow = (
            "[...document.querySelectorAll('.setting')].filter((n) => n.offsetParent && n.offsetWidth < 150).length"
        )
        assert page.tab.evaluate(narrow) == 0
        check_names(page)
        check_focus(page)


def check_names(page: Page) -> None:
    """Every control has a name for assistive technology, as Chromium computes it."""
    protocol = page.tab.context.new_cdp_session(page.tab)
    nodes = protocol.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "checkbox", "combobox", "radio", "slider", "spinbutton", "tab", "textbox", "application"}
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if not node["ignored"] and "name" in node]
    controls = [(role, name) for role, name in named if role in roles]
    assert len(controls) > 80 and [role for role, name in controls if not name.strip()] == []


FOCUS = """() => {
  const look = (node) => {
    const s = getComputedStyle(node);
    return [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow, s.borderColor, s.backgroundColor].join();
  };
  const node = document.activeElement;
  const line = [];
  for (let at = node; at && line.length < 4; at = at.parentElement) line.push(at);
  const focused = line.map(look).join();
  node.blur();
  const plain = line.map(look).join();
  node.focus();
  (window.reached ??= new Set()).add(node);
  return [node.outerHTML.slice(0, 120), node === document.body || focused !== plain, window.reached.size];
}"""


def check_focus(page: Page) -> None:
    """The Tab key moves on to another control each time, and every control shows that it has the focus."""
    page.tab.add_style_tag(content="* { transition: none !important; }")
    page.tab.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    for count in range(1, 46):  # fewer than the controls of the page, see `check_names`
        page.tab.keyboard.press("Tab")
        name, visible, reached = page.tab.evaluate(FOCUS)
        assert visible and reached == count, name


def answer(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(address + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_requests_reach_no_other_files_and_no_other_machines(
    page: Page, picture: Path, address: str, root: Path, tmp_path: Path
) -> None:
    start(page, picture)
    token = page.tab.evaluate("JSON.parse(sessionStorage.getItem('anyi2v-studio')).token")
    condition = root / "sessions" / token / "condition.png"
    assert condition.is_file() and answer(address, "config")[0] == 200
    for path in (
        condition,
        root / "sessions" / token / ".." / token / "condition.png",
        "/etc/passwd",
        "pyproject.toml",
    ):
        assert answer(address, f"gradio_api/file={path}")[0] == 403
    for url in (address, "http://example.org/a.png", "https://example.org/a.png"):
        assert answer(address, f"gradio_api/file={url}")[0] == 403
        assert answer(address, f"gradio_api/proxy={url}")[0] == 400
    assert answer(address, "config", Host="example.org")[0] == 400
    assert answer(address, "gradio_api/run-history/buckets")[0] == 404
    parts = {
        part["props"].get("elem_id"): part["id"] for part in json.loads(answer(address, "config")[1])["components"]
    }
    events = json.loads(answer(address, "config")[1])["dependencies"]
    (event,) = (event for event in events if [parts["upload"], "upload"] in event["targets"])

    def ask(path: str, session: str) -> tuple[int, str]:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [file if part == parts["upload"] else None for part in event["inputs"]]
        body = json.dumps({"fn_index": event["id"], "data": data, "session_hash": session}).encode()
        return answer(address, "gradio_api/queue/join", body, **{"Content-Type": "application/json"})

    assert ask("http://example.org/a.png", "one")[0] == 403
    for session, path in (("two", str(picture)), ("three", str(condition))):
        assert ask(path, session)[0] == 200
        with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
            ended = next(line for line in stream if b"process_completed" in line)
        assert json.loads(ended.removeprefix(b"data: "))["success"] is False
    edge = "x" * 20
    large = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    large += bytes(MAX_UPLOAD + 1) + f"\r\n--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    assert answer(address, "gradio_api/upload", large, **{"Content-Type": kind})[0] == 413
