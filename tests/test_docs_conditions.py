"""docs/conditions.md: its commands parse, its Python runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyi2v
from anyi2v import cli
from anyi2v.cli_condition import Condition
from anyi2v.raster import Camera
from anyi2v.tracks import Track, Tracks, save_tracks

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "conditions.md").read_text()
COMMANDS = re.findall(r"^anyi2v (condition .*)$", TEXT, flags=re.MULTILINE)


def test_its_commands_are_understood() -> None:
    asked = [cli.parse(shlex.split(command)) for command in COMMANDS]
    assert len(asked) == 3
    assert all(isinstance(job, Condition) and (job.image or job.layer) for job in asked)


def test_its_defaults_are_ours() -> None:
    assert Condition().camera == (Camera().azimuth, Camera().elevation, Camera().distance)
    assert (Condition().fov, Condition().fit) == (Camera().fov, "crop")
    assert f"at distance {Camera().distance:g} and `--fov {Camera().fov:g}`" in TEXT


def test_its_picture_is_there() -> None:
    with Image.open(DOCS / "conditions.png") as picture:
        assert picture.width >= 900


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'anyi2v[mesh]'")
    pytest.importorskip("embreex", reason="embreex is not installed: pip install 'anyi2v[mesh]'")
    monkeypatch.chdir(tmp_path)
    trimesh.creation.box().export("chair.glb")
    Image.fromarray(np.zeros((80, 100, 3), dtype=np.uint8)).save("photo.png")
    save_tracks("tracks.json", Tracks(50, 40, (Track("a", ((1, 1, 9, 9),)),)))
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = {"Path": Path, "anyi2v": anyi2v, "sketch": torch.zeros(3, 256, 256), "mask": torch.ones(256, 256)}
    exec(block, names)
    assert names["image"].shape == (3, 320, 512)
    assert not names["mixed"].any()
