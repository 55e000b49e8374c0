"""Motion transfer: boxes of the first frame followed through clips whose motion is known."""

from pathlib import Path

import pytest
import torch

from anyi2v import cli
from anyi2v.evaluation import opencv
from anyi2v.evaluation.transfer import tracks_from_video
from anyi2v.images.video import write_video
from anyi2v.micro.benchmark.case import object_tracks
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import sample_scene, split_generator
from anyi2v.tracks import Tracks, load_tracks
from tests.test_evaluation_objmc import PATCH, translated

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")


def run(*args: str) -> int:
    return cli.main(["tracks", "from-video", *args])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def centres(tracks: Tracks) -> torch.Tensor:
    boxes = torch.tensor([track.boxes for track in tracks.objects])
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def test_tracks_of_a_rendered_clip_are_the_true_ones(capsys: pytest.CaptureFixture[str]) -> None:
    scene = sample_scene(split_generator("test", 2))
    true = Tracks(64, 64, object_tracks(scene))
    write_video("clip.npz", render(scene, "photo"), fps=8)
    flags = [f"{track.name}={','.join(map(str, track.boxes[0]))}" for track in true.objects]
    assert run("clip.npz", "--boxes", *flags, "--out", "found.json") == 0
    found = load_tracks("found.json")
    assert [track.name for track in found.objects] == [track.name for track in true.objects]
    assert (found.width, found.height) == (64, 64)
    assert found.objects[0].boxes[0] == pytest.approx(true.objects[0].boxes[0])
    assert (centres(found) - centres(true)).norm(dim=-1).max() <= 1.5
    assert "points followed through all 8 frames" in capsys.readouterr().out


def test_all_but_a_few_rendered_clips_are_followed_to_within_1_5_px_or_leave_the_frame() -> None:
    followed = []
    for number in range(36):
        scene = sample_scene(split_generator("test", number))
        true = Tracks(64, 64, object_tracks(scene))
        if len(true.objects) != 1:
            continue  # one object may hide the other
        tracks, found = tracks_from_video(render(scene, "photo"), true)
        seen = found.seen[0]
        followed.append((centres(tracks) - centres(true)).norm(dim=-1)[0, seen].max() <= 1.5)
        boxes = torch.tensor(true.objects[0].boxes)
        cut = ((boxes < 0) | (boxes > 64)).any(1)
        assert cut[~seen].all(), f"scene {number}"  # nothing is lost that is wholly in the frame
    assert len(followed) > 25
    assert sum(followed) / len(followed) > 0.9


def test_frames_are_resampled_and_any_kind_of_video_is_read() -> None:
    write_video("clip.mp4", translated([(3.0, 0.0)] * 4), fps=8)
    box = f"patch = 1={44},{44},{44 + PATCH},{44 + PATCH}"
    assert run("clip.mp4", "--boxes", box, "--frames", "9") == 0
    found = load_tracks("tracks.json")
    assert found.objects[0].name == "patch = 1" and len(found.objects[0].boxes) == 9
    assert centres(found)[0, -1].tolist() == pytest.approx([44 + PATCH / 2 + 12, 44 + PATCH / 2], abs=0.5)


def test_what_is_lost_is_a_warning_and_stands_still(capsys: pytest.CaptureFixture[str]) -> None:
    noise = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    write_video("clip.npz", torch.cat([translated([(2.0, 0.0)]), noise]), fps=8)
    assert run("clip.npz", "--boxes", "patch=44,44,84,84") == 0
    printed = capsys.readouterr()
    assert "warning: 'patch' is lost from frame 3 of 4 on" in printed.err and "1 object of clip.npz\n" in printed.out
    boxes = load_tracks("tracks.json").objects[0].boxes
    assert boxes[1] == boxes[2] == boxes[3] != boxes[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["clip.npz", "--boxes", "44,44,84"], "box '44,44,84' is not usable; write NAME=X0,Y0,X1,Y1"),
        (["clip.npz", "--boxes", "a=44,44,84,x"], "box 'a=44,44,84,x' is not usable"),
        (["clip.npz", "--boxes", "44,44,84,84"], "box '44,44,84,84' is not usable; write NAME=X0"),
        (["clip.npz", "--boxes", "a=44,44,84,84", "a=1,1,9,9"], "has the same name as object 1"),
        (["clip.npz", "--boxes", "a=84,44,44,84"], "has negative width"),
        (["clip.npz", "--boxes", "a=200,44,240,84"], "lies outside the frame of 128 x 128 pixels"),
        (["clip.npz", "--boxes", "a=nan,44,84,84"], "is not finite"),
        (["missing.mp4", "--boxes", "a=1,1,9,9"], "cannot read video missing.mp4"),
        (["one.npz", "--boxes", "a=1,1,9,9"], "the video has a single frame"),
        (["clip.npz", "--boxes", "a=1,1,9,9", "--frames", "0"], "frames is 0"),
        (["clip.npz", "--boxes", "a=1,1,9,9", "--out", "clip.npz"], "clip.npz"),
    ],
)
def test_what_cannot_be_followed_is_one_line(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    write_video("clip.npz", translated([(2.0, 0.0)]), fps=8)
    write_video("one.npz", translated([]), fps=8)
    assert run(*args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not Path("tracks.json").exists()


def test_without_opencv_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencv, "find_spec", lambda name: None)
    assert run("missing.mp4", "--boxes", "a=1,1,9,9") == 2
    assert "pip install 'anyi2v[eval]'" in capsys.readouterr().err
