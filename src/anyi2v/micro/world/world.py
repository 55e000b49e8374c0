"""The synthetic world of coloured shapes that move over textured backgrounds, sampled from a seed.

Positions and radii are in pixels, (x, y) with y downwards; pixel centres are at half-integers. Everything is sampled
from a `torch.Generator`; the seeds of the splits are disjoint.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SIZE, FRAMES = 64, 8

OBJECT_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.94, 0.14, 0.16),
    "green": (0.16, 0.84, 0.24),
    "blue": (0.20, 0.36, 0.96),
    "yellow": (0.97, 0.94, 0.12),
    "magenta": (0.97, 0.30, 0.92),
    "cyan": (0.14, 0.90, 0.95),
    "white": (0.97, 0.97, 0.96),
    "orange": (0.99, 0.57, 0.10),
}
BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.04, 0.04, 0.05),
    "gray": (0.48, 0.48, 0.47),
    "navy": (0.03, 0.06, 0.33),
    "maroon": (0.38, 0.03, 0.09),
    "olive": (0.37, 0.38, 0.06),
    "teal": (0.05, 0.42, 0.39),
    "brown": (0.38, 0.22, 0.06),
    "purple": (0.33, 0.12, 0.44),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
HELD_OUT = frozenset({("star", "blue"), ("ring", "green"), ("cross", "orange"), ("triangle", "magenta")})
"""Pairs of shape and colour that never occur in training."""
MOTIONS = ("straight", "curved", "accelerating", "scaling", "static", "leaving", "pan")
Modality = Literal["photo", "edge", "depth", "segmentation", "sketch", "silhouette", "mixed"]
MODALITIES: tuple[Modality, ...] = ("photo", "edge", "depth", "segmentation", "sketch", "silhouette", "mixed")
LONGEST_STEP = 4.5 / 64
"""Maximum movement of an object or the camera between two of 8 frames, in frame widths."""
MIXTURES: tuple[tuple[Modality, Modality], ...] = (
    ("edge", "depth"),
    ("edge", "photo"),
    ("depth", "photo"),
    ("photo", "depth"),
)
"""Modalities of objects and background in a mixed picture, chosen such that the objects stand out."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

T = TypeVar("T")
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Sprite:
    """One object over time."""

    shape: str
    colour: str
    centres: Points
    """Centre per frame."""
    radii: tuple[float, ...]
    """Radius per frame of the circle around the shape."""
    angle: float = 0.0
    """Rotation in radians."""


@dataclass(frozen=True)
class Scene:
    """Description of a clip, independent of the modality."""

    sprites: tuple[Sprite, ...]
    """Objects; later ones are in front."""
    background: str
    pan: Points
    """Displacement of the background per frame."""
    stripes: tuple[float, float, float]
    """Angle in radians, period in pixels, amplitude."""
    checks: bool
    """Whether the stripes cross in two directions."""
    gradient: tuple[float, float]
    """Angle in radians, amplitude."""
    flat_colours: tuple[tuple[float, float, float], ...]
    """Colours of the segmentation map, background first, then the sprites."""
    mixture: tuple[Modality, Modality]
    """Modalities of objects and background in the mixed picture."""
    size: int = SIZE

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pan)


def split_generator(split: Split, index: int) -> torch.Generator:
    """Return the generator of sample `index` of a split; no two splits share a seed (for indices below 2^30)."""
    # an odd factor permutes the 32-bit seeds: neighbours are far apart, and none is used twice
    return torch.Generator().manual_seed((index * len(SPLITS) + SPLITS.index(split)) * 2654435761 % 2**32)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Sample a number in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def choice(generator: torch.Generator, options: tuple[T, ...]) -> T:
    """Sample one of the options with equal probability."""
    return options[int(torch.randint(len(options), (), generator=generator).item())]


def sample_scene(
    generator: torch.Generator, *, held_out: bool = False, frames: int = FRAMES, size: int = SIZE
) -> Scene:
    """Sample a random scene with one object, or with two in a fifth of cases.

    Args:
        generator: source of randomness.
        held_out: also allow the pairs of shape and colour that never occur in training.
        frames: number of frames of the clip.
        size: side of the square frame in pixels.
    """
    motion = choice(generator, MOTIONS)
    count = 2 if uniform(generator, 0, 1) < 0.2 else 1
    # in a camera pan everything moves alike
    shift = path(generator, motion, frames, 0.5 * size, size) if motion == "pan" else None
    sprites: list[Sprite] = []
    while len(sprites) < count:
        sprite = sample_sprite(generator, motion, shift, frames, size)
        taken = {s.colour for s in sprites}
        if sprite.colour not in taken and (held_out or (sprite.shape, sprite.colour) not in HELD_OUT):
            sprites.append(sprite)
    flats = torch.randperm(8, generator=generator)[: count + 1].tolist()
    return Scene(
        sprites=tuple(sprites),
        background=choice(generator, tuple(BACKGROUND_COLOURS)),
        pan=shift or ((0.0, 0.0),) * frames,
        stripes=(
            uniform(generator, 0, math.pi),
            size * uniform(generator, 0.08, 0.2),
            uniform(generator, 0, 0.22),
        ),
        checks=uniform(generator, 0, 1) < 0.3,
        gradient=(uniform(generator, 0, 2 * math.pi), uniform(generator, 0, 0.3)),
        flat_colours=tuple((float(f & 1), float(f >> 1 & 1), float(f >> 2 & 1)) for f in flats),
        mixture=choice(generator, MIXTURES),
        size=size,
    )


def sample_sprite(generator: torch.Generator, motion: str, offsets: Points | None, frames: int, size: int) -> Sprite:
    """Sample an object on a path of kind `motion`, or on `offsets`; inside the frame except for "leaving"."""
    radius = size * uniform(generator, 0.125, 0.2)
    growth = uniform(generator, 0.6, 1.6) if motion == "scaling" else 1.0
    radii = tuple(radius * growth ** (f / max(frames - 1, 1)) for f in range(frames))
    margin = max(radii)
    offsets = offsets or path(generator, motion, frames, 0.55 * size, size)
    place = start(generator, offsets, margin, size, leaving=motion == "leaving")
    return Sprite(
        shape=choice(generator, SHAPES),
        colour=choice(generator, tuple(OBJECT_COLOURS)),
        centres=tuple((place[0] + x, place[1] + y) for x, y in offsets),
        radii=radii,
        angle=uniform(generator, -0.4, 0.4),
    )


def start(
    generator: torch.Generator, offsets: Points, margin: float, size: int, *, leaving: bool
) -> tuple[float, float]:
    """Sample the start of a path that keeps a margin to the frame's edges, or that ends beyond one of them.

    A path that is too long for the frame passes its edges a little.
    """
    out = max((0, 1), key=lambda axis: abs(offsets[-1][axis])) if leaving else None
    place = []
    for axis in (0, 1):
        values = [offset[axis] for offset in offsets]
        low, high = margin - min(values), size - margin - max(values)
        if axis == out:
            low, high = (size - values[-1], size - margin) if values[-1] > 0 else (margin, -values[-1])
        place.append(uniform(generator, min(low, high), max(low, high)))
    return place[0], place[1]


def path(generator: torch.Generator, motion: str, frames: int, reach: float, size: int) -> Points:
    """Sample offsets from the first frame's position."""
    angle = uniform(generator, 0, 2 * math.pi)
    length = 0.0 if motion == "static" else uniform(generator, 0.1, 1.0) * reach
    if motion == "leaving":
        length = reach
    bend = uniform(generator, -0.35, 0.35) * length if motion == "curved" else 0.0
    power = uniform(generator, 1.5, 2.5) if motion == "accelerating" else 1.0
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    points = []
    for f in range(frames):
        t = (f / max(frames - 1, 1)) ** power
        side = bend * math.sin(math.pi * t)
        points.append(tuple(length * t * along[i] + side * across[i] for i in (0, 1)))
    longest = max((math.dist(a, b) for a, b in itertools.pairwise(points)), default=0.0)
    limit = LONGEST_STEP * size * (FRAMES - 1) / max(frames - 1, 1)
    shrink = min(1.0, limit / longest) if longest else 1.0
    return tuple((shrink * x, shrink * y) for x, y in points)


def distance(sprite: Sprite, size: int) -> Float[Tensor, "f h w"]:
    """Compute the signed distance in pixels to the sprite's outline, negative inside (accurate near the outline)."""
    centres = torch.tensor(sprite.centres)
    r = torch.tensor(sprite.radii)[:, None, None]
    grid = torch.arange(size) + 0.5
    x = grid[None, None, :] - centres[:, 0, None, None]
    y = grid[None, :, None] - centres[:, 1, None, None]
    c, s = math.cos(sprite.angle), math.sin(sprite.angle)
    x, y = c * x + s * y, c * y - s * x
    match sprite.shape:
        case "circle":
            return torch.hypot(x, y) - 0.9 * r
        case "square":
            return torch.maximum(x.abs(), y.abs()) - 0.7 * r
        case "triangle":
            return torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - 0.5 * r
        case "star":
            # a ten-cornered polygon: fold into one of ten sectors, then the line through its two corners
            sector = math.pi / 5
            theta = (torch.atan2(x, -y).abs() % (2 * sector) - sector).abs()
            length = torch.hypot(x, y)
            u, v = length * torch.cos(sector - theta), length * torch.sin(sector - theta)
            inner = (0.45 * math.cos(sector), 0.45 * math.sin(sector))
            edge = (inner[0] - 1.0, inner[1])
            norm = math.hypot(*edge)
            return ((u - r) * -edge[1] + v * edge[0]) / -norm
        case "ring":
            return (torch.hypot(x, y) - 0.72 * r).abs() - 0.26 * r
        case "cross":
            x, y = x.abs(), y.abs()
            bar = torch.maximum(x - 0.95 * r, y - 0.33 * r)
            return torch.minimum(bar, torch.maximum(y - 0.95 * r, x - 0.33 * r))
        case "hexagon":
            return torch.maximum(x.abs() * 0.866 + y.abs() * 0.5, y.abs()) - 0.8 * r
    raise ValueError(f"unknown shape {sprite.shape!r}; the shapes are {', '.join(SHAPES)} and hexagon")


def object_masks(scene: Scene) -> list[Bool[Tensor, "f h w"]]:
    """Return the visible pixels of each sprite; later sprites hide earlier ones."""
    masks: list[Tensor] = []
    for sprite in scene.sprites:
        inside = distance(sprite, scene.size) < 0
        masks = [mask & ~inside for mask in masks] + [inside]
    return masks


def box(sprite: Sprite, frame: int) -> tuple[float, float, float, float]:
    """Return the box (x0, y0, x1, y1) around the sprite in pixels, which may extend beyond the frame."""
    (x, y), r = sprite.centres[frame], sprite.radii[frame]
    return x - r, y - r, x + r, y + r


def recoloured(scene: Scene, colours: tuple[str, ...], background: str) -> Scene:
    """Return the same scene in other colours."""
    sprites = tuple(replace(s, colour=c) for s, c in zip(scene.sprites, colours, strict=True))
    return replace(scene, sprites=sprites, background=background)


def still(scene: Scene, frame: int) -> Scene:
    """Return one frame of a scene as a separate scene."""
    sprites = tuple(
        replace(s, centres=s.centres[frame : frame + 1], radii=s.radii[frame : frame + 1]) for s in scene.sprites
    )
    return replace(scene, sprites=sprites, pan=scene.pan[frame : frame + 1])


def other_colours(generator: torch.Generator, scene: Scene, unseen_pair: bool) -> tuple[str, ...]:
    """Sample a different colour for each sprite, none of which occurs in the scene."""
    found: list[str] = []
    shown = {sprite.colour for sprite in scene.sprites}
    for sprite in scene.sprites:
        allowed = (
            colour
            for colour in OBJECT_COLOURS
            if colour not in (*found, *shown) and ((sprite.shape, colour) in HELD_OUT) == unseen_pair
        )
        found.append(choice(generator, tuple(allowed)))
    return tuple(found)
