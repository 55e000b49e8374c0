"""500 inputs that cannot be evaluated, generated: each ends in one line that names the culprit, and writes nothing."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyi2v import cli
from anyi2v.evaluation.request import METRICS
from anyi2v.images.media import write_image
from anyi2v.images.video import write_video
from anyi2v.tracks import Track, Tracks, save_tracks
from tests.test_evaluation import Means

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")

NAMES = ("a", "b", "c")
FRAMES, SIZE = 3, 12
SETS = {"generated": ".npz", "real": ".npz", "frames": ""}
"""Folders of videos, and the suffix of each video in them; "frames" has folders of pictures."""
Spoil = Callable[[Path], str]
"""Makes an input unusable; returns a word that the error must contain."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny videos three times over, and their tracks."""
    folder = tmp_path_factory.mktemp("sound")
    tracks = Tracks(SIZE, SIZE, (Track("it", ((2, 2, 8, 8), (4, 2, 10, 8))),))
    for seed, name in enumerate(NAMES):
        video = torch.rand(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        for kind in ("generated", "real"):
            write_video(folder / kind / f"{name}.npz", video, fps=8)
        for number, frame in enumerate(video):
            write_image(folder / "frames" / name / f"{number}.png", frame)
        save_tracks(folder / "tracks" / f"{name}.json", tracks)
    return folder


names = st.sampled_from(NAMES)


def missing(kind: str, name: str) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / kind / f"{name}{SETS.get(kind, '.json')}"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return repr(name)

    return spoil


def unequal(kind: str, name: str, other: str) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / kind / f"{name}{SETS.get(kind, '.json')}"
        path.rename(path.with_stem(f"{name}{other}"))
        return "paired by name"

    return spoil


def changed(kind: str, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / kind / f"{name}.npz"
        video = np.load(path)["video"].copy()
        np.savez(path, video=edit(video), fps=8)
        return f"{kind}/"

    return spoil


def replaced(kind: str, name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / kind / f"{name}{SETS.get(kind) or '.json'}"
        path.write_bytes(content)
        return path.name

    return spoil


def cut(kind: str, name: str, share: float) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / kind / f"{name}{SETS.get(kind) or '.json'}"
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path.name

    return spoil


def picture(name: str, number: int, content: bytes | None) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / "frames" / name / f"{number}.png"
        if content is None:
            write_image(path, torch.zeros(3, SIZE - 5, SIZE))
        else:
            path.write_bytes(content)
        return path.name

    return spoil


def single(keep: str) -> Spoil:
    def spoil(folder: Path) -> str:
        for name in NAMES:
            if name != keep:
                for kind in (*SETS, "tracks"):
                    missing(kind, name)(folder)
        return "single video"

    return spoil


def tracked(name: str, change: Mapping[str, object]) -> Spoil:
    def spoil(folder: Path) -> str:
        path = folder / "tracks" / f"{name}.json"
        data = json.loads(path.read_text())
        for key, value in change.items():
            (data if key in ("width", "height", "objects") else data["objects"][0])[key] = value
        path.write_text(json.dumps(data))
        return f"{name}.json"

    return spoil


def at(*place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(video: np.ndarray) -> np.ndarray:
        video[place] = value
        return video

    return edit


numbers = st.sampled_from([float("nan"), float("inf"), -float("inf"), 2.0, 255.0, -1.0])
pixel = st.tuples(st.integers(0, FRAMES - 1), st.integers(0, 2), st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
edits = st.one_of(
    st.builds(lambda place, value: at(*place, value=value), pixel, numbers),
    st.integers(0, FRAMES - 1).map(lambda n: lambda v: v[:n]),
    st.integers(1, SIZE - 1).map(lambda n: lambda v: v[..., :n]),
    st.integers(1, SIZE - 1).map(lambda n: lambda v: v[:, :, :n]),
    st.integers(1, 4).map(lambda n: lambda v: np.concatenate([v, v[:1].repeat(n, 0)])),
    st.sampled_from([1, 2]).map(lambda n: lambda v: v[:, :n]),
    st.sampled_from(["uint8", "int64", "bool", "complex64"]).map(lambda kind: lambda v: v.astype(kind)),
    st.integers(1, 3).map(lambda n: lambda v: v[(0,) * n]),
)
boxes = st.sampled_from(
    [[], [[1, 2, 3]], [[8, 8, 2, 2]], [[50, 50, 60, 60]], [["a", 1, 2, 3]], "none", [[float("nan"), 0, 1, 1]], {}, 3]
)
changes = st.one_of(
    boxes.map(lambda value: {"boxes": value}),
    st.integers(20, 90).map(lambda width: {"width": width}),
    st.sampled_from([0, -4, "12", None, 1.5]).map(lambda value: {"height": value}),
    st.sampled_from(["", None, 3]).map(lambda value: {"name": value}),
    st.sampled_from([None, {}, "it", [3], [[]]]).map(lambda value: {"objects": value}),
)
folders = st.sampled_from([*SETS, "tracks"])
files = st.sampled_from(["generated", "real", "tracks"])
spoils = st.one_of(
    st.tuples(folders, names).map(lambda x: (x[0], missing(*x))),
    st.tuples(folders, names, st.sampled_from(["2", "x", " "])).map(lambda x: (x[0], unequal(*x))),
    st.tuples(st.sampled_from(["generated", "real"]), names, edits).map(lambda x: (x[0], changed(*x))),
    st.tuples(files, names, st.binary(max_size=60)).map(lambda x: (x[0], replaced(*x))),
    st.tuples(files, names, st.floats(0, 0.95)).map(lambda x: (x[0], cut(*x))),
    st.tuples(names, st.integers(0, FRAMES - 1), st.one_of(st.none(), st.binary(max_size=60))).map(
        lambda x: ("frames", picture(*x))
    ),
    names.map(lambda name: ("generated", single(name))),
    st.tuples(names, changes).map(lambda x: ("tracks", tracked(*x))),
)
"""Where the spoilt files are, and what spoils them."""


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(spoil=spoils)
def test_each_ends_in_one_line_that_names_the_culprit(sound: Path, tmp_path: Path, spoil: tuple[str, Spoil]) -> None:
    folder = tmp_path / "bad"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    kind, change = spoil
    word = change(folder)
    code, said = evaluate(folder, "frames" if kind == "frames" else "generated")
    assert code == 2
    assert len(said) == 1 and said[0].startswith("anyi2v: error: "), said
    assert word in said[0]
    assert len(said[0]) < 600
    assert not (folder / "eval.json").exists()


def evaluate(folder: Path, generated: str) -> tuple[int, list[str]]:
    """Code and lines on stderr of an evaluation."""
    args = [
        f"--{name}={folder / (generated if name == 'generated' else name)}" for name in ("generated", "real", "tracks")
    ]
    args += ["--metrics", "fid", "objmc", "--extractor", str(folder / "means.pt"), "--frame-convention", "as-is"]
    args += ["--resamples", "0", "--out", str(folder / "eval.json")]
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["eval", "videos", *args])
    return code, heard.getvalue().splitlines()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("generated", ["generated", "frames"])
def test_the_sound_inputs_are_evaluated(sound: Path, tmp_path: Path, generated: str) -> None:
    shutil.copytree(sound, tmp_path / "good")
    torch.jit.script(Means()).save(tmp_path / "good" / "means.pt")
    code, _ = evaluate(tmp_path / "good", generated)
    assert code == 0 and (tmp_path / "good" / "eval.json").is_file()


NEEDS = {
    "fid": "--frame-convention",
    "kid": "--frame-convention",
    "fvd": "--video-convention",
    "kvd": "--video-convention",
    "objmc": "--tracks",
    "trajectory": "--tracks",
    "fd": "--real",
    "structure": "--images",
    "clip": "--clip",
}


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_says_what_it_needs(sound: Path, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "videos", "--generated", str(sound / "generated"), "--metrics", metric]) == 2
    assert f"{metric} needs {NEEDS[metric]}" in capsys.readouterr().err
