"""Boxes followed through videos of known motion, and their distance to those of tracks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v import cli
from anyi2v.errors import InputError
from anyi2v.evaluation.following import BoxFollower, Followed
from anyi2v.evaluation.motion import box_errors
from anyi2v.images.video import write_video
from anyi2v.micro.benchmark.case import object_tracks
from anyi2v.micro.benchmark.colours import ColourFollower
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import Scene, sample_scene, split_generator
from anyi2v.tracks import Track, Tracks, save_tracks
from tests.test_evaluation_objmc import PATCH, square, texture, translated

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")


def centre_errors(found: Followed, tracks: Tracks) -> Tensor:
    """Per object and frame, in pixels; NaN where it is not seen."""
    true = torch.tensor([track.boxes for track in tracks.objects])
    apart = (found.boxes[..., :2] + found.boxes[..., 2:] - true[..., :2] - true[..., 2:]).norm(dim=-1) / 2
    return apart.masked_fill(~found.seen, torch.nan)


def scenes(count: int, objects: int = 1) -> list[tuple[Scene, Tracks]]:
    found = [sample_scene(split_generator("test", number)) for number in range(count)]
    return [(scene, Tracks(64, 64, object_tracks(scene))) for scene in found if len(scene.sprites) == objects]


step = st.tuples(st.floats(-4, 4), st.floats(-4, 4))


@settings(max_examples=10)
@given(steps=st.lists(step, min_size=1, max_size=4), seed=st.integers(0, 1000), margin=st.integers(0, 10))
def test_boxes_follow_a_textured_patch(steps: list[tuple[float, float]], seed: int, margin: int) -> None:
    video = translated(steps, seed)
    box = (44.0 - margin, 44.0 - margin, 44.0 + PATCH + margin, 44.0 + PATCH + margin)  # part of it is background
    moved = torch.tensor([(0.0, 0.0), *steps]).cumsum(0).tolist()
    tracks = Tracks(128, 128, (Track("it", tuple((box[0] + x, box[1] + y, box[2] + x, box[3] + y) for x, y in moved)),))
    found = BoxFollower()(video, tracks)
    assert found.seen.all()
    # background inside the box holds it back: up to 1, 2 and 4 px with margins of 2, 4 and 8 in 150 random clips
    assert centre_errors(found, tracks).max() < 1 + margin / 2
    assert found.boxes[0, 0].tolist() == list(box)


@settings(max_examples=20)
@given(width=st.integers(4, 150), height=st.integers(4, 150))
@example(width=144, height=144)
@example(width=150, height=1)
def test_points_are_spread_over_the_whole_box(width: int, height: int) -> None:
    asked: list[Tensor] = []

    def still(video: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(points)
        return points[:, None].repeat(1, len(video), 1), torch.ones(len(points), len(video), dtype=torch.bool)

    box = (20.0, 30.0, 20.0 + width, 30.0 + height)
    BoxFollower(tracker=still)(torch.zeros(2, 3, 200, 200), Tracks(200, 200, (Track("it", (box,)),)))
    corner, size = torch.tensor(box[:2]), torch.tensor([width, height])
    points = asked[0][((asked[0] >= corner) & (asked[0] < corner + size)).all(1)]
    assert min(16, width * height) <= len(points) <= 4 * 12**2
    # no part of the box that is wider than two spacings of the grid is without points
    spacing = max((width * height) ** 0.5 / 12, 1) * 1.5
    for axis in (0, 1):
        at = torch.cat([corner[axis, None] - 1, points[:, axis].unique(), (corner + size)[axis, None]])
        assert at.diff().max() <= 2 * spacing


def test_a_large_object_is_followed_by_all_of_it() -> None:
    side = 144  # pixels in steps of 144 would be its left edge alone
    ground, patch = texture(200, 200, 1, detail=20), texture(side, side, 50, detail=24)
    frames, boxes = [], []
    for x in (20, 24, 28, 32):
        frames.append(ground.clone())
        frames[-1][:, 30 : 30 + side, x : x + side] = patch
        boxes.append((float(x), 30.0, float(x + side), 30.0 + side))
    tracks = Tracks(200, 200, (Track("it", tuple(boxes)),))
    found = BoxFollower()(torch.stack(frames), tracks)
    assert found.seen.all() and centre_errors(found, tracks).max() < 0.2


def test_boxes_grow_with_their_object() -> None:
    video = torch.nn.functional.interpolate(translated([])[:, :, 40:88, 40:88], size=(128, 128), mode="bilinear")
    frames = [video]
    for size in (140, 152, 164):
        larger = torch.nn.functional.interpolate(video, size=(size, size), mode="bilinear")
        edge = (size - 128) // 2
        frames.append(larger[:, :, edge : edge + 128, edge : edge + 128])
    found = BoxFollower()(torch.cat(frames), Tracks(128, 128, (Track("it", ((34, 34, 94, 94),)),)))
    widths = found.boxes[0, :, 2] - found.boxes[0, :, 0]
    assert (widths / 60).tolist() == pytest.approx([1, 140 / 128, 152 / 128, 164 / 128], abs=0.02)


def test_lost_objects_stay_where_they_were_seen() -> None:
    noise = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = BoxFollower()(torch.cat([translated([(2.0, 0.0)]), noise]), square())
    assert found.seen[0].tolist() == [True, True, False, False, False]
    assert (found.boxes[0, 2:] == found.boxes[0, 1]).all() and (found.boxes[0, 1] != found.boxes[0, 0]).any()
    assert found.points[0, 1] > 0.2 > found.points[0, -1]


def test_objects_of_the_synthetic_world_are_followed_by_points_and_by_colour() -> None:
    errors: dict[str, list[Tensor]] = {"points": [], "colours": []}
    seen: dict[str, list[Tensor]] = {"points": [], "colours": []}
    for scene, tracks in scenes(16):
        video = render(scene, "photo")
        for name, follower in (("points", BoxFollower()), ("colours", ColourFollower())):
            found = follower(video, tracks)
            errors[name].append(centre_errors(found, tracks)[0, 1:].nanmean())
            seen[name].append(found.seen[0, 1:].float().mean())
    points, colours = (torch.stack(errors[name]) for name in ("points", "colours"))
    assert len(points) > 10
    assert points.nanmedian() < 0.2 and points[points.isfinite()].max() < 1.5
    assert torch.stack(seen["points"]).mean() > 0.9
    assert colours[colours.isfinite()].max() < 0.6  # pixels are whole
    assert torch.stack(seen["colours"]).mean() > 0.7  # those that the border cuts are not


def test_colours_need_their_names_and_tell_two_objects_apart() -> None:
    scene, tracks = scenes(40, objects=2)[0]
    found = ColourFollower()(render(scene, "photo"), tracks)
    assert found.boxes.shape == (2, 8, 4)
    with pytest.raises(InputError, match="object 'it': its name must begin with a colour of the synthetic world"):
        ColourFollower()(render(scene, "photo"), Tracks(64, 64, (replace(tracks.objects[0], name="it"),)))
    for follower in (ColourFollower(), BoxFollower()):
        assert follower(render(scene, "photo"), Tracks(64, 64)).boxes.shape == (0, 8, 4)


def test_errors_are_those_of_centres_and_overlaps() -> None:
    tracks = Tracks(
        100, 100, (Track("a", ((0, 0, 10, 10),) * 3), Track("gone", ((0, 0, 10, 10), *[(200, 0, 210, 10)] * 2)))
    )
    found = torch.tensor([[(50.0, 50, 60, 60), (3, 4, 13, 14), (5, 0, 15, 10)]] * 2)
    seen = torch.ones(2, 3, dtype=torch.bool)
    errors = box_errors(found, seen, tracks)
    assert errors.mean[0] == 5 and errors.final[0] == 5  # frame 1 does not count
    assert errors.iou[0] == pytest.approx((42 / 158 + 1 / 3) / 2)
    assert errors.mean[1].isnan() and errors.iou[1].isnan()  # nothing is asked inside the frame
    seen[0, 2] = False
    errors = box_errors(found, seen, tracks)
    assert errors.mean[0] == 5 and errors.final[0].isnan() and errors.iou[0] == pytest.approx(42 / 158)
    assert box_errors(torch.zeros(0, 3, 4), torch.zeros(0, 3).bool(), Tracks(9, 9)).mean.shape == (0,)


@pytest.mark.parametrize("follower", ["points", "micro"])
def test_the_command_measures_true_videos_near_zero_and_others_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follower: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (scene, tracks) in zip("ab", scenes(10)[1:3], strict=True):
        video = render(scene, "photo")
        write_video(tmp_path / "true" / f"{name}.npz", video, fps=8)
        write_video(tmp_path / "still" / f"{name}.npz", video[:1].expand(8, -1, -1, -1), fps=8)
        save_tracks(tmp_path / "tracks" / f"{name}.json", tracks)
    found = {}
    for folder in ("true", "still"):
        args = ["--tracks", "tracks", "--metrics", "trajectory", "--follower", follower, "--out", f"{folder}.json"]
        assert cli.main(["eval", "videos", "--generated", folder, *args]) == 0
        data = json.loads(Path(f"{folder}.json").read_text())
        found[folder] = {score["metric"]: score for score in data["scores"]}
        assert {*data["videos"]["a"]} == {"trajectory_mean", "trajectory_final", "trajectory_iou"}
    mean, final, iou = "trajectory error, mean", "trajectory error, last frame", "box IoU"
    assert found["true"][mean]["value"] < 0.6 and found["true"][iou]["value"] > 0.9
    assert found["still"][final]["value"] > found["still"][mean]["value"] > 3
    assert found["true"][mean]["unit"] == "px of 64x64"
    assert found["true"][mean]["details"]["objects"] == 2


def test_objects_that_are_never_found_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, still in (("lost", False), ("found", True)):
        noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # frames have nothing in common
        write_video(tmp_path / "videos" / f"{name}.npz", noise[:1].expand_as(noise) if still else noise, fps=8)
        save_tracks(tmp_path / "tracks" / f"{name}.json", Tracks(64, 64, (Track("a", ((16, 16, 48, 48),)),)))
    args = ["eval", "videos", "--generated", "videos", "--tracks", "tracks", "--metrics", "objmc", "trajectory"]
    assert cli.main(args) == 0
    printed = capsys.readouterr().err
    assert "warning: ObjMC: 1 of 2 objects could not be tracked beyond frame 1; mode draganything measures" in printed
    assert "warning: trajectory: 1 of 2 objects were found in no frame that counts and are left out; try" in printed
    (tmp_path / "videos" / "lost.npz").unlink()
    (tmp_path / "tracks" / "lost.json").unlink()
    assert cli.main(args) == 0
    assert "warning" not in capsys.readouterr().err
