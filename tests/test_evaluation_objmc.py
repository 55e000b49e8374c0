"""Trackers against known motions, and ObjMC against what the paths are known to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation import objmc, opencv, trackers
from anyi2v.evaluation.objmc import GRID, asked_paths, distances, follow, middles, on_grid, per_object, share
from anyi2v.evaluation.trackers import LucasKanade
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import box, sample_scene, split_generator
from anyi2v.tracks import Track, Tracks

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'anyi2v[eval]'")


def texture(height: int, width: int, seed: int, detail: int = 4) -> Tensor:
    """Smooth noise `[3 h w]` in [0, 1] whose details are about `detail` pixels wide."""
    coarse = torch.rand(1, 3, height // detail, width // detail, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]


PATCH = 40


def translated(steps: list[tuple[float, float]], seed: int = 0, detail: int = 4) -> Tensor:
    """A textured square of `PATCH` px that moves by the steps over another texture, resampled bilinearly."""
    size = 128
    patch, ground = texture(PATCH, PATCH, seed, detail), texture(size, size, seed + 1, detail)
    at, frames = torch.tensor([44.0, 44.0]), []
    for step in [(0.0, 0.0), *steps]:
        at = at + torch.tensor(step)
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        inside = torch.stack([x - at[0], y - at[1]], dim=-1) / (PATCH - 1) * 2 - 1
        drawn = F.grid_sample(patch[None], inside[None].float(), align_corners=True)[0]
        covered = (inside.abs() <= 1).all(-1)
        frames.append(torch.where(covered, drawn, ground))
    return torch.stack(frames)


step = st.tuples(st.floats(-4, 4), st.floats(-4, 4))
middle = torch.tensor([[44 + (PATCH - 1) / 2] * 2])


@settings(max_examples=25)
@given(steps=st.lists(step, min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_textured_patch_is_followed(steps: list[tuple[float, float]], seed: int) -> None:
    paths, visible = LucasKanade()(translated(steps, seed), middle)
    true = middle + torch.tensor([(0.0, 0.0), *steps]).cumsum(0)
    assert visible.all()
    # resampling and 8 bit cost a few hundredths of a pixel per step
    assert (paths[0] - true).norm(dim=-1).max() < 0.5
    assert torch.equal(paths[:, 0], middle)


def test_larger_steps_need_the_pyramid() -> None:
    ground = texture(128, 128, 0, detail=16)
    video, true = torch.stack([ground, ground.roll((18, 24), (1, 2))]), middle + torch.tensor([24.0, 18.0])
    paths, visible = LucasKanade()(video, middle)
    assert visible.all() and (paths[0, 1] - true).norm() < 0.5
    paths, visible = LucasKanade(levels=0)(video, middle)
    assert not visible[0, 1] or (paths[0, 1] - true).norm() > 2


def test_lost_points_are_not_visible_and_stay() -> None:
    video = torch.stack([texture(64, 64, seed) for seed in range(4)])  # nothing of a frame is in the next
    points = torch.tensor([[x, y] for x in (16.0, 32.0, 48.0) for y in (16.0, 32.0, 48.0)])
    paths, visible = LucasKanade()(video, points)
    assert visible[:, 0].all()
    assert visible[:, -1].float().mean() < 0.2
    assert (visible[:, 1:] <= visible[:, :-1]).all()
    held = ~visible[:, 1:]
    assert torch.equal(paths[:, 1:][held], paths[:, :-1][held])
    outside = translated([(-16.0, 0.0)] * 5, detail=8)  # its middle leaves the frame
    paths, visible = LucasKanade()(outside, middle)
    assert not visible[0, -1]
    assert (paths >= 0).all()


def test_no_points_and_one_frame_are_followed() -> None:
    paths, visible = LucasKanade()(translated([(1.0, 0.0)]), torch.zeros(0, 2))
    assert paths.shape == (0, 2, 2) and visible.shape == (0, 2)
    paths, visible = LucasKanade()(translated([]), middle)
    assert torch.equal(paths, middle[:, None]) and visible.all()


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opencv, "find_spec", lambda name: None)
    for call in (lambda: trackers.LucasKanade()(translated([]), middle), lambda: middles(square())):
        with pytest.raises(InputError, match=r"needs OpenCV: pip install 'anyi2v\[eval\]'"):
            call()


def square(*shifts: float, **changes: object) -> Tracks:
    """The patch's box, moved to the right by the shifts."""
    boxes = tuple((44.0 + s, 44.0, 44.0 + s + PATCH, 44.0 + PATCH) for s in (0.0, *shifts))
    return Tracks(128, 128, (replace(Track("square", boxes), **changes),))  # pyright: ignore[reportArgumentType]


def test_middles_are_those_of_the_largest_circle_inside() -> None:
    mask = np.zeros((128, 128), bool)
    mask[48:80, 46:52] = True  # a thin bar ...
    mask[60:75, 52:67] = True  # ... on a wider block
    ((x, y),) = middles(square(mask=mask)).tolist()
    # the circle touches top and bottom of the block, into which the bar may continue it
    assert 53 <= x <= 59 and y == pytest.approx(67, abs=1)
    assert (middles(square()) - middle).abs().max() <= 0.5
    small = np.zeros((32, 32), bool)
    small[12:20, 12:20] = True  # of a quarter of the resolution
    assert middles(square(mask=small)).tolist()[0] == pytest.approx([63.5, 63.5], abs=0.51)


def test_the_grid_is_cotrackers() -> None:
    # its margin is 8 of the 512 x 384 px that it resizes to
    corners = on_grid(torch.tensor([[0.0, 0.0], [1023.0, 767.0]]), 1024, 768)
    expected = torch.tensor([[8 / 511 * 1023, 8 / 383 * 767], [504 / 511 * 1023, 376 / 383 * 767]])
    assert torch.allclose(corners, expected)
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 700 + 30
    off = (on_grid(points, 1024, 768) - points).abs().amax(0)
    cell = torch.tensor([496 / 511 * 1023, 368 / 383 * 767]) / (GRID - 1)
    assert (off <= cell / 2 + 1e-3).all()
    assert torch.equal(on_grid(corners, 1024, 768), corners)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.integers(2, 9))
def test_asked_paths_move_as_the_boxes_do(shifts: list[float], frames: int) -> None:
    tracks = square(*shifts)
    paths = asked_paths(tracks, middle, frames)
    boxes = torch.tensor(tracks.resample(frames).objects[0].boxes)
    assert torch.allclose(paths[0] - middle, boxes[:, :2] - boxes[0, :2], atol=1e-4)  # float32 of 128 px
    growing = Tracks(128, 128, (Track("grows", ((10, 10, 20, 30), (10, 10, 40, 90))),))
    first, last = asked_paths(growing, torch.tensor([[14.5, 24.5]]), 2)[0].tolist()
    assert first == pytest.approx([14.5, 24.5]) and last == pytest.approx([24.5, 69.5])


def script(video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
    """A tracker that reads the motion from the red and the blue of the first pixels, and what is visible from green."""
    move = torch.stack([video[:, 0, 0, 0], video[:, 2, 0, 0]], dim=-1) * 32
    seen = video[:, 1, 0, 0] < 0.5
    return points[:, None] + move, seen.expand(len(points), -1)


def scripted(moves: list[tuple[float, float]], hidden: tuple[int, ...] = (), size: int = 128) -> Tensor:
    video = torch.zeros(len(moves), 3, size, size)
    for number, (dx, dy) in enumerate(moves):
        video[number, 0] = dx / 32
        video[number, 2] = dy / 32
        video[number, 1] = float(number in hidden)
    return video


def test_strict_counts_visible_frames_of_an_object_in_shares_of_the_diagonal() -> None:
    generated = scripted([(0, 0), (3, 4), (30, 30), (6, 8)], hidden=(2,))
    moved = follow(generated, square(), script, mode="strict")
    expected = torch.tensor([[torch.nan, 5.0, torch.nan, 10.0]])
    assert torch.allclose(distances(moved), expected, equal_nan=True)
    assert per_object(moved, 128, 128).tolist() == pytest.approx([7.5 / (128 * 2**0.5)])
    real = scripted([(0, 0), (3, 4), (1, 1), (6, 0)], hidden=(1,))
    moved = follow(generated, square(), script, mode="strict", real=real)
    assert distances(moved)[0, 3] == pytest.approx(8)
    assert distances(moved).isfinite().sum() == 1
    hidden = scripted([(0, 0), (3, 4)], hidden=(1,))
    lost = follow(hidden, square(), script, mode="strict")
    assert per_object(lost, 128, 128).isnan().all()
    assert share(lost, "strict", 128, 128) == (0, 0)


def test_draganything_cuts_to_integers_counts_every_frame_and_gets_bgr() -> None:
    generated = scripted([(0, 0), (4, 3), (30, 0)], hidden=(2,))
    real = scripted([(0, 0), (0, 3), (0, 0)])
    moved = follow(generated, square(), script, mode="draganything", real=real)
    start = on_grid(middles(square()), 128, 128)
    # red and blue have changed places
    whole = [(start + torch.tensor(m)).trunc() for m in ([0.0, 0.0], [3.0, 4.0], [0.0, 30.0])]
    assert torch.equal(moved.found[0], torch.cat(whole))
    assert torch.equal(moved.found, moved.found.trunc()) and torch.equal(moved.target, moved.target.trunc())
    assert moved.counts.all()
    assert distances(moved)[0].tolist() == pytest.approx([0, 4, 30])
    other = follow(real, square(), script, mode="draganything", real=real)
    assert share(moved, "draganything", 128, 128) == (pytest.approx(34), 3)
    assert share(other, "draganything", 128, 128) == (0, 3)
    # a generated video of another size is resized to the real one's
    small = F.interpolate(generated, size=(64, 64))
    assert torch.equal(follow(small, square(), script, mode="draganything", real=real).found, moved.found)


@pytest.mark.parametrize("mode", ["draganything", "strict"])
def test_a_real_tracker_finds_the_asked_motion_and_a_video_equals_itself(mode: objmc.Mode) -> None:
    video = translated([(3.0, 0.0)] * 5)
    moved = follow(video, square(3, 6, 9, 12, 15), LucasKanade(), mode=mode)
    # positions are cut to integers in one mode, so that both ends may be off by one
    assert distances(moved).nan_to_num().max() < (1.5 if mode == "draganything" else 0.5)
    still = follow(video, square(), LucasKanade(), mode=mode)
    assert distances(still)[0, -1] == pytest.approx(15, abs=1.5)
    same = follow(video, square(), LucasKanade(), mode=mode, real=video)
    assert distances(same).nan_to_num().max() == 0


def test_videos_that_cannot_be_compared_are_named() -> None:
    video = scripted([(0, 0)] * 3)
    with pytest.raises(InputError, match="two frames or more"):
        follow(video[:1], square(), script, mode="strict")
    modes: tuple[objmc.Mode, ...] = ("strict", "draganything")
    for mode in modes:
        with pytest.raises(InputError, match="the generated video has 3 frames, the real one 2; they must agree"):
            follow(video, square(), script, mode=mode, real=video[:2])
    thin = Tracks(128, 128, (Track("thin", ((10.6, 10, 11.4, 20),)),))
    with pytest.raises(InputError, match="object 'thin': its first box holds no pixel's middle"):
        follow(video, thin, script, mode="strict")


def test_tracks_without_objects_give_nothing() -> None:
    moved = follow(scripted([(0, 0)] * 3), Tracks(128, 128), script, mode="strict")
    assert moved.found.shape == (0, 3, 2)


def test_objects_of_the_micro_world_are_followed() -> None:
    scenes = [sample_scene(split_generator("test", number)) for number in range(24)]
    scenes = [scene for scene in scenes if len(scene.sprites) == 1]
    errors, visible, still = [], [], []
    for scene in scenes:
        (sprite,), video = scene.sprites, render(scene, "photo")
        tracks = Tracks(64, 64, (Track("it", tuple(box(sprite, frame) for frame in range(scene.frames))),))
        moved = follow(video, tracks, LucasKanade(), mode="strict")
        errors.append(distances(moved).nanmean())
        visible.append(moved.counts[0, 1:].float().mean())
        still.append(distances(follow(video[:1].expand_as(video), tracks, LucasKanade(), mode="strict")).nanmean())
    # shapes of one colour on textures in 64 px, some of which leave the frame; 0.15 px and 92 % of 60 scenes
    assert len(scenes) > 15
    assert torch.stack(errors).nanmean() < 0.5
    assert torch.stack(visible).mean() > 0.8
    assert torch.stack(still).mean() > 5
