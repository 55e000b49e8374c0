"""Scenes as photos, edge maps, line drawings, depth, normals, segmentations, silhouettes or mixtures, and captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from anyi2v.errors import InputError
from benchmarks.scenes.grounds import axes
from benchmarks.scenes.scenes import ALL_GROUNDS, SIZE, TINTS, Scene
from benchmarks.scenes.world import OBJECTS, load_sprite, load_sprites, paint

Modality = Literal["photo", "edge", "line", "depth", "normal", "segmentation", "silhouette", "mixed"]
MODALITIES: tuple[Modality, ...] = ("photo", "edge", "line", "depth", "normal", "segmentation", "silhouette", "mixed")
MIXTURES: tuple[tuple[Modality, Modality], ...] = (
    ("edge", "depth"),
    ("edge", "photo"),
    ("depth", "photo"),
    ("photo", "depth"),
    ("silhouette", "photo"),
)
"""Modalities of objects and ground in a mixed picture."""
ARTICLES: dict[Modality, str] = {
    "edge": "an edge map of",
    "line": "a line drawing of",
    "depth": "a depth map of",
    "normal": "a normal map of",
    "segmentation": "a segmentation map of",
    "silhouette": "a silhouette of",
    "mixed": "a mixed picture of",
}
EDGE = 0.22
"""Smallest gradient of an edge, of brightness or alpha per pixel; the texture of grass is weaker."""
PAPER, INK = 0.96, 0.12
"""Brightness of a line drawing's background and lines."""
STEEP = 5.0
"""Slope of the normals, relative to that of the inflated height."""

CUT_OUTS = {
    "rooster": "animals/birds/rooster.png",
    "elephant": "animals/mammals/elephant.png",
    "giraffe": "animals/mammals/giraffe.png",
    "pineapple": "food/fruit/pineapple.png",
    "mushroom": "food/vegetables/mushroom.png",
    "guitar": "hobbies/music/string/guitar_classical.png",
}
"""Photographs among the stamps of Debian's package tuxpaint-stamps-default (/usr/share/tuxpaint/stamps), by object."""

Sprites = Mapping[str, Float[Tensor, "5 s s"]]
"""By name: premultiplied colours, alpha and premultiplied height."""


def sprites(package: Path, names: Sequence[str] = tuple(OBJECTS)) -> Sprites:
    """Load the objects and compute their heights, in [0, 1], of the inflated alpha; raises InputError for missing
    files."""
    found = load_sprites(package, names)
    return {name: torch.cat([one, inflated(one[3])]) for name, one in zip(names, found, strict=True)}


def cut_outs(folder: Path) -> Sprites:
    """Load photographic cut-outs of some of the objects, which no model is trained on; raises InputError for missing
    files."""
    found = {}
    for name, file in CUT_OUTS.items():
        if not (folder / file).exists():
            raise InputError(f"{folder / file} is missing; give the stamps of Debian's package tuxpaint-stamps-default")
        sprite = load_sprite(folder / file)
        found[name] = torch.cat([sprite, inflated(sprite[3])])
    return found


def inflated(alpha: Float[Tensor, "s s"]) -> Float[Tensor, "1 s s"]:
    """Return a height in [0, 1] that rises from the outline towards the middle of thick parts."""
    side, layers = alpha.shape[-1], []
    for share in (0.04, 0.08, 0.16, 0.3):
        width = 2 * max(1, round(share * side / 2)) + 1
        soft = alpha[None, None]
        for _ in range(2):
            soft = F.avg_pool2d(soft, width, stride=1, padding=width // 2)
        layers.append((2 * soft[0] - 1).clamp(0, 1))
    height = torch.stack(layers).mean(0).sqrt() * alpha
    return height / height.max().clamp(min=1e-6)


class Painted(NamedTuple):
    """The objects of a scene, from back to front."""

    colour: Float[Tensor, "o f 3 h w"]
    """Premultiplied by `alpha`."""
    alpha: Float[Tensor, "o f 1 h w"]
    height: Float[Tensor, "o f 1 h w"]
    """Premultiplied by `alpha`."""


def painted(scene: Scene, known: Sprites) -> Painted:
    """Draw each object alone, in its tint."""
    clips = []
    for thing in scene.things:
        sprite = tinted(known[thing.name], thing.tint)
        clips.append(torch.stack([paint(sprite, place, SIZE) for place in thing.places]))
    colour, alpha, height = torch.stack(clips).split((3, 1, 1), dim=2)
    return Painted(colour, alpha, height)


def tinted(sprite: Float[Tensor, "5 s s"], tint: str | None) -> Float[Tensor, "5 s s"]:
    """Replace most of the colour by the tint, keeping the brightness."""
    if tint is None:
        return sprite
    weights = torch.tensor([0.3, 0.59, 0.11])[:, None, None]
    grey = (weights * sprite[:3]).sum(0, keepdim=True)
    target = torch.tensor(TINTS[tint])[:, None, None]
    coloured = (grey * 1.5).clamp(max=1) * target + 0.25 * (grey - 0.6 * sprite[3:4]).clamp(min=0)
    return torch.cat([torch.lerp(sprite[:3], coloured, 0.85).clamp(0, 1), sprite[3:]])


def ground(scene: Scene) -> Float[Tensor, "f 3 h w"]:
    """Draw the ground, which moves with the camera, under a static light."""
    room = scene.room
    picture = ALL_GROUNDS[scene.ground](Generator().manual_seed(scene.seed), SIZE + 2 * room).clamp(0, 1)
    frames = torch.stack([window(picture, room - x, room - y) for x, y in scene.pan]) if room else picture[None]
    across, down = axes(SIZE)
    direction, amplitude = scene.light
    angle = torch.tensor(direction)
    light = 1 + amplitude * ((across - 0.5) * angle.cos() + (down - 0.5) * angle.sin())
    return (frames * light).clamp(0, 1).expand(scene.frames, 3, SIZE, SIZE)


def window(picture: Float[Tensor, "3 s s"], left: float, top: float) -> Float[Tensor, "3 h w"]:
    """Cut a window of `SIZE` pixels whose corner may lie between pixels."""
    column, row = min(int(left), picture.shape[2] - SIZE - 1), min(int(top), picture.shape[1] - SIZE - 1)
    cut = picture[:, row : row + SIZE + 1, column : column + SIZE + 1]
    cut = torch.lerp(cut[:, :, :-1], cut[:, :, 1:], left - column)
    return torch.lerp(cut[:, :-1], cut[:, 1:], top - row)


def over(back: Float[Tensor, "f c h w"], front: Float[Tensor, "f c h w"], alpha: Tensor) -> Float[Tensor, "f c h w"]:
    """Draw a premultiplied layer over a picture."""
    return back * (1 - alpha) + front


def edges(grey: Float[Tensor, "f h w"], least: float) -> Float[Tensor, "f h w"]:
    """Return lines two pixels wide, 1 where the gradient is at least `least` and a local maximum across the edge, else
    0.

    As in Canny's detector, without hysteresis: Sobel's gradients, compared with the neighbours along the gradient.
    """
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    across, down = F.conv2d(
        F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None]
    ).unbind(1)
    size = torch.hypot(across, down)
    sector = (torch.atan2(down, across) / (torch.pi / 4)).round().long() % 4
    around = F.pad(size[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    largest = torch.zeros_like(size, dtype=torch.bool)
    height, width = size.shape[1:]
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead, behind = (around[:, 1 + s * y : 1 + s * y + height, 1 + s * x : 1 + s * x + width] for s in (1, -1))
        largest |= (sector == number) & (size >= ahead) & (size > behind)
    thin = (largest & (size >= least)).float()
    return F.max_pool2d(F.pad(thin, (0, 1, 0, 1)), 2, stride=1)


def outlines(scene: Scene, things: Painted) -> Float[Tensor, "f 1 h w"]:
    """Return the outlines and inner edges of the objects, none of the ground."""
    flat = torch.full((scene.frames, 3, SIZE, SIZE), 0.5)
    lines = torch.zeros(scene.frames, SIZE, SIZE)
    for colour, alpha in zip(things.colour, things.alpha, strict=True):
        flat = over(flat, colour, alpha)
        inside = alpha[:, 0] > 0.5
        lines = torch.maximum(lines * ~inside, edges(alpha[:, 0], EDGE))
    inner = edges(flat.mean(1), EDGE) * (things.alpha.amax(0)[:, 0] > 0.5)
    return torch.maximum(lines, inner)[:, None]


def render(scene: Scene, modality: Modality, known: Sprites) -> Float[Tensor, "f 3 h w"]:
    """Render all frames in [0, 1]."""
    if modality == "mixed":
        front, back = MIXTURES[scene.mixture % len(MIXTURES)]
        return objects(scene, front, background(scene, back), painted(scene, known))
    return objects(scene, modality, background(scene, modality), painted(scene, known))


def background(scene: Scene, modality: Modality) -> Float[Tensor, "f 3 h w"]:
    """Render the ground."""
    match modality:
        case "photo":
            return ground(scene)
        case "edge":
            picture = edges(ground(scene).mean(1), EDGE)[:, None]
        case "depth":
            picture = torch.linspace(0.05, 0.4, SIZE)[:, None]  # a floor that gets nearer downwards
        case "normal":
            picture = torch.tensor([0.5, 0.5, 1.0])[:, None, None]
        case "segmentation":
            picture = flat(scene.flats[0])[:, None, None]
        case _:
            picture = torch.tensor(PAPER if modality == "line" else 1.0)
    return picture.expand(scene.frames, 3, SIZE, SIZE)


def objects(
    scene: Scene, modality: Modality, back: Float[Tensor, "f 3 h w"], things: Painted
) -> Float[Tensor, "f 3 h w"]:
    """Render the objects, or their lines, over a ground."""
    if modality in ("edge", "line"):
        if modality == "edge":
            back = back * (things.alpha.amax(0) < 0.5)
        lines = outlines(scene, things)
        return back * (1 - lines) + (1.0 if modality == "edge" else INK) * lines
    picture = back
    count = len(scene.things)
    for i, (colour, alpha, height) in enumerate(zip(*things, strict=True)):
        match modality:
            case "depth":
                front = ((0.85 - 0.15 * (count - 1 - i)) * alpha - 0.25 * (alpha - height)).expand_as(colour)
            case "normal":
                front = alpha * normals(height)
            case "segmentation":
                front = alpha * flat(scene.flats[i + 1])[:, None, None]
            case "silhouette":
                front = torch.zeros_like(colour)
            case _:
                front = colour
        picture = over(picture, front, alpha)
    return picture.clamp(0, 1)


def flat(number: int) -> Float[Tensor, "3"]:
    """Return a corner of the colour cube."""
    return torch.tensor([float(number & 1), float(number >> 1 & 1), float(number >> 2 & 1)])


def normals(height: Float[Tensor, "f 1 h w"]) -> Float[Tensor, "f 3 h w"]:
    """Return the normals of a height, (x, y, z) as colours with 0 at 0.5; x to the right, y up, z to the viewer."""
    padded = F.pad(height, (1, 1, 1, 1), mode="replicate")
    slope_x = STEEP * (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2])
    slope_y = STEEP * (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1])
    normal = F.normalize(torch.cat([-slope_x, slope_y, torch.ones_like(height)], dim=1), dim=1)
    return 0.5 + 0.5 * normal


def caption(scene: Scene, modality: Modality) -> str:
    """Return the caption of a picture or clip, in the words of `WORDS`.

    Objects are "leaving" if the centre of one is outside at any time.
    """
    leaving = any(not 0 <= c <= 1 for thing in scene.things for place in thing.places for c in (place.x, place.y))
    if modality == "photo":
        words = " and ".join(thing.words for thing in scene.things)
        return f"{words} {'leaving' if leaving else 'on'} {scene.ground}"
    words = " and ".join(thing._replace(tint=None).words for thing in scene.things)
    return f"{ARTICLES[modality]} {words}{' leaving' if leaving else ''}"
