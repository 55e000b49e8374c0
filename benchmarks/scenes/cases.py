"""Cases with ground truth: a condition image of rendered objects, a prompt that asks for another style, and tracks.

Boxes are tight, or loose as a user draws them: larger than the object and off its centre, with scenery and parts of
other objects inside. In a "cut-out", the condition's object is a photograph of another specimen, which no model has
seen.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from anyi2v.micro.world.world import uniform
from anyi2v.tracks import Track, Tracks
from benchmarks.scenes.drawing import Modality, Sprites, caption, painted, render
from benchmarks.scenes.scenes import SIZE, Scene, restyled, sample_scene, split_generator, still

Kind = Literal["tight", "loose", "two objects", "cut-out"]
LEAST_MOTION = 0.25
"""Minimum distance between the first and the last place, in picture sides."""
LEAST_GAP = 0.05
"""Minimum gap between two objects, in picture sides."""
LOOSE = 1.3, 1.9
"""Ratio of a loose box's sides to those of the object's box."""
OFF_CENTRE = 0.3
"""Minimum shift of a loose box, as a share of the shift at which it still contains the object."""


@dataclass(frozen=True)
class Case:
    """One case."""

    seed: int
    modality: Modality
    kind: Kind
    scene: Scene
    """The prompted scene."""
    image: Float[Tensor, "3 h w"]
    prompt: str
    tracks: Tracks
    shapes: Sprites
    """The objects as the condition shows them: those of the world, or cut-outs."""
    masks: Bool[Tensor, "o f h w"]
    """Visible pixels of each object."""
    truth: Float[Tensor, "f 3 h w"]
    """The prompted scene, rendered with `shapes`."""


def make_case(seed: int, modality: Modality, kind: Kind, sprites: Sprites) -> Case:
    """Return case number `seed` of the test split; `sprites` are the condition's, for "cut-out" the cut-outs.

    Objects keep their size and angle, stay inside and apart, and move by at least a quarter of the picture; the camera
    stands still.
    """
    generator = split_generator("test", seed)
    while not _suits(scene := sample_scene(generator), 2 if kind == "two objects" else 1, sprites):
        pass
    prompted = restyled(generator, scene)
    masks = visible(prompted, sprites)
    if kind == "cut-out":
        scene = scene._replace(things=tuple(thing._replace(tint=None) for thing in scene.things))
    boxes = [boxes_of(mask) for mask in masks]
    if kind == "loose":
        boxes = [loose(generator, one) for one in boxes]
    objects = tuple(Track(thing.name, tuple(one)) for thing, one in zip(prompted.things, boxes, strict=True))
    return Case(
        seed=seed,
        modality=modality,
        kind=kind,
        scene=prompted,
        image=render(still(scene, 0), modality, sprites)[0],
        prompt=caption(prompted, "photo"),
        tracks=Tracks(SIZE, SIZE, objects),
        shapes=sprites,
        masks=masks,
        truth=render(prompted, "photo", sprites),
    )


def _suits(scene: Scene, count: int, known: Sprites) -> bool:
    if len(scene.things) != count or scene.room or any(thing.name not in known for thing in scene.things):
        return False
    for thing in scene.things:
        first, last = thing.places[0], thing.places[-1]
        steady = len({(place.scale, place.angle) for place in thing.places}) == 1
        inside = all(
            place.scale / 2 <= min(place.x, place.y) and max(place.x, place.y) <= 1 - place.scale / 2
            for place in thing.places
        )
        if not (steady and inside and math.dist((first.x, first.y), (last.x, last.y)) >= LEAST_MOTION):
            return False
    if count == 1:
        return True
    a, b = (thing.places for thing in scene.things)
    pairs = zip(a, b, strict=True)
    return all(math.dist((p.x, p.y), (q.x, q.y)) > (p.scale + q.scale) / 2 + LEAST_GAP for p, q in pairs)


def visible(scene: Scene, sprites: Sprites) -> Bool[Tensor, "o f h w"]:
    """Return the visible pixels of each object; later ones hide earlier ones."""
    masks: list[Tensor] = []
    for alpha in painted(scene, sprites).alpha[:, :, 0] > 0.5:
        masks = [mask & ~alpha for mask in masks] + [alpha]
    return torch.stack(masks)


def boxes_of(masks: Bool[Tensor, "f h w"]) -> list[tuple[float, float, float, float]]:
    """Return the box (x0, y0, x1, y1) around each mask, in pixels."""
    found = []
    for mask in masks:
        rows, columns = (mask.any(axis).nonzero() for axis in (1, 0))
        corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        found.append(tuple(float(corner) for corner in corners))
    return found


def loose(
    generator: Generator, boxes: list[tuple[float, float, float, float]]
) -> list[tuple[float, float, float, float]]:
    """Return boxes that are larger by one factor and shifted by one vector, cut at the picture's edges."""
    growth = uniform(generator, *LOOSE)
    shares = [uniform(generator, -1, 1) for _ in range(2)]
    while max(map(abs, shares)) < OFF_CENTRE:
        shares = [uniform(generator, -1, 1) for _ in range(2)]
    found = []
    for x0, y0, x1, y1 in boxes:
        half_x, half_y = growth * (x1 - x0) / 2, growth * (y1 - y0) / 2
        x = (x0 + x1) / 2 + shares[0] * (half_x - (x1 - x0) / 2)
        y = (y0 + y1) / 2 + shares[1] * (half_y - (y1 - y0) / 2)
        found.append((x - half_x, y - half_y, x + half_x, y + half_y))
    return found
