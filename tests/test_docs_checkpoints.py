"""docs/checkpoints.md: its commands parse, its numbers are those of our networks."""

import re
import shlex
from pathlib import Path

import pytest

from anyi2v import cli
from anyi2v.cli.convert import Convert

from .test_manifests import COUNTS, MOTION

TEXT = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
COMMANDS = re.findall(r"^anyi2v (convert .*)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_understood(command: str) -> None:
    asked = cli.parse(shlex.split(command))
    assert isinstance(asked, Convert)
    assert asked.inspect or ((asked.base or asked.sparse_control) and asked.out)


def test_its_commands_are_found() -> None:
    assert len(COMMANDS) == 8


def test_its_numbers_are_ours() -> None:
    for count in (*COUNTS.values(), *MOTION.values()):
        assert f"{count:_}".replace("_", " ") in TEXT
