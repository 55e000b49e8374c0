"""Generation of benchmark cases of all kinds; `case` defines a case."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import torch

from anyi2v.images.raster import Style
from anyi2v.micro.benchmark.case import (
    DARKEST,
    LEAST_TEXTURE,
    PAN_REACH,
    Case,
    Condition,
    accepted,
    drawn_case,
    inside,
    large,
    moves,
    on_texture,
)
from anyi2v.micro.benchmark.input_cases import MAKERS, solid
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.micro.world.modalities import caption
from anyi2v.micro.world.world import HELD_OUT, MODALITIES, Scene, object_masks, split_generator
from anyi2v.tracks import Track, Tracks

LEAST_PAN = 10 / 64
"""Minimum length of a pan in frame widths."""
LEAST_PERIOD = 2 * 4 / 64 * math.sqrt(2)
"""Minimum period, in frame widths, of a background that can be tracked: checks repeat after 0.71 periods along their
diagonals, and the finest aligned layer, with cells of 4 px, resolves repetitions of two cells."""

STYLES: tuple[Style, ...] = get_args(Style)
CONDITIONS: tuple[Condition, ...] = ("edge", "depth", "segmentation", "photo", "sketch", "silhouette", "mixed")


def conditions(kind: Kind) -> tuple[Condition, ...]:
    """Return the conditions of a kind, used in turn; pans and loose boxes need photos, which show the texture."""
    match kind:
        case "pan":
            return ("photo",)
        case "mixed":
            return ("mixed",)
        case "loose box":
            return ("photo", "mixed")
        case "mesh" | "points":
            return STYLES
        case _:
            return CONDITIONS


def make_case(seed: int, condition: Condition, kind: Kind = "plain") -> Case:
    """Generate case number `seed` of the test split; the prompt's colours differ from the condition image's.

    Objects keep their size, stay inside the frame and move by at least a quarter of it. Kinds:

    plain: one object, with a pair of shape and colour that occurs in training.
    two objects: each with its own track. pan: the camera moves, and everything with it; the track is one box around the
    whole frame. unseen pair: one object, with a pair of shape and colour that never occurs in training. unseen shape: a
    hexagon, for which the vocabulary has no word; the prompt calls it a circle.

    All other kinds vary the user's input, see `input_cases`.
    """
    generator = split_generator("test", seed)
    if kind in ("mesh", "points"):
        if condition not in STYLES:
            raise ValueError(f"geometry cannot be drawn as {condition!r}")
        return solid(seed, condition, generator, points=kind == "points")
    if condition not in MODALITIES:
        raise ValueError(f"the world cannot be drawn as {condition!r}")
    if kind in MAKERS:
        return MAKERS[kind](seed, condition, generator)
    scene = accepted(generator, lambda scene: _suits(scene, kind))
    if kind == "unseen shape":
        scene = replace(scene, sprites=(replace(scene.sprites[0], shape="hexagon"),))
    if kind == "pan":
        case = on_texture(seed, condition, generator, scene)
        return replace(case, tracks=Tracks(scene.size, scene.size, (_camera(scene),)))
    case = drawn_case(seed, condition, generator, scene, unseen_pair=kind == "unseen pair")
    if kind == "unseen shape":
        named = replace(case.scene, sprites=(replace(case.scene.sprites[0], shape="circle"),))
        return replace(case, prompt=caption(named, "photo"))
    return case


def _camera(scene: Scene) -> Track:
    """Return a track of the whole frame as one box, with salient points on the background."""
    size, covered = scene.size, torch.stack(object_masks(scene)).any(0)[0]
    grid = [size * k / 4 for k in (1, 2, 3)]
    points = tuple((x, y) for x in grid for y in grid if not covered[int(y), int(x)])
    return Track("camera", tuple((x, y, x + size, y + size) for x, y in scene.pan), points)


def _suits(scene: Scene, kind: Kind) -> bool:
    if len(scene.sprites) != (2 if kind == "two objects" else 1):
        return False
    if kind == "unseen pair" and scene.sprites[0].shape not in {shape for shape, _ in HELD_OUT}:
        return False
    return _pans(scene) if kind == "pan" else moves(scene)


def _pans(scene: Scene) -> bool:
    """Return whether the camera moves far enough over a measurable texture, and the object stays visible."""
    (sprite,) = scene.sprites
    _, period, amplitude = scene.stripes
    longest = max(math.dist(a, b) for a, b in itertools.pairwise(scene.pan))
    fine = amplitude >= LEAST_TEXTURE and period >= LEAST_PERIOD * scene.size
    # a safe margin, because a generated texture has less sharp correlation peaks than a rendered one
    seen = scene.checks and fine and scene.background != DARKEST and longest < 0.7 * PAN_REACH * period
    kept = large(sprite, scene.size) and inside(sprite, (0, 0, scene.size, scene.size))
    return seen and kept and math.hypot(*scene.pan[-1]) >= LEAST_PAN * scene.size
