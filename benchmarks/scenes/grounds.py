"""Procedural grounds: `ground(generator, size) -> [3 size size]`, approximately in [0, 1], randomly varied."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

Picture = Float[Tensor, "3 h w"]


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a random number between two bounds."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def noise(generator: Generator, size: int, cells: int) -> Float[Tensor, "h w"]:
    """Smooth noise with a standard deviation of about 1 that varies over `1 / cells` of the picture."""
    coarse = torch.randn(1, 1, cells + 1, cells + 1, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0, 0]


def colour(generator: Generator, red: float, green: float, blue: float, spread: float = 0.05) -> Float[Tensor, "3 1 1"]:
    """Draw a colour near the given one."""
    return torch.tensor([red, green, blue])[:, None, None] + spread * (2 * torch.rand(3, 1, 1, generator=generator) - 1)


def axes(size: int) -> tuple[Float[Tensor, "1 w"], Float[Tensor, "h 1"]]:
    """Return the coordinates x and y of the pixel centres, as fractions of the side."""
    line = (torch.arange(size) + 0.5) / size
    return line[None, :], line[:, None]


def over_horizon(generator: Generator, size: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return each pixel's height above and depth below the horizon, up to 1 at the picture's edge, else 0."""
    _, y = axes(size)
    horizon = uniform(generator, low, high)
    above, below = ((horizon - y) / horizon).clamp(0, 1), ((y - horizon) / (1 - horizon)).clamp(0, 1)
    return above.expand(size, size), below.expand(size, size)


def meadow(generator: Generator, size: int) -> Picture:
    """Draw grass under a blue sky with clouds."""
    above, below = over_horizon(generator, size, 0.3, 0.5)
    sky = torch.lerp(colour(generator, 0.86, 0.93, 0.98, 0.02), colour(generator, 0.45, 0.7, 0.95), above)
    sky = torch.lerp(sky, torch.ones(3, 1, 1), (0.5 * noise(generator, size, 5) - 0.2).clamp(0, 1))
    grass = torch.lerp(colour(generator, 0.55, 0.75, 0.32), colour(generator, 0.25, 0.55, 0.17), below)
    return torch.where(below > 0, grass + 0.04 * noise(generator, size, size // 4), sky)


def sea(generator: Generator, size: int) -> Picture:
    """Draw waves, denser towards the horizon, under an evening sky."""
    x, _ = axes(size)
    above, below = over_horizon(generator, size, 0.25, 0.42)
    sky = torch.lerp(colour(generator, 0.97, 0.88, 0.76, 0.03), colour(generator, 0.55, 0.75, 0.93), above.sqrt())
    water = torch.lerp(colour(generator, 0.3, 0.6, 0.76), colour(generator, 0.06, 0.3, 0.55), below)
    bend = 1.5 * noise(generator, size, 6)
    wave = (50 * (below + 0.03).sqrt() + bend).sin() * ((9 + 9 * (1 - below)) * x + bend).sin()
    return torch.where(below > 0, water + 0.07 * wave.clamp(min=-0.3) * (0.4 + 0.6 * below), sky)


def sand(generator: Generator, size: int) -> Picture:
    """Draw ripples of sand."""
    x, y = axes(size)
    turn = uniform(generator, -0.5, 0.5)
    along = y * math.cos(turn) + x * math.sin(turn) + 0.02 * noise(generator, size, 4)
    ripple = (uniform(generator, 45, 60) * along + uniform(generator, 0, 6)).sin()
    return colour(generator, 0.85, 0.73, 0.52) + 0.045 * ripple + 0.04 * noise(generator, size, 3)


def tiles(generator: Generator, size: int) -> Picture:
    """Draw a floor of light and dark tiles, darker towards one side."""
    x, y = axes(size)
    side = uniform(generator, 0.13, 0.2)
    cell = ((x / side + uniform(generator, 0, 1)).floor() + (y / side + uniform(generator, 0, 1)).floor()) % 2
    floor = torch.lerp(colour(generator, 0.62, 0.6, 0.6), colour(generator, 0.82, 0.8, 0.77), cell)
    return floor * (1 - uniform(generator, -0.2, 0.2) * (x - 0.5) - uniform(generator, 0, 0.3) * (y - 0.5))


GROUNDS: dict[str, Callable[[Generator, int], Picture]] = {
    "grass": meadow,
    "water": sea,
    "sand": sand,
    "tiles": tiles,
}
"""Grounds by their word in the caption."""
