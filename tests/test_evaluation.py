"""`anyi2v eval videos` from folders to files, and the many ways in which its input cannot be used."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v import cli
from anyi2v.evaluation.conventions import FRAME_CONVENTIONS, VIDEO_CONVENTIONS
from anyi2v.evaluation.distances import frechet, moments
from anyi2v.evaluation.evaluate import evaluate
from anyi2v.evaluation.features import Features
from anyi2v.evaluation.request import METRICS, Request
from anyi2v.evaluation.scores import ratio
from anyi2v.evaluation.videos import read_video
from anyi2v.images.video import write_video
from anyi2v.tracks import Track, Tracks, save_tracks
from tests.test_evaluation_objmc import PATCH, translated

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")

NAMES = ("a", "b", "c", "d")


class Means(nn.Module):
    """Mean colours and squares, 6 features."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float().flatten(2)
        return torch.cat([flat.mean(2), flat.square().mean(2)], dim=1)


def right(step: float, frames: int = 4) -> Tracks:
    boxes = tuple((44 + f * step, 44.0, 44 + f * step + PATCH, 44.0 + PATCH) for f in range(frames))
    return Tracks(128, 128, (Track("patch", boxes),))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches that move to the right by 3 px a frame, real ones by 2, and an extractor."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(NAMES):
        write_video(folder / "generated" / f"{name}.npz", translated([(3.0, 0.0)] * 3, seed=number), fps=8)
        write_video(folder / "real" / f"{name}.npz", translated([(2.0, 0.0)] * 3, seed=number), fps=8)
        save_tracks(folder / "tracks" / f"{name}.json", right(2))
    torch.jit.script(Means()).save(folder / "means.pt")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of all that was made."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DISTANCES = ["--real", "real", "--extractor", "means.pt", "--frame-convention", "as-is"]
DISTANCES += ["--video-extractor", "means.pt", "--video-convention", "google"]
OBJMC = ["--tracks", "tracks"]


def run(*args: str) -> int:
    return cli.main(["eval", "videos", "--generated", "generated", *args])


def scores(file: str = "eval.json") -> dict[str, dict[str, Any]]:
    return {score["metric"]: score for score in json.loads(Path(file).read_text())["scores"]}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_metrics_end_in_one_file_and_a_table(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convention = ["--video-convention", "as-is", "--resamples", "20"]
    assert run(*DISTANCES, *OBJMC, *convention) == 0
    found, shown = scores(), capsys.readouterr().out
    names = [
        f"{kind} of {what} by means.pt"
        for what in ("frames", "videos")
        for kind in ("Fréchet distance", "kernel distance")
    ]
    assert list(found) == [*names, "ObjMC (draganything)", "ObjMC (strict)"]
    for metric, score in found.items():
        assert (score["videos"], score["frames"], score["size"]) == (4, 4, "128x128")
        assert score["low"] <= score["value"] <= score["high"]
        assert f"| {metric} | {score['value']:.4g} | " in shown
    assert "eval.json: the same with all details" in shown
    frames = found[names[0]]
    assert (frames["details"]["samples"], frames["details"]["features"], frames["convention"]) == (16, 6, "as-is")
    assert len(frames["details"]["sha256"]) == 64
    rows = {folder: Features() for folder in ("generated", "real")}
    for folder, held in rows.items():
        for name in NAMES:
            held.append(Means()(read_video(Path(folder, f"{name}.npz"))))
    expected = frechet(*map(moments, rows.values()))
    assert frames["value"] == pytest.approx(expected, rel=1e-6)  # sums of float32 in another order
    # asked are 2 px a frame, done are 3: 1, 2 and 3 px in the frames after the first
    strict = found["ObjMC (strict)"]
    assert strict["value"] * 128 * math.sqrt(2) == pytest.approx(2, abs=0.15)
    assert strict["details"]["objects"] == 4 and strict["details"]["objects_never_visible"] == 0
    assert found["ObjMC (draganything)"]["value"] == pytest.approx(1.5, abs=0.5)  # positions are cut to integers
    assert found["ObjMC (draganything)"]["unit"] == "px of 128x128"
    assert strict["details"]["target"] == "real videos, tracked"
    own = json.loads(Path("eval.json").read_text())["videos"]
    assert list(own) == list(NAMES)
    assert np.mean([video["objmc_strict"] for video in own.values()]) == pytest.approx(strict["value"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_set_against_itself_gives_zero_and_the_same_again(files: Path) -> None:
    same = ["--real", "generated", "--extractor", "means.pt", "--frame-convention", "pytorch-fid"]
    assert run(*same, *OBJMC, "--metrics", "fid", "objmc", "--resamples", "10") == 0
    found = scores()
    for metric, score in found.items():
        assert max(abs(score[key]) for key in ("value", "low", "high")) < 1e-9, metric
    first = Path("eval.json").read_bytes()
    assert run(*same, *OBJMC, "--metrics", "fid", "objmc", "--resamples", "10", "--out", "again.json") == 0
    assert Path("again.json").read_bytes() == first
    assert list(found) == ["FID", "ObjMC (draganything)", "ObjMC (strict)"]


def test_runs_bring_their_own_tracks(files: Path) -> None:
    for name in NAMES[:2]:
        folder = files / "runs" / name
        write_video(folder / "video.mp4", translated([(3.0, 0.0)] * 3), fps=8)
        (folder / "run.json").write_text(json.dumps({"tracks": right(3).to_dict()}))
    assert run("--generated", "runs", "--tracks", "runs", "--metrics", "objmc", "--resamples", "0") == 0
    found = scores()["ObjMC (strict)"]
    assert found["details"]["target"] == "tracks"
    assert found["value"] * 128 * math.sqrt(2) < 0.3  # what mp4 leaves of the texture
    assert found["low"] is None and found["high"] is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_convention_of_batches_leaves_the_last_videos_out_and_says_so(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*DISTANCES, "--metrics", "fvd", "--resamples", "0"]
    assert run(*args) == 2
    assert "convention 'google' needs a multiple of 16 videos; there are 4" in capsys.readouterr().err
    for folder in ("generated", "real"):
        for number in range(13):
            shutil.copy(f"{folder}/a.npz", f"{folder}/z{number:02}.npz")
    assert run(*args) == 0
    assert "takes multiples of 16 videos: the last 1 of 17 by name are left out" in capsys.readouterr().err
    assert scores()["FVD"]["videos"] == 16


def change(name: str, edit: Callable[[Tensor], Tensor], folder: str = "generated") -> None:
    path = Path(folder, f"{name}.npz")
    np.savez(path, video=edit(read_video(path)).numpy(), fps=8)


def all_of(folder: str, edit: Callable[[Tensor], Tensor]) -> None:
    for name in NAMES:
        change(name, edit, folder)


def keep_one() -> None:
    for name in NAMES[1:]:
        for path in (Path("generated", f"{name}.npz"), Path("real", f"{name}.npz"), Path("tracks", f"{name}.json")):
            path.unlink()


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Path("generated/b.npz").unlink(), "'b' is among real, but not in the generated videos: 3 generated, 4"),
    (lambda: Path("real/c.npz").unlink(), "'c' is among the generated videos, but not in real"),
    (lambda: Path("tracks/d.json").unlink(), "'d' is among the generated videos, but not in tracks"),
    (keep_one, "generated holds a single video; distances between sets need two or more"),
    (lambda: change("b", lambda v: v[:3]), "b.npz has 3 frames of 128x128 px, but .*a.npz 4 frames of 128x128 px"),
    (lambda: change("b", lambda v: v[..., :90]), "b.npz has 4 frames of 90x128 px, but"),
    (lambda: all_of("real", lambda v: v[:2]), "generated videos have 4 frames, real ones 2; they must agree"),
    (lambda: all_of("real", lambda v: v[..., :90]), "they must have one aspect ratio"),
    (lambda: change("c", lambda v: v * torch.nan), "c.npz: frame 1 has NaN or infinite values"),
    (lambda: Path("real/a.npz").write_bytes(b"PK"), "cannot read video real/a.npz"),
    (lambda: Path("generated/a.mp4").touch(), "a.mp4 and a.npz are two videos of one name"),
    (lambda: Path("tracks/a.json").write_text("{"), "tracks/a.json: this is not JSON"),
    (lambda: save_tracks("tracks/a.json", Tracks(128, 64)), "is drawn on 128x64 px, but the videos have 128x128"),
    (lambda: Path("means.pt").write_text("no network"), "means.pt is no TorchScript file"),
    (lambda: shutil.rmtree("generated"), "generated is not a folder"),
    (lambda: shutil.rmtree("tracks"), "tracks is not a folder"),
    (lambda: [save_tracks(f"tracks/{n}.json", Tracks(128, 128)) for n in NAMES], "no file of tracks has an object"),
    (
        lambda: all_of("real", lambda v: v[:1]) or all_of("generated", lambda v: v[:1]),
        "objmc needs videos of two frames",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_measured_is_one_line_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[], object], message: str
) -> None:
    spoil()
    assert run(*DISTANCES, *OBJMC, "--metrics", "fid", "objmc") == 2
    printed = capsys.readouterr().err.splitlines()
    lines = [line for line in printed if not re.search(r"warning: |: (started|finished) ", line)]
    assert len(lines) == 1 and re.match(f"anyi2v: error: .*{message}", lines[0]), lines
    assert not Path("eval.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--metrics", "fid"],
            "fid needs --frame-convention, because scores of different conventions are not comparable: pytorch-fid",
        ),
        (["--metrics", "fvd", "--video-convention", "x"], "there is no convention 'x'; it must be one of google"),
        (["--metrics", "kid", "--frame-convention", "as-is"], "kid needs --real; give it, or name other --metrics"),
        (["--metrics", "kvd", "--video-convention", "google", "--real", "real"], "kvd needs --video-extractor"),
        (["--metrics", "objmc"], "objmc needs --tracks"),
        ([], "fid needs --frame-convention, .*; objmc and trajectory only need --tracks, structure only --images"),
        (["--metrics", "objmc", *OBJMC, "--resamples", "-1"], "resamples=-1 is not allowed"),
        (["--metrics", "objmc", *OBJMC, "--out", "x.txt"], "cannot write x.txt: the suffix must be .json"),
        (
            [*DISTANCES, "--metrics", "fvd", "--video-convention", "styleganv"],
            "needs 10 frames or more, but the videos have 4",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run(*args) == 2
    assert re.fullmatch(f"anyi2v: error: .*{message}.*\n", capsys.readouterr().err)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_inputs_end_in_one_line_or_in_scores(files: Path, made: Path, data: st.DataObject) -> None:
    folder = files / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pt")
    path = data.draw(st.sampled_from(paths))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    out = folder / "eval.json"
    args = [
        "--generated",
        str(folder / "generated"),
        "--real",
        str(folder / "real"),
        "--tracks",
        str(folder / "tracks"),
    ]
    code = cli.main(["eval", "videos", *args, "--metrics", "objmc", "--resamples", "0", "--out", str(out)])
    assert code == (0 if out.exists() else 2)


def test_intervals_of_means_are_seeded_and_narrow_with_agreement() -> None:
    spread = [(float(value), 1) for value in range(20)]
    value, low, high = ratio(spread, resamples=200, seed=0)
    assert value == 9.5 and low < 9.5 < high
    assert ratio(spread, resamples=200, seed=0) == (value, low, high)
    assert ratio([(6.0, 2)] * 5, resamples=50, seed=0) == (3, 3, 3)
    assert all(math.isnan(x) for x in ratio([(0.0, 0)] * 3, resamples=5, seed=0))
    assert all(math.isnan(x) for x in ratio([(6.0, 2), (1.0, 1)], resamples=5, seed=0)[1:])
    assert ratio([(6.0, 2), (1.0, 2)], resamples=0, seed=0)[0] == 7 / 4


def test_another_tracker_is_an_argument(files: Path) -> None:
    def still(video: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        frames = len(video)
        return points[:, None].repeat(1, frames, 1), torch.ones(len(points), frames, dtype=torch.bool)

    request = Request(Path("generated"), tracks=Path("tracks"), metrics=("objmc",))
    strict = evaluate(request, tracker=still).scores[1]
    assert strict.value * 128 * math.sqrt(2) == pytest.approx((2 + 4 + 6) / 3)  # asked are 2 px a frame


def test_the_help_names_what_there_is() -> None:
    text = Path(cli.__file__).parents[1].joinpath("evaluation", "request.py").read_text()
    for known in (FRAME_CONVENTIONS, VIDEO_CONVENTIONS):
        assert f'"""Preprocessing for that network: {", ".join(known)}."""' in text
    assert set(METRICS) == {"fid", "kid", "fvd", "kvd", "objmc", "trajectory", "fd", "structure", "clip"}
