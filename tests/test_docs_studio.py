"""docs/studio.md: its commands parse, its keys and figures are those of the page."""

import re
import shlex
from pathlib import Path

from anyi2v import cli
from anyi2v.cli.studio import Studio
from anyi2v.images.media import MOST_PIXELS
from anyi2v.studio.server import HERE, MAX_UPLOAD

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "studio.md").read_text()
EDITOR = (HERE / "editor.js").read_text()


def test_its_commands_are_understood() -> None:
    commands = re.findall(r"^anyi2v (.*)$", TEXT, flags=re.MULTILINE)
    assert len(commands) == 3
    assert [type(cli.parse(shlex.split(command))) is Studio for command in commands] == [True, True, False]


def test_its_figures_are_ours() -> None:
    assert f"{MAX_UPLOAD >> 20} MiB a file" in TEXT.replace("\n", " ")
    assert f"{MOST_PIXELS // 10**6} million pixels" in TEXT


def test_its_keys_are_those_of_the_editor() -> None:
    (line,) = re.findall(r"^const TOOLS = \{(.*)\};$", EDITOR, flags=re.MULTILINE)
    keys = {key.upper(): tool for key, tool in re.findall(r'(\w): "(\w+)"', line)}
    rows = re.findall(r"^\| ([\w, ]+) \| ([A-Z, ]+) \|", TEXT, flags=re.MULTILINE)
    assert sorted(key for _, cell in rows for key in cell.split(", ")) == sorted(keys)


def test_its_pictures_are_there() -> None:
    for name in re.findall(r"!\[.*\]\((.*)\)", TEXT):
        assert (ROOT / "docs" / name).is_file()
