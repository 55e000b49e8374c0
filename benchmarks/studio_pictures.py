"""Figures in docs/studio.md, after a run on micro: `python -m benchmarks.studio_pictures`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from anyi2v.batch.work import Machine
from anyi2v.files import atomic
from anyi2v.studio.server import served

OUT = Path("docs/studio")
WAIT = 600_000
"""Timeout of a run, in milliseconds."""
SIZES: dict[str, tuple[int, int]] = {"wide": (1280, 800), "narrow": (390, 844)}


def main() -> None:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with (
        tempfile.TemporaryDirectory() as folder,
        served("micro", Machine(), Path(folder) / "studio") as (_, address),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport=_size("wide"), color_scheme="light")
        page.set_default_timeout(WAIT)
        page.goto(address)
        run(page)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for name in SIZES:
                page.set_viewport_size(_size(name))
                page.wait_for_timeout(1500)
                page.evaluate("scrollTo(0, 0)")
                save(page, OUT / f"{name}-{theme}.png", full=name == "narrow")
        browser.close()


def run(page: Page) -> None:
    """Load an example and run it."""
    page.wait_for_selector(".ed-stage")
    page.get_by_label("Example").click()
    page.get_by_role("option", name="Edge map").click()
    page.wait_for_selector(".ed-stage .box")
    page.click("#run")
    page.wait_for_function("document.querySelector('#status textarea').value.includes('done')")
    page.wait_for_function("(v => v && v.readyState === 4)(document.querySelector('#video video'))")
    page.locator(".ed-frame").fill("5")


def save(page: Page, path: Path, *, full: bool) -> None:
    """Save the page as a PNG of 256 colours."""
    with atomic(path) as temporary:
        page.screenshot(path=temporary, full_page=full)
        Image.open(temporary).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary)


def _size(name: str) -> Any:
    return dict(zip(("width", "height"), SIZES[name], strict=True))


if __name__ == "__main__":
    main()
