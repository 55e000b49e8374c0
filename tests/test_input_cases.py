"""Benchmark cases that vary the user's input: what the truth scores, and what each kind is about."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.images.raster import Camera, draw
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import STYLES, conditions, make_case
from anyi2v.micro.benchmark.kinds import KINDS, InputKind, Kind
from anyi2v.micro.world.solids import cloud, prism
from anyi2v.micro.world.world import SHAPES, Sprite, box, distance
from anyi2v.tracks import centre

seeds = st.integers(0, 10_000)


def case_of(kind: Kind, seed: int) -> Case:
    turns = conditions(kind)
    return make_case(seed, turns[seed % len(turns)], kind)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(get_args(InputKind)), seeds)
def test_the_truth_follows_its_tracks(kind: Kind, seed: int) -> None:
    case = case_of(kind, seed)
    height, width = case.truth.shape[2:]
    assert case.image.shape == (3, height, width) == (3, case.tracks.height, case.tracks.width)
    assert case.image.min() >= 0 and case.image.max() <= 1
    scores = case.scores(case.truth)
    assert len(scores) == len(case.targets) == len(case.scene.sprites)
    for score in scores:
        # outlines are antialiased, and an object's palette colour ends a little before its mask
        assert score.trajectory_error < 1
        assert score.found == 1
        # thin parts of a solid, seen at a slant, are not quite where those of the flat shape are
        assert score.first_frame_iou > (0.4 if kind in ("mesh", "points") else 0.7)
    assert case.area_errors(case.truth) == [0] * len(scores)
    assert case.area_errors(torch.zeros_like(case.truth)) == [1] * len(scores)


def test_kinds_show_what_they_are_named_after() -> None:
    for seed in range(12):
        resized = case_of("resize", seed)
        (track,) = resized.tracks.objects
        growth = (track.boxes[1][2] - track.boxes[1][0]) / (track.boxes[0][2] - track.boxes[0][0])
        assert len(track.boxes) == 2 and max(growth, 1 / growth) >= 1.25
        (sprite,) = case_of("leaving", seed).scene.sprites
        assert any(not 0 <= c <= 64 for c in sprite.centres[-1])
        assert len(case_of("three objects", seed).tracks.objects) == 3
        masked = case_of("user mask", seed)
        assert masked.tracks.objects[0].mask is not None
        assert np.array_equal(masked.tracks.objects[0].mask, masked.targets[0].mask.numpy())
        loose = case_of("loose mask", seed).tracks.objects[0].mask
        assert loose is not None
        assert (loose >= masked.tracks.objects[0].mask).all() and loose.sum() > masked.tracks.objects[0].mask.sum()
        assert {t.name.split("/")[0] for t in case_of("zoom", seed).tracks.objects} == {"camera"}
        assert case_of("wide", seed).truth.shape[2:] == (48, 64)
        assert case_of("mixed", seed).modality == "mixed"


def test_loose_boxes_hold_the_object_off_their_middle_and_texture() -> None:
    for seed in range(12):
        case = case_of("loose box", seed)
        (track,), (sprite,) = case.tracks.objects, case.scene.sprites
        factor = (track.boxes[0][2] - track.boxes[0][0]) / (2 * sprite.radii[0])
        assert 1.3 <= factor <= 2
        for f, loose in enumerate(track.boxes):
            own = box(sprite, f)
            assert 0 <= loose[0] <= own[0] < own[2] <= loose[2] <= 64
            assert 0 <= loose[1] <= own[1] < own[3] <= loose[3] <= 64
        slack = (factor - 1) * sprite.radii[0]
        off = [abs(a - b) for a, b in zip(centre(track.boxes[0]), sprite.centres[0], strict=True)]
        assert max(off) >= 0.49 * slack
        assert all(case.targets[0].mask[int(y), int(x)] for x, y in track.points), "points are on the object"
        # the ground inside the box, in the condition image and in the truth
        x0, y0, x1, y1 = (round(v) for v in track.boxes[0])
        for picture in (case.image, case.truth[0]):
            ground = (distance(sprite, 64)[0] > 2)[y0:y1, x0:x1]
            assert picture.mean(0)[y0:y1, x0:x1][ground].std() > 0.008
        assert case.modality in ("photo", "mixed") and case.scene.background != "black"


def test_frames_without_the_target_do_not_count() -> None:
    """An object that has left in the truth may be anywhere: it is not to be seen."""
    for seed in range(200):
        case = case_of("leaving", seed)
        gone = case.targets[0].centres.isnan().any(1)
        if gone.any():
            break
    else:
        raise AssertionError("no object leaves wholly")
    video = case.truth.clone()
    video[gone] = case.truth[:1]  # the object is back at its start
    assert case.scores(video)[0].trajectory_error == case.scores(case.truth)[0].trajectory_error
    assert case.scores(video)[0].background_right == pytest.approx(
        case.scores(case.truth)[0].background_right, abs=0.02
    )


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=10, deadline=None)
@given(angle=st.floats(-0.4, 0.4))
def test_prisms_look_like_their_shapes(shape: str, angle: float) -> None:
    """From far away and exactly in front, the drawing is the world's own mask, but for pixels at the outline."""
    vertices, faces = prism(shape, angle)
    radius = vertices[:, :2].norm(dim=1).max().item()
    size, r = 64, 20
    camera = Camera(0, 0, distance=500, fov=1)
    camera = Camera(0, 0, distance=camera.focal(size, size) / r * radius, fov=1)
    seen = draw(vertices, faces, size, size, style="depth", camera=camera)[0] > 0
    reach = {"circle": 0.9, "ring": 0.98, "square": 0.7 * 2**0.5}.get(shape, 1.0)
    drawn = Sprite(shape, "red", ((32.0, 32.0),), (r / reach if shape != "cross" else r / 1.00573,), angle)
    wanted = distance(drawn, size)[0]
    assert not (seen & (wanted > 1.2)).any()
    assert not (~seen & (wanted < -1.2)).any()


@given(st.sampled_from(SHAPES), st.floats(-0.4, 0.4), seeds)
def test_clouds_lie_on_their_solids(shape: str, angle: float, seed: int) -> None:
    vertices, faces = prism(shape, angle)
    points = cloud(vertices, faces, 50, torch.Generator().manual_seed(seed))
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    area = normal.norm(dim=1)
    normal = normal[area > 0] / area[area > 0, None]
    off = ((points[:, None] - a[area > 0]) * normal).sum(-1).abs()
    assert off.min(dim=1).values.max() < 1e-9
    assert points.norm(dim=1).max() <= 1 + 1e-9


def test_conditions_that_a_kind_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="geometry cannot be drawn as 'edge'"):
        make_case(0, "edge", "mesh")
    with pytest.raises(ValueError, match="the world cannot be drawn as 'shaded'"):
        make_case(0, "shaded", "plain")
    assert set(STYLES) == set(conditions("points"))
    assert all(conditions(kind) for kind in KINDS)
