"""Point trackers from TorchScript files: what they see and return, and that metrics and tracks come from them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anyi2v import cli
from anyi2v.errors import InputError
from anyi2v.evaluation.trackers import LucasKanade, NetworkTracker, load_tracker
from anyi2v.images.video import write_video
from anyi2v.tracks import Track, Tracks, load_tracks, save_tracks

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")

FRAMES, SIDE = 5, 64
STEP = (3.0, 1.0)
BOXES = tuple((10 + STEP[0] * f, 20 + STEP[1] * f, 30 + STEP[0] * f, 40 + STEP[1] * f) for f in range(FRAMES))


class Drift(nn.Module):
    """All points move by `STEP` per frame, plus what the first pixel of the video says; the last frame is unsure."""

    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        time = torch.arange(video.shape[1]).view(1, -1, 1, 1)
        paths = queries[:, None, :, 1:] + time * (torch.tensor(STEP) + video[0, 0, 0, 0, 0] - 255)
        return paths, torch.ones(paths.shape[:3]) * torch.where(time[..., 0] == video.shape[1] - 1, 0.4, 0.9)


class OnlyPaths(nn.Module):
    def forward(self, video: Tensor, queries: Tensor) -> Tensor:
        return Drift()(video, queries)[0]


class OneLength(nn.Module):
    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        return Drift()(video.view(1, FRAMES, 3, SIDE, SIDE), queries)


class Turned(Drift):
    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        paths, visible = super().forward(video, queries)
        return paths.transpose(1, 2), visible


class Lost(Drift):
    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        paths, visible = super().forward(video, queries)
        return paths / (visible > 0.5).float()[..., None], visible > 0


def traced(network: nn.Module, path: Path) -> Path:
    example = (torch.ones(1, FRAMES, 3, SIDE, SIDE), torch.ones(1, 4, 3))
    torch.jit.save(torch.jit.trace(network, example), path)
    return path


def test_points_are_queried_in_frame_1_and_unsure_ones_are_invisible(tmp_path: Path) -> None:
    tracker = NetworkTracker(traced(Drift(), tmp_path / "drift.pt"))
    points = torch.tensor([[4.0, 5.5], [30.0, 20.0]])
    paths, seen = tracker(torch.ones(FRAMES, 3, SIDE, SIDE), points)
    assert torch.equal(paths, points[:, None] + torch.arange(FRAMES)[:, None] * torch.tensor(STEP))
    assert seen.tolist() == [[True] * (FRAMES - 1) + [False]] * 2
    paths, seen = tracker(torch.ones(FRAMES, 3, SIDE, SIDE), torch.zeros(0, 2))
    assert paths.shape == (0, FRAMES, 2) and seen.shape == (0, FRAMES)
    assert isinstance(load_tracker(None), LucasKanade)
    assert repr(tracker).startswith("NetworkTracker(drift.pt, sha256=") and len(repr(tracker)) > 90


def test_positions_that_are_no_numbers_are_invisible(tmp_path: Path) -> None:
    tracker = NetworkTracker(traced(Lost(), tmp_path / "lost.pt"))
    paths, seen = tracker(torch.ones(FRAMES, 3, SIDE, SIDE), torch.tensor([[4.0, 5.5]]))
    assert paths.isfinite().all() and seen[0].tolist() == [True] * (FRAMES - 1) + [False]


@pytest.mark.parametrize(
    ("network", "frames", "message"),
    [
        (OnlyPaths, FRAMES, r"o.pt returns \[\(1, 5, 4, 2\)\]; it must return positions \(1, 5, 4, 2\) and visib"),
        (Turned, FRAMES, r"o.pt returns \[\(1, 4, 5, 2\), \(1, 5, 4\)\]; it must"),
        (OneLength, FRAMES + 1, r"o.pt fails on inputs of \(1, 6, 3, 64, 64\) and \(1, 4, 3\): .*size"),
    ],
)
def test_another_signature_is_one_line_that_names_the_file(
    tmp_path: Path, network: Callable[[], nn.Module], frames: int, message: str
) -> None:
    tracker = NetworkTracker(traced(network(), tmp_path / "o.pt"))
    with pytest.raises(InputError, match=message) as caught:
        tracker(torch.ones(frames, 3, SIDE, SIDE), torch.ones(4, 2))
    assert len(str(caught.value).splitlines()) == 1


def test_metrics_and_tracks_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The video stands still: only the tracker says that anything moves."""
    monkeypatch.chdir(tmp_path)
    traced(Drift(), Path("drift.pt"))
    write_video(Path("videos/a.npz"), torch.ones(FRAMES, 3, SIDE, SIDE), fps=8)
    save_tracks(Path("tracks/a.json"), Tracks(SIDE, SIDE, (Track("ball", BOXES),)))
    flags = ["--generated", "videos", "--tracks", "tracks", "--metrics", "objmc", "trajectory"]
    assert cli.main(["eval", "videos", *flags, "--tracker", "drift.pt"]) == 0
    scores = {score["key"]: score for score in json.loads(Path("eval.json").read_text())["scores"]}
    assert scores["objmc_strict"]["value"] == pytest.approx(0, abs=1e-6)
    assert scores["trajectory_mean"]["value"] == pytest.approx(0, abs=1e-4)
    assert scores["objmc_strict"]["details"]["tracker"].startswith("NetworkTracker(drift.pt, sha256=")
    assert "NetworkTracker(drift.pt, " in scores["trajectory_mean"]["details"]["follower"]
    follow = ["tracks", "from-video", "videos/a.npz", "--boxes", "ball=10,20,30,40"]
    assert cli.main([*follow, "--tracker", "drift.pt", "--out", "found.json"]) == 0
    (track,) = load_tracks("found.json").objects
    assert track.boxes[3] == pytest.approx(BOXES[3])
    capsys.readouterr()
    Path("none.pt").write_bytes(b"x")
    for file, message in (("none.pt", "none.pt is no TorchScript file"), ("gone.pt", "gone.pt: No such file")):
        assert cli.main([*follow, "--tracker", file, "--out", "other.json"]) == 2
        assert message in capsys.readouterr().err
