"""Jobs with ground truth for the method: a condition image, a prompt, a track, and what must come out."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.micro.measure import Scores, Target, centroids, displacements, find_object, measure
from anyi2v.micro.modalities import caption, render
from anyi2v.micro.world import (
    BACKGROUND_COLOURS,
    HELD_OUT,
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
LEAST_PAN = 10 / 64
"""Of the frame's width."""
LEAST_TEXTURE = 0.12, 8 / 64
"""Amplitude and period (of the frame's width) of a background by which a pan can be measured."""
PAN_REACH = 0.35
"""Of the period of the checks, which repeat after 0.71 periods along their diagonals: the steps that can be told
apart."""

Kind = Literal["plain", "two objects", "pan", "unseen pair", "unseen shape"]
KINDS: tuple[Kind, ...] = ("plain", "two objects", "pan", "unseen pair", "unseen shape")


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
    targets: tuple[Target, ...]
    """One per object of the scene; under a pan the objects move along."""
    truth: Float[Tensor, "f 3 h w"]
    """The prompted scene moving along the track, as the world itself draws it."""

    def scores(self, video: Float[Tensor, "f 3 h w"]) -> list[Scores]:
        """Measures a video made from this case, one entry per object."""
        return measure(video, self.targets, self.scene.background)

    def pan_error(self, video: Float[Tensor, "f 3 h w"]) -> float:
        """Distance between the background's way and the asked one, as a share of the latter; NaN without a pan."""
        asked = torch.tensor(self.scene.pan[-1])
        if not asked.any():
            return math.nan
        away = torch.stack([find_object(video, target.colour) for target in self.targets]).any(0)
        away = F.max_pool2d(away[:, None].float(), 5, stride=1, padding=2)[:, 0] > 0
        way = displacements(video, away, reach=PAN_REACH * self.scene.stripes[1]).sum(0)
        return ((way - asked).norm() / asked.norm()).item()


def make_case(seed: int, modality: Modality, kind: Kind = "plain") -> Case:
    """Case number `seed` of the test split. Where the condition image has colours, the prompt asks for others.

    Objects keep their size, stay inside the frame and have a quarter of it or more to go. Kinds:

    plain: one object, of a shape and colour that training has shown together.
    two objects: each with a track of its own.
    pan: the camera moves, and everything with it; the track is one box around the whole frame.
    unseen pair: one object, of a shape and colour that training never shows together.
    unseen shape: a hexagon, for which the vocabulary has no word: the prompt calls it a circle.
    """
    generator = split_generator("test", seed)
    scene = sample_scene(generator)
    while not _suits(scene, kind):
        scene = sample_scene(generator)
    if kind == "unseen shape":
        scene = replace(scene, sprites=(replace(scene.sprites[0], shape="hexagon"),))
    background = choice(generator, tuple(b for b in BACKGROUND_COLOURS if b != scene.background))
    prompted = recoloured(scene, _colours(generator, scene, kind), background)
    named = tuple(replace(sprite, shape="circle") if kind == "unseen shape" else sprite for sprite in prompted.sprites)
    return Case(
        seed=seed,
        modality=modality,
        scene=prompted,
        image=render(still(scene, 0), modality)[0],
        prompt=caption(replace(prompted, sprites=named), "photo"),
        tracks=Tracks(scene.size, scene.size, (_camera(prompted),) if kind == "pan" else _tracks(prompted)),
        targets=_targets(prompted),
        truth=render(prompted, "photo"),
    )


def _colours(generator: torch.Generator, scene: Scene, kind: Kind) -> tuple[str, ...]:
    """For each sprite a colour that the scene does not have, no two alike."""
    found: list[str] = []
    shown = {sprite.colour for sprite in scene.sprites}
    for sprite in scene.sprites:
        allowed = (
            colour
            for colour in OBJECT_COLOURS
            if colour not in (*found, *shown) and ((sprite.shape, colour) in HELD_OUT) == (kind == "unseen pair")
        )
        found.append(choice(generator, tuple(allowed)))
    return tuple(found)


def _tracks(scene: Scene) -> tuple[Track, ...]:
    return tuple(
        Track(
            name=f"{sprite.colour} {sprite.shape}",
            boxes=tuple(box(sprite, f) for f in range(scene.frames)),
            points=salient_points(sprite, scene.size),
        )
        for sprite in scene.sprites
    )


def _camera(scene: Scene) -> Track:
    """The whole frame as one box, followed by points of the background."""
    size, covered = scene.size, torch.stack(object_masks(scene)).any(0)[0]
    grid = [size * k / 4 for k in (1, 2, 3)]
    points = tuple((x, y) for x in grid for y in grid if not covered[int(y), int(x)])
    return Track("camera", tuple((x, y, x + size, y + size) for x, y in scene.pan), points)


def _targets(scene: Scene) -> tuple[Target, ...]:
    """What `measure` compares with."""
    return tuple(
        Target(sprite.colour, centroids(masks), masks[0], margin=1.5 * sprite.radii[0])
        for sprite, masks in zip(scene.sprites, object_masks(scene), strict=True)
    )


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


def _suits(scene: Scene, kind: Kind) -> bool:
    if len(scene.sprites) != (2 if kind == "two objects" else 1) or any(scene.pan[-1]) != (kind == "pan"):
        return False
    return all(_clear(sprite, scene, kind) for sprite in scene.sprites) and _apart(scene)


def _clear(sprite: Sprite, scene: Scene, kind: Kind) -> bool:
    """The sprite is large enough, keeps its size, stays inside and goes far enough; a pan can be seen."""
    if len(set(sprite.radii)) > 1 or sprite.radii[0] < LEAST_RADIUS * scene.size:
        return False
    if kind == "unseen pair" and sprite.shape not in {shape for shape, _ in HELD_OUT}:
        return False
    boxes = [box(sprite, f) for f in range(scene.frames)]
    inside = all(min(b[:2]) >= 0 and max(b[2:]) <= scene.size for b in boxes)
    if kind == "pan":
        _, period, amplitude = scene.stripes
        longest = max(math.dist(a, b) for a, b in itertools.pairwise(scene.pan))
        fine = amplitude >= LEAST_TEXTURE[0] and period >= LEAST_TEXTURE[1] * scene.size
        seen = scene.checks and fine and longest < 0.9 * PAN_REACH * period
        return inside and seen and math.hypot(*scene.pan[-1]) >= LEAST_PAN * scene.size
    moved = math.dist(sprite.centres[0], sprite.centres[-1])
    return inside and moved >= LEAST_MOTION * scene.size


def _apart(scene: Scene) -> bool:
    """No two sprites touch in any frame."""
    return all(
        math.dist(a.centres[f], b.centres[f]) > a.radii[f] + b.radii[f]
        for a, b in itertools.combinations(scene.sprites, 2)
        for f in range(scene.frames)
    )
