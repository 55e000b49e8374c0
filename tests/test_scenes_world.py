"""The scenes that the backbone "scenes" learns from, on twelve drawn objects in place of the package's."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.text import tokenize
from anyi2v.diffusion import alphas_cumprod
from anyi2v.micro.training.objectives import noise_loss
from benchmarks.scenes import lessons, measure, quality
from benchmarks.scenes.drawing import (
    INK,
    MODALITIES,
    Modality,
    Sprites,
    background,
    caption,
    edges,
    ground,
    inflated,
    painted,
    render,
    sprites,
    tinted,
    window,
)
from benchmarks.scenes.scenes import (
    ALL_GROUNDS,
    HORIZONTAL,
    SIZE,
    TINTS,
    WORDS,
    Scene,
    restyled,
    sample_scene,
    split_generator,
    still,
)
from benchmarks.scenes.world import OBJECTS

SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    (folder / "assets").mkdir()
    for i, code in enumerate(OBJECTS.values()):
        image = Image.new("RGBA", (96, 96))
        draw = ImageDraw.Draw(image)
        draw.ellipse((8, 8 + 2 * i, 88, 88), fill=(200, 60 + 10 * i, 40))
        draw.rectangle((30, 20, 66, 80), fill=(230, 220, 90 + 10 * i))
        image.save(folder / "assets" / f"{code}.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def known(package: Path) -> Sprites:
    return sprites(package)


def scene(seed: int) -> Scene:
    return sample_scene(split_generator("train", seed))


def outside(a_scene: Scene) -> bool:
    centres = [c for thing in a_scene.things for place in thing.places for c in (place.x, place.y)]
    return any(not 0 <= c <= 1 for c in centres)


def test_words_occur_once_and_cover_all_captions() -> None:
    assert len(set(WORDS)) == len(WORDS)
    for seed in range(200):
        for modality in MODALITIES:
            text = caption(scene(seed), modality)
            assert set(text.split()) <= set(WORDS)
            assert (tokenize(lessons.CONFIG.text, [text]) == WORDS.index("<eos>")).any(), "the caption was cut"


@given(SEEDS)
@settings(deadline=None)
def test_scenes_depend_on_their_seed_and_split(seed: int) -> None:
    assert scene(seed) == scene(seed)
    assert sample_scene(split_generator("validation", seed)) != scene(seed)


@given(SEEDS)
@settings(deadline=None)
def test_objects_stay_inside_unless_the_caption_says_leaving(seed: int) -> None:
    a_scene = scene(seed)
    assert ("leaving" in caption(a_scene, "photo").split()) == outside(a_scene)
    if outside(a_scene):
        return
    for thing in a_scene.things:
        half = max(place.scale for place in thing.places) / 2
        for axis in ("x", "y"):
            values = [getattr(place, axis) for place in thing.places]
            if max(values) - min(values) + 2 * half <= 1:  # there is room for the path
                assert half - 1e-6 <= min(values) and max(values) <= 1 - half + 1e-6


@given(SEEDS)
@settings(deadline=None)
def test_objects_and_camera_move_slowly(seed: int) -> None:
    a_scene = scene(seed)
    for a, b in pairwise(a_scene.pan):
        assert math.dist(a, b) <= 4.5 / 64 * SIZE + 1e-6
    for thing in a_scene.things:
        for a, b in pairwise(thing.places):
            assert math.dist((a.x, a.y), (b.x, b.y)) <= 4.5 / 64 + 0.18 * math.pi * 2 / 7


def test_cameras_over_a_horizon_pan_sideways() -> None:
    scenes = [scene(seed) for seed in range(300)]
    panning = [s for s in scenes if any(x or y for x, y in s.pan)]
    assert all(y == 0 for s in panning if s.ground in HORIZONTAL for _, y in s.pan)
    assert any(y != 0 for s in panning for _, y in s.pan)


def test_another_style_keeps_the_layout() -> None:
    for seed in range(50):
        before, after = scene(seed), restyled(torch.Generator().manual_seed(seed), scene(seed))
        assert before.ground != after.ground and before.pan == after.pan
        for a, b in zip(before.things, after.things, strict=True):
            assert a.name == b.name and a.places == b.places and a.tint != b.tint


@pytest.mark.parametrize("modality", get_args(Modality))
def test_every_modality_is_a_picture(known: Sprites, modality: Modality) -> None:
    for seed in range(6):
        clip = render(scene(seed), modality, known)
        assert clip.shape == (8, 3, SIZE, SIZE) and clip.min() >= 0 and clip.max() <= 1
        assert torch.equal(render(still(scene(seed), 5), modality, known), clip[5:6])


def test_modalities_show_the_objects(known: Sprites) -> None:
    a_scene = still(next(s for s in map(scene, range(100)) if len(s.things) == 1 and not outside(s)), 0)
    (alpha,), _ = painted(a_scene, known).alpha, None
    inside, away = alpha[0, 0] > 0.99, alpha[0, 0] < 0.01
    silhouette = render(a_scene, "silhouette", known)[0]
    assert silhouette[:, inside].max() < 0.02 and silhouette[:, away].min() > 0.98
    depth, floor = render(a_scene, "depth", known)[0], background(a_scene, "depth")[0]
    assert (depth[:, inside] > floor[:, inside]).all()
    torch.testing.assert_close(depth[:, away], floor[:, away], atol=0.01, rtol=0)
    flat = render(a_scene, "segmentation", known)[0]
    assert len(flat[:, inside].T.round(decimals=1).unique(dim=0)) == 1
    assert len(flat[:, away].T.round(decimals=1).unique(dim=0)) == 1
    normal = 2 * render(a_scene, "normal", known)[0] - 1
    torch.testing.assert_close(normal[:, inside].norm(dim=0), torch.ones(int(inside.sum())), atol=0.02, rtol=0)
    drawing = render(a_scene, "line", known)[0, 0]
    border = (alpha[0, 0] > 0.2) & (alpha[0, 0] < 0.8)
    near_ink = torch.nn.functional.max_pool2d((drawing < INK + 0.01)[None].float(), 3, stride=1, padding=1)[0] > 0
    assert near_ink[border].float().mean() > 0.95
    assert not (near_ink & away)[torch.nn.functional.max_pool2d(alpha[0], 9, stride=1, padding=4)[0] == 0].any()


def test_edges_are_thin_lines_at_steps() -> None:
    picture = torch.zeros(1, 20, 20)
    picture[:, :, 10:] = 1
    found = edges(picture, 0.2)[0]
    assert found[2:-2].sum(1).tolist() == [2.0] * 16 and found[:, 8:11].sum() == found.sum()
    assert not edges(0.1 * picture, 0.2).any()
    assert torch.equal(edges(picture.mT, 0.2).mT, edges(picture, 0.2))


def test_a_window_may_lie_between_pixels() -> None:
    picture = torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0))
    whole = window(picture, 7.0, 30.0)
    assert torch.equal(whole, picture[:, 30 : 30 + SIZE, 7 : 7 + SIZE])
    half = window(picture, 7.5, 30.0)
    torch.testing.assert_close(half, (whole + window(picture, 8.0, 30.0)) / 2)


def test_the_ground_moves_with_the_camera() -> None:
    a_scene = scene(0)._replace(ground="bricks", pan=((0.0, 0.0), (6.0, -4.0)), room=10, light=(0.0, 0.0), things=())
    first, second = ground(a_scene)
    torch.testing.assert_close(second[:, :-4, 6:], first[:, 4:, :-6])


def test_every_ground_is_a_picture_of_its_own() -> None:
    pictures = {}
    for name, draw in ALL_GROUNDS.items():
        picture = draw(torch.Generator().manual_seed(3), SIZE)
        assert picture.shape == (3, SIZE, SIZE) and picture.min() > -0.5 and picture.max() < 1.5
        pictures[name] = picture.mean((1, 2))
    assert min((pictures[a] - pictures[b]).norm() for a in pictures for b in pictures if a != b) > 0.05


def test_tints_colour_the_object_and_keep_its_outline(known: Sprites) -> None:
    sprite = known["rooster"]
    for tint, colour in TINTS.items():
        found = tinted(sprite, tint)
        assert torch.equal(found[3:], sprite[3:])
        mean = found[:3].sum((1, 2)) / found[3].sum()
        hue = {name: torch.nn.functional.cosine_similarity(mean, torch.tensor(c), dim=0) for name, c in TINTS.items()}
        assert max(hue, key=lambda name: hue[name]) == tint, (tint, colour)
    assert tinted(sprite, None) is sprite


def test_height_rises_towards_the_middle() -> None:
    line = torch.arange(65) - 32.0
    disc = (line[:, None].square() + line.square() <= 30**2).float()
    height = inflated(disc)[0]
    profile = height[32, 32:]
    assert profile.max() == 1 and (profile[1:] <= profile[:-1] + 1e-6).all() and profile[30] < 0.6
    assert not height[disc == 0].any()


def test_batches_depend_on_the_numbers_of_their_samples(package: Path) -> None:
    many, some = lessons.images(package, "train", 0, 6), lessons.images(package, "train", 4, 2)
    assert torch.equal(many.images[4:], some.images) and many.captions[4:] == some.captions
    assert many.weights is not None
    torch.testing.assert_close(many.weights.mean((1, 2, 3, 4)), torch.ones(6))
    conditions, photos, captions = lessons.pairs(package, "train", 0, 3)
    assert conditions.shape == photos.shape == (3, 3, SIZE, SIZE) and len(captions) == 3
    clips = lessons.clips(package, "validation", 2, 1)
    assert clips.images.shape == (1, 8, 3, SIZE, SIZE)
    assert clips.weights is not None and clips.weights.shape == (1, 8, 1, 32, 32)
    first = still(sample_scene(split_generator("validation", 2)), 0)
    assert torch.equal(clips.images[0, :1], render(first, "photo", sprites(package)))


def test_latents_keep_the_picture(package: Path) -> None:
    clips = lessons.clips(package, "train", 0, 1).images
    latents = lessons.latents(package, clips)
    assert latents.shape == (1, 8, 12, 32, 32)
    error = (lessons.preview(package, latents) - clips).square().mean()
    assert -10 * error.log10() > 25  # dB; drawn grounds have more fine texture than objects


class TrueV(Backbone):
    """A stand-in for a backbone, whose UNet is a function and whose text tower returns zeros."""

    def __init__(self, unet: Any):
        self.config, self.unet = lessons.CONFIG, unet
        self.text = cast(Any, lambda tokens: torch.zeros(len(tokens), 24, 64))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def test_the_error_of_v_is_zero_for_the_true_v(package: Path) -> None:
    pictures = lessons.images(package, "train", 0, 4)
    latents = lessons.latents(package, pictures.images)[:, None]
    table = alphas_cumprod(lessons.CONFIG.schedule)

    def true_v(off: float, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor, **options: Any) -> torch.Tensor:
        signal = table[t][:, None, None, None, None]
        noise = (z - signal.sqrt() * latents) / (1 - signal).sqrt()
        return signal.sqrt() * noise - (1 - signal).sqrt() * latents + off

    timesteps = lessons.timesteps(4, torch.Generator().manual_seed(0))

    def loss(off: float) -> float:
        backbone = TrueV(partial(true_v, off))
        generator, options = torch.Generator().manual_seed(1), {"video": False, "weights": pictures.weights}
        return noise_loss(backbone, latents, [""] * 4, timesteps, generator, **options).item()

    snr = table[timesteps] / (1 - table[timesteps])
    assert loss(0.0) < 1e-8
    expected = 0.01 * ((snr.clamp(max=5) + 1) / (snr + 1)).mean().item()
    assert loss(0.1) == pytest.approx(expected, rel=1e-3)


def test_judges_tell_objects_and_grounds_of_true_renders(known: Sprites) -> None:
    scenes = quality.held_out(20)
    assert scenes == quality.held_out(20) and all(len(s.things) == 1 and s.frames == 1 for s in scenes)
    images = torch.cat([render(s, "photo", known) for s in scenes])
    masks = torch.cat([painted(s, known).alpha[0, :, 0] > 0.5 for s in scenes])
    references = quality.references(known)
    assert set(references.objects.tolist()) == set(range(12)) and set(references.grounds.tolist()) == set(range(7))
    found = quality.ground(images, masks, references)
    right = [quality.GROUNDS[int(g)] == s.ground for g, s in zip(found, scenes, strict=True)]
    assert sum(right) >= 19
    # rendered at its place, the object's own outline is the best aligned
    (thing,) = scenes[0].things
    tried = measure.templates(known[thing.name][:4], SIZE, (thing.places[0].angle,), (0.3, 0.6))
    assert measure.align(masks[:1], tried).iou.item() > 0.9


def test_figures_are_shares_of_what_was_asked() -> None:
    scenes = quality.held_out(4)
    objects = torch.tensor([quality.NAMES.index(s.things[0].name) for s in scenes])
    grounds = torch.tensor([quality.GROUNDS.index(s.ground) for s in scenes])
    iou, none = torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.zeros(4, 2, 2, dtype=torch.bool)
    found = quality.figures(
        quality.Verdicts(iou, objects, (objects + 1) % 12, grounds.clone().fill_(-1), none, none), scenes, 1
    )
    assert found == {"mean_iou": 0.7, "good_iou": 0.5, "nearest_render": 1.0, "efficientnet": 0.0, "ground": 0.0}
    text = quality.markdown(
        {"options": {"frames": 1, "prompts": 4, "steps": 5, "guidance": 2.0, "eta": 0.0, "decoder": "autoencoder"}}
        | {"renders": found, "samples": found},
        "quality",
    )
    assert "| sampled pictures | 0.700 | 0.500 | 1.000 | 0.000 | 0.000 |" in text
