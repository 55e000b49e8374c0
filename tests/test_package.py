"""The source distribution and the wheel: what is in them, what they say of themselves, and that the installed wheel
works where the repository is not."""

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image, ImageDraw

from anyi2v.cli import COMMANDS
from anyi2v.tracks import Track, Tracks, save_tracks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = (ROOT / "src" / "anyi2v", ROOT / "weights_converters")
ABOUT = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE", "extra_metadata/CITATION.cff"}
IMPORT_ALL = """
import importlib.util, pkgutil, sys
import anyi2v, weights_converters
names = [m.name for p in (anyi2v, weights_converters) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
if importlib.util.find_spec("triton") is None:  # it comes with PyTorch's builds for GPUs
    names = [name for name in names if not name.startswith("anyi2v.operators.triton.")]
modules = [importlib.import_module(name) for name in names]
print(len(modules))
print(*(m.__file__ for m in modules if not m.__file__.startswith(sys.prefix)))
print(*(name for name in ("benchmarks", "tests") if importlib.util.find_spec(name)))
"""
Run = Callable[..., str]


def python(*args: str | Path, cwd: Path = ROOT) -> None:
    done = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "--target", "sdist", "--directory", folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, which thereby has everything that it takes."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "dist", cwd=unpacked)
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and this environment's packages except for the project.

    The working directory is empty at first.
    """
    environment, empty = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(environment)
    programs = environment / "bin"
    python("-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    inside = sysconfig.get_path("purelib", vars={"base": str(environment)})
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    # the .pth files of a folder that one names are not read: an editable installation in there stays unseen
    Path(inside, "dependencies.pth").write_text("\n".join(sorted(shared)) + "\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}

    def run(program: str, *args: str | Path) -> str:
        done = subprocess.run([programs / program, *args], cwd=empty, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_our_two_packages_and_nothing_else(wheel: Path) -> None:
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for suffix in (".safetensors", ".html", ".css", ".js", ".svg", ".json", "py.typed"):
        assert any(name.endswith(suffix) for name in wanted), suffix
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"anyi2v-{PROJECT['version']}.dist-info"
    assert found == wanted | {f"{about}/{name}" for name in ABOUT}


def test_the_source_distribution_has_what_a_wheel_is_built_from(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        top = {PurePosixPath(member.name).parts[1] for member in archive}
    documents = {"README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "constraints.txt"}
    assert top == {"src", "weights_converters", "pyproject.toml", "PKG-INFO", ".gitignore"} | documents


def test_sizes_are_those_of_the_docs(sdist: Path, wheel: Path) -> None:
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    for path, name in ((wheel, "the wheel"), (sdist, "the source distribution")):
        assert f"{name} {path.stat().st_size / 1e6:.0f} MB" in text


def test_version_and_licence_are_the_same_everywhere(wheel: Path) -> None:
    about = metadata(wheel)
    version = PROJECT["version"]
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("anyi2v", version, "Apache-2.0")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {version}" in citation and "license: Apache-2.0" in citation
    sections = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:4] == "## ["]
    assert sections[0] == "## [Unreleased]" and sections[1].startswith(f"## [{version}] - ")


def test_the_installed_program_starts_where_the_repository_is_not(run: Run) -> None:
    said = {run("anyi2v", "--version"), run("python", "-m", "anyi2v", "--version")}
    assert said == {f"anyi2v {PROJECT['version']}\n"}
    text = run("anyi2v", "--help")
    assert all(name in text for name in COMMANDS)


def test_every_module_is_imported_from_the_wheel(run: Run) -> None:
    count, elsewhere, others = run("python", "-c", IMPORT_ALL).splitlines()
    assert int(count) > 200
    assert (elsewhere, others) == ("", "")


def test_a_job_runs_from_the_wheel(run: Run, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).ellipse((8, 24, 26, 42), outline="white")
    image.save(tmp_path / "edges.png")
    save_tracks(tmp_path / "right.json", Tracks(64, 64, (Track("ball", ((8, 24, 26, 42), (38, 24, 56, 42))),)))
    inputs = ("--image", tmp_path / "edges.png", "--tracks", tmp_path / "right.json", "--out", tmp_path / "ball")
    small = ("--frames", "2", "--width", "32", "--height", "32")
    counts = {"steps": 2, "inject-steps": 1, "optimise-steps": 1, "iterations": 1, "inversion-stride": 100}
    few = [word for key, count in counts.items() for word in (f"--method.{key}", str(count))]
    run("anyi2v", "animate", *inputs, "--prompt", "a red circle on a navy background", *small, *few)
    written = {path.name for path in (tmp_path / "ball").iterdir()}
    assert {"run.json", "report.html", "video.mp4", "sheet.png"} <= written
