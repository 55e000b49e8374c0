"""How OpenMP's threads wait: passively in our programs, untouched in others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyi2v.execution.threads import SETTINGS, wait_passively

PRINT = "import os; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in __import__('sys').modules)"


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def policy(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.strip().splitlines()[-1]


def test_the_command_line_waits_passively_before_torch_is_there() -> None:
    help_page = "from anyi2v.cli import main\ntry:\n main(['--help'])\nexcept SystemExit:\n " + PRINT
    assert policy(help_page) == "PASSIVE False"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_users_policy_stays(name: str) -> None:
    code = f"from anyi2v.execution.threads import wait_passively; wait_passively(); {PRINT}"
    assert policy(code, **{name: "ACTIVE"}) == f"{'ACTIVE' if name == 'OMP_WAIT_POLICY' else None} False"


def test_the_library_changes_nothing() -> None:
    assert policy(f"import anyi2v, anyi2v.micro, anyi2v.cli; {PRINT}") == "None False"


def test_once_torch_is_there_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in sys.modules  # by the other tests' imports
    wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("module", ["anyi2v.micro.training.train", "benchmarks.claims", "weights_converters"])
def test_programs_of_their_own_wait_passively(module: str, tmp_path: Path) -> None:
    """A module that is found first says what the program has set when it imports torch, or ends."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\natexit.register(lambda: print(os.environ.get('OMP_WAIT_POLICY')))\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.stdout.splitlines()[-1] == "PASSIVE", done.stderr
