"""Rendering of scenes as photo, edge map, depth map, segmentation, sketch, silhouette or mixture, and captions."""

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
"""Vocabulary of the captions."""

PAPER, INK = 0.96, 0.16
"""Brightness of a sketch's background and lines."""

_ARTICLES = {
    "edge": "an edge map of",
    "depth": "a depth map of",
    "segmentation": "a segmentation map of",
    "mixed": "a mixed picture of",
}


def caption(scene: Scene, modality: Modality) -> str:
    """Return the caption of a picture or clip of the scene, in the words of `WORDS`.

    Objects are "leaving" if the centre of one is outside the frame at any time; without this word, all objects stay
    inside.
    """
    leaving = any(not 0 <= c <= scene.size for s in scene.sprites for centre in s.centres for c in centre)
    if modality == "photo":
        things = " and ".join(f"a {s.colour} {s.shape}" for s in scene.sprites)
        return f"{things} {'leaving' if leaving else 'on'} a {scene.background} background"
    things = " and ".join(f"a {s.shape}" for s in scene.sprites)
    return f"{_ARTICLES.get(modality, f'a {modality} of')} {things}{' leaving' if leaving else ''}"


def render(scene: Scene, modality: Modality) -> Float[Tensor, "f 3 h w"]:
    """Render all frames in [0, 1]; outlines are antialiased over one pixel."""
    objects, background = scene.mixture if modality == "mixed" else (modality, modality)
    return _objects(scene, objects, _background(scene, background))


def _background(scene: Scene, modality: Modality) -> Float[Tensor, "f 3 h w"]:
    """Render the background."""
    match modality:
        case "photo":
            return _textured(scene)
        case "depth":
            # a floor that gets nearer downwards
            frame = torch.linspace(0.05, 0.35, scene.size)[:, None]
        case "segmentation":
            frame = torch.tensor(scene.flat_colours[0])[:, None, None]
        case _:
            frame = torch.tensor({"edge": 0.0, "sketch": PAPER, "silhouette": 1.0}[modality])
    return frame.expand(scene.frames, 3, scene.size, scene.size)


def _objects(scene: Scene, modality: Modality, frame: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f 3 h w"]:
    """Render the objects, or their outlines, over a background."""
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
    """Render the background colour with a static gradient and stripes that move with the pan."""
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
    """Render white outlines two pixels wide on black; nearer sprites hide the lines behind them."""
    lines = torch.zeros_like(distances[0])
    for d in distances:
        lines = torch.maximum(lines * (d > 0), (1.5 - d.abs()).clamp(0, 1))
    return lines[:, None]
