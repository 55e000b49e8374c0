"""Measurements and cases, on the world's own drawings."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.micro.benchmark.case import LEAST_MOTION
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.measure import (
    NAMES,
    Target,
    centroids,
    find_object,
    find_objects,
    largest_component,
    nearest_colours,
)
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import BACKGROUND_COLOURS, HELD_OUT, OBJECT_COLOURS, SHAPES, recoloured

seeds = st.integers(0, 10**6)


def flood(mask: Tensor) -> Tensor:
    """Largest 4-connected patch by depth-first search."""
    left = {(int(y), int(x)) for y, x in mask.nonzero()}
    best: set[tuple[int, int]] = set()
    while left:
        patch, stack = set(), [left.pop()]
        while stack:
            y, x = stack.pop()
            patch.add((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
        best = max(best, patch, key=len)
    out = torch.zeros_like(mask)
    for y, x in best:
        out[y, x] = True
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 0.7))
def test_largest_component_equals_a_flood_fill(seed: int, share: float) -> None:
    masks = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(seed)) < share
    for ours, mask in zip(largest_component(masks), masks, strict=True):
        assert ours.sum() == flood(mask).sum()
        assert torch.equal(ours, flood(ours))
        assert not (ours & ~mask).any()


def test_centroid_is_in_pixel_coordinates() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    assert centroids(masks)[0].tolist() == [4.0, 2.0]
    assert centroids(masks)[1].isnan().all()


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["edge", "depth", "segmentation", "photo"]))
def test_the_truth_scores_well(seed: int, modality: str) -> None:
    case = make_case(seed, modality)  # type: ignore[arg-type]
    (scores,) = case.scores(case.truth)
    # the mask has whole pixels, the drawing soft edges, and the palette tells them apart a little differently
    assert scores.trajectory_error < 1
    assert scores.first_frame_iou > 0.8
    assert scores.found == 1
    assert scores.colour_right
    assert scores.background_right > 0.8


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(3, 9))
def test_a_shifted_video_is_off_by_the_shift(seed: int, shift: int) -> None:
    case = make_case(seed, "edge")
    shifted, colour = case.truth.roll(shift, -1), case.targets[0].colour
    if torch.equal(find_object(shifted, colour), find_object(case.truth, colour).roll(shift, -1)):
        x = centroids(find_object(shifted, colour))[:, 0]
        if (x > shift + 12).all():  # nothing wrapped around
            assert case.scores(shifted)[0].trajectory_error == pytest.approx(shift, abs=0.5)


def test_wrong_videos_score_badly() -> None:
    case = make_case(3, "depth")
    empty = torch.tensor(BACKGROUND_COLOURS[case.scene.background])[None, :, None, None].expand(8, 3, 64, 64)
    (scores,) = case.scores(empty)
    assert scores.found == 0
    assert scores.trajectory_error == 32
    assert not scores.colour_right
    assert scores.background_right == 1
    other = "navy" if case.scene.background != "navy" else "olive"
    (scores,) = case.scores(render(replace(case.scene, background=other), "photo"))
    assert scores.trajectory_error < 1
    assert scores.background_right < 0.1


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_cases_are_deterministic_and_move_within_the_frame(seed: int) -> None:
    case, again = make_case(seed, "photo"), make_case(seed, "photo")
    assert torch.equal(case.image, again.image)
    assert case.tracks == again.tracks
    assert case.prompt == again.prompt
    track = case.tracks.objects[0]
    (target,) = case.targets
    assert track.name.split()[1] in SHAPES
    boxes = torch.tensor(track.boxes)
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert math.dist(centre[0], centre[-1]) >= LEAST_MOTION * 64 - 1e-4
    # the prompt asks for other colours than the condition photo shows
    shown = NAMES[int(nearest_colours(case.image[None])[0][target.mask].mode().values)]
    assert shown != target.colour
    for x, y in track.points:
        assert target.mask[int(y), int(x)]


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_two_objects_have_colours_and_tracks_of_their_own(seed: int) -> None:
    case = make_case(seed, "edge", "two objects")
    first, second = case.targets
    assert first.colour != second.colour
    assert len(case.tracks.objects) == 2
    for scores in case.scores(case.truth):
        assert scores.trajectory_error < 1
        assert scores.background_right > 0.8
    # a video that lacks one of them
    alone = replace(case.scene, sprites=case.scene.sprites[:1])
    found, missing = case.scores(render(alone, "photo"))
    assert (found.found, missing.found) == (1, 0)
    assert missing.trajectory_error == 32


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_objects_in_each_others_colours_follow_their_tracks_all_the_same(seed: int) -> None:
    case = make_case(seed, "edge", "two objects")
    a, b = (sprite.colour for sprite in case.scene.sprites)
    swapped = render(recoloured(case.scene, (b, a), case.scene.background), "photo")
    for scores, right in zip(case.scores(swapped), case.scores(case.truth), strict=True):
        # at an outline the nearest colour of the palette depends on the two colours that mix there
        assert scores.trajectory_error == pytest.approx(right.trajectory_error, abs=0.5)
        assert scores.first_frame_iou == pytest.approx(right.first_frame_iou, abs=0.2)
        assert right.colour_right
        assert not scores.colour_right
    back = case.scores(case.truth.flip(0))
    assert all(scores.trajectory_error > 3 for scores in back), "a patch for each, but not where they should be"


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 7))
def test_objects_that_exchange_identities_follow_their_tracks_but_do_not_keep_who_they_are(seed: int, at: int) -> None:
    """From frame `at` on (from 0) each goes on where the other should; missing frames keep nothing."""
    case = make_case(seed, "edge", "two objects")
    a, b = (sprite.colour for sprite in case.scene.sprites)
    exchanged = render(recoloured(case.scene, (b, a), case.scene.background), "photo")
    video = torch.cat([case.truth[:at], exchanged[at:]])
    for scores in case.scores(video):
        assert scores.trajectory_error < 1 and scores.found == 1 and scores.colour_right
    assert case.identities_kept(case.truth) == case.identities_kept(exchanged) == [1, 1]
    assert case.identities_kept(video) == pytest.approx([(at - 1) / 7] * 2)
    alone = render(replace(case.scene, sprites=case.scene.sprites[:1]), "photo")
    kept, lost = case.identities_kept(torch.cat([case.truth[:at], alone[at:]]))
    assert (kept, lost) == (1, pytest.approx((at - 1) / 7))
    assert math.isnan(case.identities_kept(alone)[1])


def test_objects_of_one_colour_that_touch_are_two_and_one_with_a_gap_is_one() -> None:
    """Two squares side by side, the right one cut by a line of another colour."""
    red, black = torch.tensor(OBJECT_COLOURS["red"]), torch.tensor(BACKGROUND_COLOURS["black"])
    frame = black[:, None, None].repeat(1, 64, 64)
    frame[:, 20:40, 10:30] = frame[:, 20:40, 30:50] = red[:, None, None]
    frame[:, 29:31, 30:50] = black[:, None, None]
    left, right = torch.zeros(2, 64, 64, dtype=torch.bool)
    left[20:40, 10:30] = right[20:40, 30:50] = True
    right[29:31] = False
    wanted = [
        Target(colour, torch.tensor([[x, 30.0]]), mask, margin=0.0)
        for colour, x, mask in (("red", 20.0, left), ("blue", 40.0, right))
    ]
    found = find_objects(frame[None], wanted)
    assert torch.equal(torch.stack(found), torch.stack([left, right])[:, None])


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_a_pan_is_measured_in_the_background(seed: int) -> None:
    case = make_case(seed, "photo", "pan")
    # texture under an antialiased object's rim and brightness cut off at black blur the shift a little
    assert case.pan_error(case.truth) < 0.05
    still = replace(case.scene, pan=((0.0, 0.0),) * case.scene.frames)
    assert case.pan_error(render(still, "photo")) == pytest.approx(1, abs=0.05)
    half = replace(case.scene, pan=tuple((x / 2, y / 2) for x, y in case.scene.pan))
    # the steps are below a pixel or little more; seven of them, each found to a tenth of one, of 10 px or more
    assert case.pan_error(render(half, "photo")) == pytest.approx(0.5, abs=0.08)
    assert math.isnan(make_case(seed, "photo").pan_error(case.truth))


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_unseen_cases_are_unseen_and_plain_ones_are_not(seed: int) -> None:
    plain, pair, shape = (make_case(seed, "edge", kind) for kind in ("plain", "unseen pair", "unseen shape"))
    (sprite,) = pair.scene.sprites
    assert (sprite.shape, sprite.colour) in HELD_OUT
    (sprite,) = plain.scene.sprites
    assert (sprite.shape, sprite.colour) not in HELD_OUT
    (sprite,) = shape.scene.sprites
    assert sprite.shape not in SHAPES
    assert "circle" in shape.prompt


def test_palette_colours_are_their_own_nearest() -> None:
    for i, colour in enumerate([*OBJECT_COLOURS.values(), *BACKGROUND_COLOURS.values()]):
        frame = torch.tensor(colour)[None, :, None, None].expand(1, 3, 2, 2)
        assert (nearest_colours(frame) == i).all()
