"""A benchmark case with ground truth: condition image, prompt, tracks and the expected video."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.images.raster import Style
from anyi2v.micro.benchmark.measure import (
    SMALLEST,
    Scores,
    Target,
    bounding_areas,
    centroids,
    displacements,
    find_object,
    identities_kept,
    measure,
)
from anyi2v.micro.world.modalities import caption, render
from anyi2v.micro.world.world import (
    BACKGROUND_COLOURS,
    Modality,
    Scene,
    Sprite,
    box,
    choice,
    distance,
    object_masks,
    other_colours,
    recoloured,
    sample_scene,
    still,
)
from anyi2v.tracks import Track, Tracks

LEAST_MOTION = 16 / 64
"""Minimum distance between the first and the last position, in frame widths."""
LEAST_RADIUS = 9 / 64
"""Minimum radius in frame widths; the outline of a smaller object says little about its shape."""
LEAST_SEEN = 2 * SMALLEST
"""Minimum visible area of a leaving object, as a share of the frame; its outline has mixed colours."""
LEAST_GAP = 4 / 64
"""Minimum gap between two objects in frame widths; merged objects have no positions of their own."""
LEAST_TEXTURE = 0.16
"""Minimum amplitude of a background with a clearly visible texture."""
DARKEST = "black"
"""The background colour on which no texture is visible."""
PAN_REACH = 0.35
"""Maximum unambiguous step in periods of the checks, which repeat after 0.71 periods along their diagonals."""

Condition = Modality | Style
"""Kind of a condition image: a modality of the world, or a rendering style of a mesh."""


@dataclass(frozen=True)
class Case:
    """One benchmark case."""

    seed: int
    modality: Condition
    scene: Scene
    """The prompted scene."""
    image: Float[Tensor, "3 h w"]
    prompt: str
    tracks: Tracks
    targets: tuple[Target, ...]
    """One per object of the scene; objects move along with a pan or zoom."""
    truth: Float[Tensor, "f 3 h w"]
    """Ground truth, the prompted scene moving along the tracks as rendered by the world."""

    def scores(self, video: Float[Tensor, "f 3 h w"]) -> list[Scores]:
        """Score a video generated from this case, one entry per object."""
        return measure(video, self.targets, self.scene.background)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The words of the prompt for each object, its colour and name, in the order of the tracks."""
        words = self.prompt.split()
        return tuple(" ".join(words[words.index(sprite.colour) :][:2]) for sprite in self.scene.sprites)

    def with_true_masks(self) -> Tracks:
        """Return the tracks with the exact mask of each object in the condition image."""
        pairs = zip(self.tracks.objects, self.targets, strict=True)
        objects = tuple(replace(track, mask=target.mask.numpy()) for track, target in pairs)
        return replace(self.tracks, objects=objects)

    def pan_error(self, video: Float[Tensor, "f 3 h w"]) -> float:
        """Return the relative error of the background's displacement; NaN without a pan."""
        asked = torch.tensor(self.scene.pan[-1])
        if not asked.any():
            return math.nan
        away = torch.stack([find_object(video, target.colour) for target in self.targets]).any(0)
        away = F.max_pool2d(away[:, None].float(), 5, stride=1, padding=2)[:, 0] > 0
        way = displacements(video, away, reach=PAN_REACH * self.scene.stripes[1]).sum(0)
        return ((way - asked).norm() / asked.norm()).item()

    def identities_kept(self, video: Float[Tensor, "f 3 h w"]) -> list[float]:
        """Return, per object, the share of later frames in which it has not become another object."""
        return identities_kept(video, self.targets)

    def area_errors(self, video: Float[Tensor, "f 3 h w"]) -> list[float]:
        """Return, per object, the relative error of its box's area, averaged over the frames; 1 if it is missing."""
        errors = []
        for target in self.targets:
            found, wanted = (bounding_areas(find_object(clip, target.colour)) for clip in (video, self.truth))
            errors.append(((found - wanted).abs() / wanted)[wanted > 0].mean().item())
        return errors


def drawn_case(
    seed: int, modality: Modality, generator: torch.Generator, scene: Scene, *, unseen_pair: bool = False
) -> Case:
    """Build the case in which the objects of a scene, in other colours than the condition's, move as in the scene."""
    background = choice(generator, tuple(b for b in BACKGROUND_COLOURS if b != scene.background))
    prompted = recoloured(scene, other_colours(generator, scene, unseen_pair), background)
    return Case(
        seed=seed,
        modality=modality,
        scene=prompted,
        image=render(still(scene, 0), modality)[0],
        prompt=caption(prompted, "photo"),
        tracks=Tracks(scene.size, scene.size, object_tracks(prompted)),
        targets=targets(prompted, torch.stack(object_masks(prompted))),
        truth=render(prompted, "photo"),
    )


def on_texture(seed: int, modality: Modality, generator: torch.Generator, scene: Scene) -> Case:
    """Build a `drawn_case` whose prompted background colour shows the texture."""
    while (case := drawn_case(seed, modality, generator, scene)).scene.background == DARKEST:
        pass
    return case


def accepted(generator: torch.Generator, suits: Callable[[Scene], bool]) -> Scene:
    """Sample scenes until one is suitable."""
    while not suits(scene := sample_scene(generator)):
        pass
    return scene


def object_tracks(scene: Scene) -> tuple[Track, ...]:
    """Return one track per sprite."""
    return tuple(
        Track(
            name=f"{sprite.colour} {sprite.shape}",
            boxes=tuple(box(sprite, f) for f in range(scene.frames)),
            points=salient_points(sprite, scene.size),
        )
        for sprite in scene.sprites
    )


def targets(scene: Scene, masks: Bool[Tensor, "o f h w"]) -> tuple[Target, ...]:
    """Return the targets for `measure`; `masks` are the visible pixels of each sprite."""
    seen = masks.flatten(2).float().mean(2) >= LEAST_SEEN
    return tuple(
        Target(sprite.colour, centroids(mask & there[:, None, None]), mask[0], margin=1.5 * max(sprite.radii))
        for sprite, mask, there in zip(scene.sprites, masks, seen, strict=True)
    )


def salient_points(sprite: Sprite, size: int) -> tuple[tuple[float, float], ...]:
    """Return up to five points on the sprite in frame 1: its centre and four half way out, if they are on it."""
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


def moves(scene: Scene) -> bool:
    """Return whether all sprites are large, of constant size, stay inside the frame, move far enough and stay apart."""
    return (
        all(
            len(set(sprite.radii)) == 1
            and large(sprite, scene.size)
            and inside(sprite, (0, 0, scene.size, scene.size))
            and math.dist(sprite.centres[0], sprite.centres[-1]) >= LEAST_MOTION * scene.size
            for sprite in scene.sprites
        )
        and not any(scene.pan[-1])
        and apart(scene)
    )


def large(sprite: Sprite, size: int) -> bool:
    """Return whether a sprite is large enough in the first frame for its shape to be recognisable."""
    return sprite.radii[0] >= LEAST_RADIUS * size


def inside(sprite: Sprite, region: tuple[float, float, float, float]) -> bool:
    """Return whether a sprite's boxes never leave the region (x0, y0, x1, y1)."""
    boxes = [box(sprite, f) for f in range(len(sprite.centres))]
    return all(b[0] >= region[0] and b[1] >= region[1] and b[2] <= region[2] and b[3] <= region[3] for b in boxes)


def apart(scene: Scene) -> bool:
    """Return whether no two sprites come near each other in any frame."""
    return all(
        math.dist(a.centres[f], b.centres[f]) > a.radii[f] + b.radii[f] + LEAST_GAP * scene.size
        for a, b in itertools.combinations(scene.sprites, 2)
        for f in range(scene.frames)
    )
