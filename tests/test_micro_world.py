"""The synthetic world and its pictures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.micro.benchmark.measure import find_object
from anyi2v.micro.training.training_data import analytic_latents, clip_batch, image_batch, pair_batch, preview
from anyi2v.micro.world.modalities import WORDS, caption, render
from anyi2v.micro.world.world import (
    BACKGROUND_COLOURS,
    HELD_OUT,
    MODALITIES,
    OBJECT_COLOURS,
    SHAPES,
    SPLITS,
    Modality,
    Scene,
    Split,
    Sprite,
    box,
    distance,
    object_masks,
    recoloured,
    sample_scene,
    split_generator,
    still,
)

seeds = st.integers(0, 2**28)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(MODALITIES))
def test_pictures_are_determined_by_their_seed_and_lie_in_range(seed: int, modality: Modality) -> None:
    first, again = (render(sample_scene(split_generator("train", seed)), modality) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (8, 3, 64, 64)
    assert first.isfinite().all()
    assert first.min() >= 0
    assert first.max() <= 1


@given(seeds, seeds, st.sampled_from(SPLITS), st.sampled_from(SPLITS))
def test_splits_share_no_seed(i: int, j: int, a: Split, b: Split) -> None:
    same = split_generator(a, i).initial_seed() == split_generator(b, j).initial_seed()
    assert same == ((i, a) == (j, b))


def test_training_never_shows_held_out_pairs_and_the_other_mode_does() -> None:
    def pairs(held_out: bool) -> set[tuple[str, str]]:
        scenes = [sample_scene(split_generator("train", i), held_out=held_out) for i in range(600)]
        return {(s.shape, s.colour) for scene in scenes for s in scene.sprites}

    assert not pairs(False) & HELD_OUT
    assert len(pairs(False)) == len(SHAPES) * len(OBJECT_COLOURS) - len(HELD_OUT)
    assert pairs(True) >= HELD_OUT


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_masks_lie_in_their_boxes_and_hold_the_objects_colour(seed: int) -> None:
    scene = sample_scene(split_generator("test", seed))
    photo = render(scene, "photo")
    for sprite, mask in zip(scene.sprites, object_masks(scene), strict=True):
        colour = torch.tensor(OBJECT_COLOURS[sprite.colour])
        for f in range(scene.frames):
            x0, y0, x1, y1 = box(sprite, f)
            rows, cols = mask[f].nonzero(as_tuple=True)
            assert ((rows + 1 >= y0) & (rows <= y1) & (cols + 1 >= x0) & (cols <= x1)).all()
        # half a pixel inside the outline nothing of the background shines through
        deep = (distance(sprite, scene.size) < -0.5) & mask
        inside = photo.movedim(1, -1)[deep]
        front = sprite is scene.sprites[-1]
        if front:
            torch.testing.assert_close(inside, colour.expand_as(inside))


@pytest.mark.parametrize("shape", [*SHAPES, "hexagon"])
def test_shapes_fill_a_fair_part_of_their_circle(shape: str) -> None:
    sprite = Sprite(shape, "red", ((32.0, 32.0),), (20.0,))
    area = (distance(sprite, 64) < 0).float().sum().item() / (torch.pi * 20**2)
    assert 0.2 < area < 1
    assert (distance(sprite, 64)[0, 0, 0] > 5).item()


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="'blob'"):
        distance(Sprite("blob", "red", ((0.0, 0.0),), (1.0,)), 8)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(MODALITIES))
def test_captions_are_made_of_the_vocabulary_and_fit(seed: int, modality: Modality) -> None:
    words = caption(sample_scene(split_generator("train", seed)), modality).split()
    assert set(words) <= set(WORDS[3:])
    assert len(words) + 2 <= 16


def test_edges_lie_on_outlines_and_backgrounds_pan() -> None:
    scenes = (sample_scene(split_generator("train", i)) for i in range(500))
    scene = next(s for s in scenes if any(s.pan[-1]) and s.stripes[2] > 0.1)
    edges = render(scene, "edge")[:, 0]
    d = torch.stack([distance(s, 64) for s in scene.sprites]).amin(0)
    assert not edges[d > 1.5].any()
    assert (edges[d.abs() < 0.5] >= 0.5 - 1e-4).float().mean() > 0.9
    texture = recoloured(scene, tuple(s.colour for s in scene.sprites), "gray")
    photo = render(texture, "photo")
    far = (d > 2).all(0)
    assert (photo[0] - photo[-1])[:, far].abs().max() > 0.05


def test_still_is_one_frame_of_the_scene() -> None:
    scene: Scene = sample_scene(split_generator("train", 5))
    for modality in MODALITIES:
        torch.testing.assert_close(render(still(scene, 3), modality)[0], render(scene, modality)[3])


def test_pairs_show_one_layout_in_two_ways() -> None:
    conditions, photos, captions = pair_batch("train", 0, 40)
    later, _, _ = pair_batch("train", 30, 10)
    assert torch.equal(conditions[30:], later)
    silhouettes = 0
    for condition, photo, words in zip(conditions, photos, captions, strict=True):
        white, black = (condition == 1).all(0), (condition == 0).all(0)
        if black.any() and white[0, 0] and (white | black).float().mean() > 0.9:
            named = [word for word in words.split() if word in OBJECT_COLOURS]
            seen = torch.stack([find_object(photo[None], colour)[0] for colour in named]).any(0)
            drawn = condition.amax(0) < 0.5
            assert (seen & drawn).sum() > 0.85 * (seen | drawn).sum()
            silhouettes += 1
    assert silhouettes > 2
    assert not any(f"{colour} {shape}" in words for shape, colour in HELD_OUT for words in captions)


def test_batches_are_numbered_and_latents_have_about_unit_variance() -> None:
    images, captions = image_batch("train", 0, 200)
    tail, tail_captions = image_batch("train", 150, 50)
    assert torch.equal(images[150:], tail)
    assert captions[150:] == tail_captions
    assert 0.02 < sum(not c for c in captions) / 200 < 0.25
    std = analytic_latents(images).std((0, 2, 3))
    assert ((std > 0.4) & (std < 1.5)).all()
    clips, _ = clip_batch("validation", 0, 2)
    assert analytic_latents(clips).shape == (2, 8, 4, 32, 32)


def test_preview_shows_the_cells_mean_colours() -> None:
    images, _ = image_batch("train", 0, 4)
    means = torch.nn.functional.avg_pool2d(images, 2)
    shown = preview(analytic_latents(images))
    torch.testing.assert_close(shown[..., ::2, ::2], means)
    assert shown.shape == images.shape


def test_palettes_are_far_apart() -> None:
    palette = torch.tensor([*OBJECT_COLOURS.values(), *BACKGROUND_COLOURS.values()])
    assert (torch.cdist(palette, palette) + torch.eye(16)).min() > 0.15
