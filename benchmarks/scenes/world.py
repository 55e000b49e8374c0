"""Named objects (Fluent 3D emoji) on procedural grounds: pictures, alpha masks and captions.

The objects are read from the unpacked npm package `@lobehub/fluent-emoji-3d` (MIT), which is not part of this project.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Generator, Tensor
from tqdm import tqdm

from anyi2v.errors import InputError
from benchmarks.scenes.grounds import GROUNDS, uniform

OBJECTS = {
    "rooster": "1f413",
    "elephant": "1f418",
    "sailboat": "26f5",
    "butterfly": "1f98b",
    "turtle": "1f422",
    "giraffe": "1f992",
    "pineapple": "1f34d",
    "mushroom": "1f344",
    "tractor": "1f69c",
    "rocket": "1f680",
    "guitar": "1f3b8",
    "cactus": "1f335",
}
"""File names in the package, which are code points, by the word for the object."""
SCALES = 0.4, 0.65
"""Range of an object's longest side, as a fraction of the picture's side."""
WORDS = ("<pad>", "<bos>", "<eos>", "a", "an", "on", *OBJECTS, *GROUNDS)
"""Vocabulary of the captions."""


class Placement(NamedTuple):
    """Position of an object: centre and longest side as fractions of the picture's side, rotation in degrees."""

    x: float
    y: float
    scale: float
    angle: float


class Pictures(NamedTuple):
    """Rendered pictures with ground truth."""

    images: UInt8[Tensor, "n 3 h w"]
    alpha: UInt8[Tensor, "n h w"]
    objects: Int[Tensor, " n"]
    """Index into the requested names."""
    grounds: Int[Tensor, " n"]
    """Index into `GROUNDS`."""


def caption(name: str, ground: str) -> str:
    """Return a caption of a picture, in the words of `WORDS`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} on {ground}"


def load_sprites(package: Path, names: Sequence[str]) -> list[Float[Tensor, "4 s s"]]:
    """Load the objects as square RGBA sprites in [0, 1] with premultiplied colours, cropped to the visible part.

    Names are those of `OBJECTS`, or code points.

    Raises:
        InputError: the unpacked package has no such file.
    """
    found = []
    for name in names:
        path = package / "assets" / f"{OBJECTS.get(name, name)}.webp"
        if not path.exists():
            raise InputError(f"{path} is missing; unpack the npm package @lobehub/fluent-emoji-3d there (npm pack)")
        found.append(load_sprite(path))
    return found


def load_sprite(path: Path) -> Float[Tensor, "4 s s"]:
    """Load a picture with alpha as a square sprite in [0, 1] with premultiplied colours, cropped to the visible
    part."""
    with Image.open(path) as file:
        rgba = torch.from_numpy(np.array(file.convert("RGBA"))).permute(2, 0, 1).float() / 255
    rows, columns = ((rgba[3] > 0.03).any(axis).nonzero() for axis in (1, 0))
    rgba = rgba[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    height, width = rgba.shape[1:]
    spare_x, spare_y = (max(height, width) - side for side in (width, height))
    return F.pad(rgba, (spare_x // 2, spare_x - spare_x // 2, spare_y // 2, spare_y - spare_y // 2))


def paint(sprite: Float[Tensor, "4 s s"], at: Placement, size: int) -> Float[Tensor, "4 h w"]:
    """Draw the premultiplied sprite on an empty picture of `size` pixels, at twice the size, then average."""
    side = 2 * round(at.scale * size)
    small = F.interpolate(sprite[None], size=(side, side), mode="bilinear", antialias=True)
    cos, sin = (f(math.radians(at.angle)) / at.scale for f in (math.cos, math.sin))
    x, y = 2 * at.x - 1, 2 * at.y - 1
    theta = torch.tensor([[[cos, sin, -cos * x - sin * y], [-sin, cos, sin * x - cos * y]]])
    grid = F.affine_grid(theta, [1, 4, 2 * size, 2 * size], align_corners=False)
    return F.avg_pool2d(F.grid_sample(small, grid, align_corners=False), 2)[0].clamp(0, 1)


def random_placement(generator: Generator, angle: float) -> Placement:
    """Draw a placement inside the picture, up to rounded corners, rotated by at most `angle` degrees."""
    scale = uniform(generator, *SCALES)
    turn = uniform(generator, -angle, angle)
    margin = scale / 2
    x, y = (uniform(generator, margin, 1 - margin) for _ in range(2))
    return Placement(x, y, scale, turn)


def render(package: Path, names: Sequence[str], first: int, count: int, size: int, angle: float) -> Pictures:
    """Render pictures `first` to `first + count - 1`; each depends only on its number and the arguments."""
    sprites = load_sprites(package, names)
    images, alpha, labels = [], [], []
    for number in tqdm(range(first, first + count), desc="render", mininterval=10):
        generator = torch.Generator().manual_seed(number)
        which, ground = (int(torch.randint(n, (), generator=generator)) for n in (len(names), len(GROUNDS)))
        back = list(GROUNDS.values())[ground](generator, size)
        painted = paint(sprites[which], random_placement(generator, angle), size)
        image = back.clamp(0, 1) * (1 - painted[3:]) + painted[:3]
        images.append((255 * image.clamp(0, 1)).round().to(torch.uint8))
        alpha.append((255 * painted[3]).round().to(torch.uint8))
        labels.append((which, ground))
    objects, grounds = torch.tensor(labels).unbind(1)
    return Pictures(torch.stack(images), torch.stack(alpha), objects, grounds)
