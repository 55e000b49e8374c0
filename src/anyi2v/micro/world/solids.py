"""The world's shapes as prisms and point clouds, to be rendered like a user's files."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

HALF_DEPTH = 0.3
"""Half the depth of a prism whose outline has a radius of 1."""


def prism(shape: str, angle: float) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Return vertices (y up, inside the unit ball) and triangles of a prism whose front has a sprite's outline.

    Front and back are fans around the centre, from which every outline is visible; those of a ring are strips.
    """
    outer = _turned(_outline(shape), angle)
    n = len(outer)
    inner = outer * (0.46 / 0.98) if shape == "ring" else torch.zeros(n, 2, dtype=torch.float64)
    rings = [(outer, HALF_DEPTH), (outer, -HALF_DEPTH), (inner, -HALF_DEPTH), (inner, HALF_DEPTH)]
    vertices = torch.cat([torch.cat([xy, torch.full((n, 1), z)], dim=1) for xy, z in rings])
    # consecutive rings are joined by quads: side, back, inner side (with zero area except for a ring), front
    here = torch.arange(n)
    there = (here + 1) % n
    faces = []
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
        faces.append(torch.stack([a * n + here, a * n + there, b * n + here], dim=1))
        faces.append(torch.stack([a * n + there, b * n + there, b * n + here], dim=1))
    vertices = vertices * torch.tensor([1, -1, 1])  # pixel coordinates point downwards
    return vertices / vertices.norm(dim=1).max(), torch.cat(faces)


def cloud(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3"]:
    """Sample random points, uniformly distributed over the triangles."""
    a, b, c = vertices[faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    chosen = torch.multinomial(area, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator, dtype=vertices.dtype)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


def _outline(shape: str) -> Float[Tensor, "n 2"]:
    """Return the corners of a shape in order, x to the right and y down, as rendered by `world.distance`."""
    match shape:
        case "circle":
            points = _polygon([0.9] * 48)
        case "ring":
            points = _polygon([0.98] * 48)
        case "square":
            points = [(0.7, 0.7), (-0.7, 0.7), (-0.7, -0.7), (0.7, -0.7)]
        case "triangle":
            points = [(0.0, -1.0), (0.866, 0.5), (-0.866, 0.5)]
        case "star":
            points = _polygon([1.0, 0.45] * 5)
        case "cross":
            w, r = 0.33, 0.95
            quarter = [(w, -r), (w, -w), (r, -w)]
            points = [_quarter_turns(point, k) for k in range(4) for point in quarter]
        case _:
            raise ValueError(f"no outline of a {shape!r}")
    return torch.tensor(points, dtype=torch.float64)


def _polygon(radii: list[float]) -> list[tuple[float, float]]:
    """Return corners at equal angles, starting at the top."""
    step = 2 * math.pi / len(radii)
    return [(r * math.sin(k * step), -r * math.cos(k * step)) for k, r in enumerate(radii)]


def _quarter_turns(point: tuple[float, float], count: int) -> tuple[float, float]:
    x, y = point
    for _ in range(count):
        x, y = -y, x
    return x, y


def _turned(points: Float[Tensor, "n 2"], angle: float) -> Float[Tensor, "n 2"]:
    """Rotate points by `Sprite.angle`."""
    c, s = math.cos(angle), math.sin(angle)
    return points @ points.new_tensor([[c, s], [-s, c]])
