"""Jobs with ground truth for the method: a condition image, a prompt, a track, and what must come out."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.micro.measure import Scores, measure
from anyi2v.micro.modalities import caption, render
from anyi2v.micro.world import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    Modality,
    Scene,
    Sprite,
    box,
    choice,
    distance,
    object_masks,
    recoloured,
    sample_scene,
    split_generator,
    still,
)
from anyi2v.tracks import Track, Tracks

LEAST_MOTION = 16 / 64
"""Of the frame's width, between the first and the last position."""
LEAST_RADIUS = 9 / 64
"""Of the frame's width; the outline of a smaller object says little about its shape."""


@dataclass(frozen=True)
class Case:
    """One job."""

    seed: int
    modality: Modality
    scene: Scene
    """As prompted."""
    image: Float[Tensor, "3 h w"]
    prompt: str
    tracks: Tracks
    colour: str
    background: str
    targets: Float[Tensor, "f 2"]
    mask: Bool[Tensor, "h w"]
    truth: Float[Tensor, "f 3 h w"]
    """The prompted scene moving along the track, as the world itself draws it."""

    def scores(self, video: Float[Tensor, "f 3 h w"]) -> Scores:
        """Measures a video made from this case."""
        x0, y0, x1, y1 = self.tracks.objects[0].boxes[0]
        return measure(
            video,
            colour=self.colour,
            background=self.background,
            targets=self.targets,
            condition_mask=self.mask,
            margin=max(x1 - x0, y1 - y0) * 0.75,
        )


def make_case(seed: int, modality: Modality) -> Case:
    """Case number `seed` of the test split: one object of constant size, a quarter of the frame or more to go.

    Where the condition image has colours, the prompt asks for others.
    """
    generator = split_generator("test", seed)
    scene = sample_scene(generator)
    while not _suits(scene):
        scene = sample_scene(generator)
    sprite = scene.sprites[0]
    colour = choice(generator, tuple(c for c in OBJECT_COLOURS if c != sprite.colour))
    background = choice(generator, tuple(b for b in BACKGROUND_COLOURS if b != scene.background))
    prompted = recoloured(scene, (colour,), background)
    track = Track(
        name=sprite.shape,
        boxes=tuple(box(sprite, f) for f in range(scene.frames)),
        points=salient_points(sprite, scene.size),
    )
    return Case(
        seed=seed,
        modality=modality,
        scene=prompted,
        image=render(still(scene, 0), modality)[0],
        prompt=caption(prompted, "photo"),
        tracks=Tracks(scene.size, scene.size, (track,)),
        colour=colour,
        background=background,
        targets=mask_centres(prompted),
        mask=object_masks(scene)[0][0],
        truth=render(prompted, "photo"),
    )


def mask_centres(scene: Scene) -> Float[Tensor, "f 2"]:
    """Centroid of the first sprite's mask per frame (a triangle's is not the centre of its circle)."""
    masks = object_masks(scene)[0].float()
    grid = torch.arange(scene.size) + 0.5
    area = masks.sum((1, 2))
    return torch.stack([(masks.sum(1) * grid).sum(1) / area, (masks.sum(2) * grid).sum(1) / area], dim=-1)


def salient_points(sprite: Sprite, size: int) -> tuple[tuple[float, float], ...]:
    """Up to five points on the sprite in frame 1: its centre and four half way out, as far as they are on it."""
    d = distance(replace(sprite, centres=sprite.centres[:1], radii=sprite.radii[:1]), size)[0]
    (cx, cy), r = sprite.centres[0], sprite.radii[0]
    reach = 0.72 * r if sprite.shape == "ring" else 0.45 * r
    around = [sprite.angle + k * math.pi / 2 for k in range(4)]
    points = [(cx, cy)] + [(cx + reach * math.cos(a), cy + reach * math.sin(a)) for a in around]
    on_it = [(x, y) for x, y in points if d[min(int(y), size - 1), min(int(x), size - 1)] < -0.5]
    if on_it:
        return tuple(on_it)
    deepest = int(d.argmin())
    return ((deepest % size + 0.5, deepest // size + 0.5),)


def _suits(scene: Scene) -> bool:
    if len(scene.sprites) != 1 or any(scene.pan[-1]):
        return False
    sprite = scene.sprites[0]
    if len(set(sprite.radii)) > 1 or sprite.radii[0] < LEAST_RADIUS * scene.size:
        return False
    boxes = [box(sprite, f) for f in range(scene.frames)]
    inside = all(min(b[:2]) >= 0 and max(b[2:]) <= scene.size for b in boxes)
    moved = math.dist(sprite.centres[0], sprite.centres[-1])
    return inside and moved >= LEAST_MOTION * scene.size
