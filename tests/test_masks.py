"""Similarity and semantic masks, Eq. 5 to 7."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.method.boxes import make_crops
from anyi2v.method.config import AlignmentOptions, Clustering
from anyi2v.method.crops import visible
from anyi2v.method.masks import dilated, first_frame_masks, foreground, shared_first_mask, similarity, with_given
from anyi2v.tracks import Track, Tracks


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(similarities: Tensor, valid: Tensor, clustering: Clustering, **options: Any) -> Tensor:
    return foreground(similarities, [], valid, AlignmentOptions(clustering=clustering, **options))


def test_worked_example() -> None:
    """Cosines of (1, 0), (1, 1) and (0, 2) with the points (3, 0) and (0, 1); the larger one counts."""
    cells = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, -1.0]]).view(1, 1, 1, 4, 2)
    points = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    expected = torch.tensor([1.0, 0.5**0.5, 1.0, -(0.5**0.5)]).view(1, 1, 1, 4)
    torch.testing.assert_close(similarity(cells, points), expected)
    mask = clustered(expected[None], torch.ones(1, 1, 1, 4, dtype=torch.bool), "per_frame")
    assert mask.flatten().tolist() == [True, True, True, False]


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_similarity_does_not_depend_on_lengths(a: float, b: float) -> None:
    crops, points = random(2, 3, 4, 5, 6), random(2, 3, 2, 6, seed=1)
    torch.testing.assert_close(similarity(a * crops, b * points), similarity(crops, points))


@given(st.permutations(range(3)))
def test_the_order_of_the_points_does_not_matter(order: list[int]) -> None:
    crops, points = random(2, 3, 4, 5, 6), random(2, 3, 3, 6, seed=1)
    assert torch.equal(similarity(crops, points[:, :, order]), similarity(crops, points))


def test_any_number_of_points_counts() -> None:
    crops, points = random(2, 3, 4, 5, 6), random(2, 3, 200, 6, seed=1)
    expected = torch.cosine_similarity(crops[..., None, :], points[:, :, None, None], dim=-1).amax(-1)
    torch.testing.assert_close(similarity(crops, points), expected)


def test_equal_similarities_are_all_foreground() -> None:
    valid = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    for clustering in ("per_frame", "joint"):
        assert clustered(torch.full((2, 1, 2, 3, 3), 0.5), valid, clustering).all()


def test_padding_is_background_and_changes_nothing() -> None:
    maps = random(2, 1, 1, 4, 4)
    inside = torch.zeros(1, 1, 6, 7, dtype=torch.bool)
    inside[..., :4, :4] = True
    padded = F.pad(maps, (0, 3, 0, 2), value=9.0)
    for clustering in ("per_frame", "joint"):
        alone = clustered(maps, torch.ones(1, 1, 4, 4, dtype=torch.bool), clustering)
        mask = clustered(padded, inside, clustering)
        assert torch.equal(mask[..., :4, :4], alone)
        assert not mask[:, ~inside].any()


@given(st.integers(0, 99), st.sampled_from(("per_frame", "joint")))
def test_more_clusters_make_a_smaller_object(seed: int, clustering: Clustering) -> None:
    maps, valid = random(2, 1, 2, 5, 5, seed=seed), torch.ones(1, 2, 5, 5, dtype=torch.bool)
    two, many = (clustered(maps, valid, clustering, clusters=k) for k in (2, 6))
    assert many.any() and many.sum() < two.sum()


def test_features_tell_apart_what_similarities_do_not() -> None:
    """Three kinds of cells; two are equally similar to the point, and the object is the kind that is most similar."""
    kinds = F.normalize(torch.tensor([[1.0, 0.1, 0.0], [0.6, 0.8, 0.0], [0.6, 0.0, 0.8]]), dim=-1)
    cells = kinds[torch.tensor([0, 0, 1, 1, 2, 2])].view(1, 1, 1, 6, 3)
    similar = similarity(cells, torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3))[None]
    valid = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    for clustering in ("per_frame", "joint"):
        options = AlignmentOptions(clustering=clustering, clusters=3, cluster_by="features")
        mask = foreground(similar, [cells], valid, options)
        assert mask.flatten().tolist() == [True, True, False, False, False, False]


@given(st.sampled_from(("per_frame", "joint")), st.integers(2, 4), st.integers(0, 99))
def test_padding_changes_no_clustering_of_features(clustering: Clustering, clusters: int, seed: int) -> None:
    cells, similar = random(1, 2, 4, 4, 3, seed=seed), random(2, 1, 2, 4, 4, seed=seed)
    inside = torch.zeros(1, 2, 6, 7, dtype=torch.bool)
    inside[..., :4, :4] = True
    options = AlignmentOptions(clustering=clustering, clusters=clusters, cluster_by="features")
    alone = foreground(similar, [cells, 2 * cells], torch.ones(1, 2, 4, 4, dtype=torch.bool), options)
    wide = F.pad(cells, (0, 0, 0, 3, 0, 2), value=9.0)
    padded = foreground(F.pad(similar, (0, 3, 0, 2), value=9.0), [wide, wide], inside, options)
    assert torch.equal(padded[..., :4, :4], alone)
    assert not padded[:, ~inside].any()


def test_joint_clustering_gives_each_layer_its_own_mask() -> None:
    maps = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.9, 0.0]], dtype=torch.float64).view(2, 1, 1, 1, 3)
    valid = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    assert clustered(maps, valid, "joint").view(2, 3).tolist() == [[True, True, False], [False, True, False]]
    # the mean map is (0.5, 0.85, 0.05)
    assert clustered(maps, valid, "per_frame").view(2, 3).tolist() == [[True, True, False]] * 2


@settings(max_examples=30, deadline=None)
@given(st.integers(-6, 10), st.integers(-4, 6), st.integers(0, 99))
def test_masks_of_a_moved_copy_move_along(dx: int, dy: int, seed: int) -> None:
    """Rolling the map and the box together gives the same mask in the box."""
    box = (12.0, 8.0, 22.0, 16.0)
    moved = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
    crops = make_crops(Tracks(40, 30, (Track("a", (box, moved)),)), (30, 40), 2)
    first = random(30, 40, seed=seed)
    maps = torch.stack([first, first.roll((dy, dx), (0, 1))])
    cells = torch.stack([maps[f, slice(*r), slice(*c)] for f, (r, c) in enumerate(crops.boxes[0])])
    masks = clustered(cells[None, None], crops.valid, "per_frame")
    assert torch.equal(masks[0, 0, 0], masks[0, 0, 1])
    assert torch.equal(first_frame_masks(masks, crops), masks)


def test_frame_1s_mask_grows_with_its_box() -> None:
    track = Track("a", ((0.0, 0.0, 2.0, 2.0), (0.0, 0.0, 4.0, 4.0)))
    crops = make_crops(Tracks(8, 8, (track,)), (8, 8), 2)
    masks = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0, :2, :2] = torch.tensor([[True, False], [False, True]])
    carried = first_frame_masks(masks, crops)[0, 0, 1].int().tolist()
    assert carried == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 9999))
def test_shared_mask_is_object_1s_resampled_from_crop_to_crop(objects: int, frames: int, seed: int) -> None:
    """The published loop: frames outer, objects inner; each other shape resamples what the last one left.

    Boxes grow, shrink, are clipped, and leave the frame, which leaves the mask as it was.
    """
    sides = random(objects, frames, 2, seed=seed).abs() * 3 + 1
    corners = random(objects, frames, 2, seed=seed + 1) * 6
    corners[:, 0] = corners[:, 0].clamp(0, 6)
    boxes = torch.cat([corners, corners + sides], -1).tolist()
    tracks = tuple(Track(f"{o}", tuple(tuple(box) for box in boxes[o])) for o in range(objects))  # type: ignore[misc]
    crops = make_crops(Tracks(8, 8, tracks), (8, 8), frames)
    masks = random(2, *crops.valid.shape, seed=seed + 2) > 0
    expected = torch.zeros(masks.shape)
    (top, bottom), (left, right) = (visible(span, 8) for span in crops.boxes[0][0])
    current = masks[:, 0, 0, : bottom - top, : right - left].float()
    for f in range(frames):
        for o in range(objects):
            (top, bottom), (left, right) = (visible(span, 8) for span in crops.boxes[o][f])
            if bottom > top and right > left:
                current = F.interpolate(current[None], (bottom - top, right - left), mode="bilinear")[0]
                expected[:, o, f, : bottom - top, : right - left] = current
    # float32: values up to 1, up to fifteen resamplings with three roundings of 6e-8 along each of two axes, which
    # would be 5e-6 if all went one way
    torch.testing.assert_close(shared_first_mask(masks, crops), expected, rtol=0, atol=2e-6)


def test_a_margin_grows_frame_1s_mask_within_its_box() -> None:
    """By hand: one cell grows to 3 x 3, is cut at the box's edge, and reaches neither padding nor other frames."""
    small = Track("small", ((0.0, 0.0, 4.0, 3.0), (0.0, 0.0, 6.0, 6.0)))
    outside = Track("outside", ((-2.0, 2.0, 2.0, 6.0), (0.0, 0.0, 6.0, 6.0)))
    crops = make_crops(Tracks(8, 8, (small, outside)), (8, 8), 2)
    masks = torch.zeros(2, 2, 2, 6, 6, dtype=torch.bool)
    masks[:, :, :, 2, 1] = True
    assert torch.equal(dilated(masks, crops, 0), masks)
    grown = dilated(masks, crops, 1)
    assert torch.equal(grown[:, :, 1], masks[:, :, 1])
    assert torch.equal(grown[0], grown[1])
    cells = {o: {(y, x) for y, x in grown[0, o, 0].nonzero().tolist()} for o in (0, 1)}
    assert cells[0] == {(y, x) for y in (1, 2) for x in (0, 1, 2)}
    assert cells[1] == {(y, x) for y in (1, 2, 3) for x in (0, 1)}
    everything = dilated(masks, crops, 10**9)[:, :, 0]
    assert torch.equal(everything, crops.valid[:, 0].expand_as(everything))


def test_users_masks_replace_frame_1s_and_nothing_else() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[1:3, 2:4] = True
    boxes = ((0.0, 0.0, 6.0, 4.0), (2.0, 0.0, 8.0, 4.0))
    tracks = Tracks(8, 8, (Track("a", boxes), Track("b", boxes, mask=mask)))
    crops = make_crops(tracks, (8, 8), 2)
    masks = random(3, *crops.valid.shape, seed=5) > 0
    out = with_given(masks, crops)
    assert torch.equal(out[:, 0], masks[:, 0]) and torch.equal(out[:, :, 1], masks[:, :, 1])
    assert all(torch.equal(layer, torch.tensor(mask[:4, :6])) for layer in out[:, 1, 0])


@given(st.integers(0, 99), st.floats(0.01, 100))
def test_lengths_of_features_do_not_matter(seed: int, factor: float) -> None:
    first, second = random(1, 2, 4, 4, 3, seed=seed), random(1, 2, 4, 4, 5, seed=seed + 1)
    similar = random(2, 1, 2, 4, 4)
    valid = torch.ones(1, 2, 4, 4, dtype=torch.bool)
    options = AlignmentOptions(cluster_by="features")
    lengths = factor * (1 + random(1, 2, 4, 4, 1, seed=seed + 2).abs())
    plain, scaled = (foreground(similar, [first, x], valid, options) for x in (second, lengths * second))
    assert torch.equal(plain, scaled)
