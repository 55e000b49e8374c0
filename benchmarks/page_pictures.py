"""Pictures of pages in docs/runs.md, and README's moving picture: `python -m benchmarks.page_pictures runs/pages`.

The folder keeps the demo, the inspected run and the batch whose pages are shown; those that it already has are reused.
"""

import json
import shutil
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from anyi2v import cli
from anyi2v.files import atomic

OUT = Path("docs/pages")
WIDTHS = {"wide": (1280, 1500), "narrow": (390, 1500)}
"""Window sizes by name, in pixels."""
WIDTH = 960
"""Width of the moving picture in pixels."""


def main(work: Path) -> None:
    """Make the runs that are missing, and a picture of each page in each width."""
    pages = make_runs(work)
    save_demo(work / "demo", OUT.parent / "demo.gif")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for name, path in pages.items():
            for kind in WIDTHS:
                save(browser, path, kind, OUT / f"{name}-{kind}.png")
        browser.close()


def make_runs(work: Path) -> dict[str, Path]:
    """Return the pages by name: of a run, the demo, a batch, and an inspected run."""
    demo, inspected, batch = work / "demo", work / "inspected", work / "batch"
    if not (demo / "index.html").is_file():
        run("demo", "--out", str(demo), "--overwrite")
    if not (inspected / "inspection").is_dir():
        shutil.copytree(demo / "edge", inspected, dirs_exist_ok=True)
        run("inspect", str(inspected))
    if not (batch / "index.html").is_file():
        run("batch", str(jobs(work)), "--out", str(batch))
    return {
        "report": demo / "depth" / "report.html",
        "demo": demo / "index.html",
        "batch": batch / "index.html",
        "inspection": inspected / "report.html",
    }


def jobs(work: Path) -> Path:
    """Write a batch of the demo's images with other prompts; return the file."""
    words = {
        "edge": ("green square", "olive"),
        "depth": ("yellow cross", "gray"),
        "segmentation": ("orange triangle", "navy"),
    }
    lines = [
        {
            "image": str((work / "demo" / kind / "condition.png").resolve()),
            "tracks": str((work / "demo" / kind / "run.json").resolve()),
            "prompt": f"a {thing} on a {ground} background",
            "name": kind,
        }
        for kind, (thing, ground) in words.items()
    ]
    path = work / "jobs.jsonl"
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(*args: str) -> None:
    """Run a command of anyi2v; raises RuntimeError if it fails."""
    if cli.main(list(args)) != 0:
        raise RuntimeError(f"anyi2v {' '.join(args)} failed")


def save_demo(demo: Path, out: Path) -> None:
    """Save the demo's conditions and videos, with boxes and paths, as one GIF."""
    cases = [imageio.imread(demo / kind / "side_by_side.gif") for kind in ("edge", "depth", "segmentation")]
    fps = json.loads((demo / "edge" / "run.json").read_text())["fps"]
    frames = [Image.fromarray(np.concatenate(parts, axis=1)[..., :3]) for parts in zip(*cases, strict=True)]
    small = [frame.resize((WIDTH, WIDTH * frame.height // frame.width), Image.Resampling.BOX) for frame in frames]
    few = [frame.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in small]
    with atomic(out) as temporary:
        few[0].save(temporary, "GIF", save_all=True, append_images=few[1:], duration=1000 // fps, loop=0)


def save(browser: Browser, path: Path, kind: str, out: Path) -> None:
    """Save the upper part of a page as a PNG of 256 colours, which an octree spreads so that thin lines keep theirs."""
    width, height = WIDTHS[kind]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(4000)  # the controls of videos have faded
    filled = page.evaluate("document.querySelector('main').getBoundingClientRect().bottom")
    with atomic(out) as temporary:
        page.screenshot(path=temporary, clip={"x": 0, "y": 0, "width": width, "height": min(filled, height)})
        few = Image.open(temporary).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(temporary, optimize=True)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pages"))
