"""Drawing a scene as a photo, edge map, depth map, segmentation, sketch, silhouette or a mixture; captions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.micro.world.world import BACKGROUND_COLOURS, OBJECT_COLOURS, SHAPES, Modality, Scene, distance

WORDS = (
    *("<pad>", "<bos>", "<eos>", "a", "an", "of", "on", "and", "leaving", "background"),
    *("edge", "depth", "map", "segmentation", "sketch", "silhouette", "mixed", "picture"),
    *SHAPES,
    *OBJECT_COLOURS,
    *BACKGROUND_COLOURS,
)
"""The vocabulary of the captions."""

PAPER, INK = 0.96, 0.16
"""Brightness of a sketch."""

_ARTICLES = {
    "edge": "an edge map of",
    "depth": "a depth map of",
    "segmentation": "a segmentation map of",
    "mixed": "a mixed picture of",
}


def caption(scene: Scene, modality: Modality) -> str:
    """What a picture or clip of the scene shows, in the words of `WORDS`.

    Objects are "leaving" where one's centre lies outside in some frame; a prompt without the word asks for clips in
    which they stay.
    """
    leaving = any(not 0 <= c <= scene.size for s in scene.sprites for centre in s.centres for c in centre)
    if modality == "photo":
        things = " and ".join(f"a {s.colour} {s.shape}" for s in scene.sprites)
        return f"{things} {'leaving' if leaving else 'on'} a {scene.background} background"
    things = " and ".join(f"a {s.shape}" for s in scene.sprites)
    return f"{_ARTICLES.get(modality, f'a {modality} of')} {things}{' leaving' if leaving else ''}"


def render(scene: Scene, modality: Modality) -> Float[Tensor, "f 3 h w"]:
    """All frames in [0, 1]; outlines are antialiased over one pixel."""
    objects, background = scene.mixture if modality == "mixed" else (modality, modality)
    return _objects(scene, objects, _background(scene, background))


def _background(scene: Scene, modality: Modality) -> Float[Tensor, "f 3 h w"]:
    """The picture without its objects."""
    match modality:
        case "photo":
            return _textured(scene)
        case "depth":
            # a floor that comes nearer downwards
            frame = torch.linspace(0.05, 0.35, scene.size)[:, None]
        case "segmentation":
            frame = torch.tensor(scene.flat_colours[0])[:, None, None]
        case _:
            frame = torch.tensor({"edge": 0.0, "sketch": PAPER, "silhouette": 1.0}[modality])
    return frame.expand(scene.frames, 3, scene.size, scene.size)


def _objects(scene: Scene, modality: Modality, frame: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 h w"]:
    """Draws the objects, or their outlines, over a background."""
    distances = [distance(sprite, scene.size) for sprite in scene.sprites]
    match modality:
        case "edge" | "sketch":
            lines, ink = _lines(distances), {"edge": 1.0, "sketch": INK}[modality]
            return frame * (1 - lines) + ink * lines
        case "photo":
            colours = [OBJECT_COLOURS[s.colour] for s in scene.sprites]
        case "depth":
            colours = _nearness(scene)
        case "segmentation":
            colours = list(scene.flat_colours[1:])
        case _:
            colours = [(0.0, 0.0, 0.0)] * len(distances)
    for d, colour in zip(distances, colours, strict=True):
        alpha = (0.5 - d).clamp(0, 1)[:, None]
        frame = frame * (1 - alpha) + alpha * torch.tensor(colour)[None, :, None, None]
    return frame


def _textured(scene: Scene) -> Float[Tensor, "f 3 h w"]:
    """Background colour with a gradient that stands still and stripes that move with the pan."""
    grid = torch.arange(scene.size) + 0.5
    shift = torch.tensor(scene.pan)
    x = grid[None, None, :] - shift[:, 0, None, None]
    y = grid[None, :, None] - shift[:, 1, None, None]
    angle, period, amplitude = scene.stripes
    stripes = torch.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
    if scene.checks:
        stripes = stripes * torch.sin(2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / period)
    angle, slope = scene.gradient
    across = (grid[None, None, :] * math.cos(angle) + grid[None, :, None] * math.sin(angle)) / scene.size
    light = 1 + amplitude * stripes + slope * (across - across.mean())
    colour = torch.tensor(BACKGROUND_COLOURS[scene.background])[None, :, None, None]
    return (colour * light[:, None]).clamp(0, 1)


def _nearness(scene: Scene) -> list[tuple[float, float, float]]:
    levels = [0.92 - 0.25 * i for i in reversed(range(len(scene.sprites)))]
    return [(level, level, level) for level in levels]


def _lines(distances: list[Tensor]) -> Float[Tensor, "f 1 h w"]:
    """White outlines two pixels wide on black; nearer sprites hide the lines behind them."""
    lines = torch.zeros_like(distances[0])
    for d in distances:
        lines = torch.maximum(lines * (d > 0), (1.5 - d.abs()).clamp(0, 1))
    return lines[:, None]
