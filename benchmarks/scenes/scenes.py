"""Scenes of rendered objects that move over procedural grounds, sampled from a seed: what is where, in no style yet."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from anyi2v.micro.world.world import Points, choice, path, start, uniform
from benchmarks.scenes.grounds import GROUNDS, axes, colour, noise, over_horizon
from benchmarks.scenes.world import OBJECTS, Placement

SIZE, FRAMES = 128, 8
SPLITS = ("train", "validation", "test")

TINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.16, 0.14),
    "green": (0.16, 0.75, 0.22),
    "blue": (0.16, 0.36, 0.95),
    "purple": (0.62, 0.22, 0.80),
}
"""Colours of tinted objects."""
TINTED = 0.4
"""Share of objects that have a tint instead of their own colours."""
SCALES = {1: (0.32, 0.58), 2: (0.28, 0.42), 3: (0.26, 0.34)}
"""Range of the longest side, as a fraction of the picture's side, by the number of objects."""
TILT = 8.0
"""Largest rotation in degrees."""
MOTIONS = ("straight", "curved", "accelerating", "bouncing", "scaling", "turning", "static", "leaving", "pan")
HORIZONTAL = ("grass", "water", "road", "night")
"""Grounds with a horizon, over which the camera only pans sideways."""
ROOM = 52
"""Largest displacement of the camera in pixels."""


def road(generator: Generator, size: int) -> Tensor:
    """Draw a road with a dashed line in front of hills."""
    x, y = axes(size)
    above, below = over_horizon(generator, size, 0.3, 0.45)
    sky = torch.lerp(colour(generator, 0.9, 0.9, 0.88, 0.03), colour(generator, 0.62, 0.76, 0.9), above)
    asphalt = colour(generator, 0.34, 0.34, 0.36) + 0.03 * noise(generator, size, size // 4)
    middle, phase = uniform(generator, 0.62, 0.8), uniform(generator, 0, 1)
    dash = ((y - middle).abs() < 0.022) & (((4 * x + phase) % 1) < 0.55)
    asphalt = torch.where(dash, colour(generator, 0.93, 0.9, 0.8, 0.02), asphalt)
    verge = (below > 0) & (below < 0.16)
    return torch.where(below > 0, torch.where(verge, colour(generator, 0.46, 0.6, 0.3), asphalt), sky)


def wall(generator: Generator, size: int) -> Tensor:
    """Draw a wall of bricks."""
    x, y = axes(size)
    height = uniform(generator, 0.09, 0.13)
    row = (y / height + uniform(generator, 0, 1)).floor()
    along = x / (2 * height) + 0.5 * (row % 2) + uniform(generator, 0, 1)
    joint = ((along % 1) < 0.06) | (((y / height + 0.0) % 1) < 0.1)
    shade = 0.05 * (7.3 * along.floor() + 3.1 * row).sin()
    bricks = colour(generator, 0.66, 0.38, 0.29) + shade
    return torch.where(joint, colour(generator, 0.78, 0.73, 0.66), bricks)


def night(generator: Generator, size: int) -> Tensor:
    """Draw dark hills under stars."""
    above, below = over_horizon(generator, size, 0.55, 0.75)
    sky = torch.lerp(colour(generator, 0.2, 0.2, 0.4), colour(generator, 0.04, 0.05, 0.17, 0.02), above)
    stars = (torch.rand(size // 2, size // 2, generator=generator) > 0.985).float().repeat_interleave(2, 0)
    stars = stars.repeat_interleave(2, 1)[:size, :size]
    stars = torch.nn.functional.pad(stars, (0, size - stars.shape[1], 0, size - stars.shape[0]))
    hills = colour(generator, 0.08, 0.16, 0.16, 0.03) + 0.02 * noise(generator, size, size // 4)
    return torch.where(below > 0, hills, sky + 0.7 * stars)


ALL_GROUNDS: dict[str, Callable[[Generator, int], Tensor]] = GROUNDS | {"road": road, "bricks": wall, "night": night}
"""Grounds by their word in the caption: those of the gates and three more."""
WORDS = (
    *("<pad>", "<bos>", "<eos>", "a", "an", "and", "on", "leaving", "of"),
    *("edge", "depth", "normal", "map", "segmentation", "line", "drawing", "silhouette", "mixed", "picture"),
    *OBJECTS,
    *TINTS,
    *ALL_GROUNDS,
)
"""Vocabulary of the captions."""


class Thing(NamedTuple):
    """One object over time."""

    name: str
    tint: str | None
    places: tuple[Placement, ...]

    @property
    def words(self) -> str:
        """The object in a caption, with its article."""
        text = self.name if self.tint is None else f"{self.tint} {self.name}"
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


class Scene(NamedTuple):
    """Description of a clip, independent of the modality."""

    things: tuple[Thing, ...]
    """Objects; later ones are in front."""
    ground: str
    seed: int
    """Seed of the ground's variation."""
    pan: Points
    """Displacement of the ground per frame, in pixels."""
    room: int
    """Pixels of ground beyond each edge of the picture."""
    light: tuple[float, float]
    """Direction in radians and amplitude of a brightness gradient."""
    flats: tuple[int, ...]
    """Colours of the segmentation, 0 to 7: the ground's, then the objects'."""
    mixture: int
    """Which of the mixtures of modalities a mixed picture shows."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pan)


def sample_scene(generator: Generator, frames: int = FRAMES) -> Scene:
    """Sample a scene with one object, or two in a fifth, or three in a twentieth of cases."""
    motion = choice(generator, MOTIONS)
    count = 1 + int(torch.multinomial(torch.tensor([0.75, 0.2, 0.05]), 1, generator=generator))
    ground = choice(generator, tuple(ALL_GROUNDS))
    shift = None
    if motion == "pan":
        shift = path(generator, "straight", frames, ROOM, SIZE)
        if ground in HORIZONTAL:
            shift = tuple((x, 0.0) for x, _ in shift)
    names = torch.randperm(len(OBJECTS), generator=generator)[:count].tolist()
    things = tuple(_thing(generator, list(OBJECTS)[name], motion, shift, frames, SCALES[count]) for name in names)
    return Scene(
        things=things,
        ground=ground,
        seed=int(torch.randint(2**31, (), generator=generator)),
        pan=shift or ((0.0, 0.0),) * frames,
        room=ROOM if shift else 0,
        light=(uniform(generator, 0, 2 * math.pi), uniform(generator, 0, 0.25)),
        flats=tuple(torch.randperm(8, generator=generator)[: count + 1].tolist()),
        mixture=int(torch.randint(2**31, (), generator=generator)),
    )


def _thing(
    generator: Generator, name: str, motion: str, shift: Points | None, frames: int, scales: tuple[float, float]
) -> Thing:
    """Sample an object on a path of kind `motion`, or on `shift`; inside the picture except for "leaving"."""
    scale = uniform(generator, *scales)
    growth = uniform(generator, 0.65, 1.5) if motion == "scaling" else 1.0
    times = [f / max(frames - 1, 1) for f in range(frames)]
    sizes = [min(scale * growth**t, 0.75) for t in times]
    angle, turned = (uniform(generator, -TILT, TILT) for _ in range(2))
    angles = [angle + (turned - angle) * t if motion == "turning" else angle for t in times]
    kind = motion if motion in ("curved", "accelerating", "static", "leaving") else "straight"
    offsets = shift or path(generator, kind, frames, 0.55 * SIZE, SIZE)
    if motion == "bouncing":
        jumps, height = uniform(generator, 1, 2), uniform(generator, 0.08, 0.18) * SIZE
        heights = [height * abs(math.sin(math.pi * jumps * t)) for t in times]
        offsets = tuple((x, 0.2 * y - up) for (x, y), up in zip(offsets, heights, strict=True))
    margin = SIZE * max(sizes) / 2
    left, top = start(generator, offsets, margin, SIZE, leaving=motion == "leaving")
    centres = [((left + x) / SIZE, (top + y) / SIZE) for x, y in offsets]
    places = tuple(Placement(*centre, size, turn) for centre, size, turn in zip(centres, sizes, angles, strict=True))
    tint = choice(generator, tuple(TINTS)) if uniform(generator, 0, 1) < TINTED else None
    return Thing(name, tint, places)


def still(scene: Scene, frame: int) -> Scene:
    """Return one frame of a scene as a scene of its own."""
    things = tuple(thing._replace(places=thing.places[frame : frame + 1]) for thing in scene.things)
    return scene._replace(things=things, pan=scene.pan[frame : frame + 1])


def restyled(generator: Generator, scene: Scene) -> Scene:
    """Return the same objects at the same places, with other tints and on another ground."""
    things = []
    for thing in scene.things:
        tints = tuple(tint for tint in (None, *TINTS) if tint != thing.tint)
        things.append(thing._replace(tint=choice(generator, tints)))
    grounds = tuple(ground for ground in ALL_GROUNDS if ground != scene.ground)
    seed = int(torch.randint(2**31, (), generator=generator))
    return scene._replace(things=tuple(things), ground=choice(generator, grounds), seed=seed)


def split_generator(split: str, index: int) -> Generator:
    """Return the generator of sample `index` of a split; no two splits share a seed (for indices below 2^30)."""
    return Generator().manual_seed((index * len(SPLITS) + SPLITS.index(split)) * 2654435761 % 2**32)
