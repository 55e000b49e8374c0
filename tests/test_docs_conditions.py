"""docs/conditions.md: its commands parse, its defaults are ours."""

import re
import shlex
from pathlib import Path

from PIL import Image

from anyi2v import cli
from anyi2v.cli.condition import Condition
from anyi2v.images.raster import Camera

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
