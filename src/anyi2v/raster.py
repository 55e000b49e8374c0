"""Pictures of triangles and points without a graphics card: a z-buffer on the CPU, the same bytes every time.

Camera space: x to the right, y up, z towards the viewer, who is at the origin. Geometry is first moved to the
unit ball around the camera's aim, so that distances are counted in radii of the object, and nothing can be
behind the camera. Points are drawn as small balls: they have a surface to shade, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.errors import InputError

Style = Literal["shaded", "depth", "normal"]
"""Grey under a light from the upper left; near is bright; the surface's direction as a colour."""

BACKGROUNDS: dict[Style, tuple[float, float, float]] = {
    "shaded": (1.0, 1.0, 1.0),
    "depth": (0.0, 0.0, 0.0),
    "normal": (0.5, 0.5, 1.0),  # of a wall that faces the viewer
}

SAMPLES = 2
"""Pictures are drawn this many times larger and averaged, which smooths their edges."""
MOST_PIXELS = 1 << 22
FRAGMENTS = 1 << 20
"""Pairs of an element and a pixel that are looked at in one go: about 100 MB."""


@dataclass(frozen=True)
class Camera:
    """From where an object is looked at; raises InputError for an angle or a distance that cannot be."""

    azimuth: float = 30.0
    """Degrees around the object's upward axis, to the right."""
    elevation: float = 20.0
    """Degrees above the horizon, -90 to 90."""
    distance: float = 3.0
    """From the object's middle, in radii of the object; above 1."""
    fov: float = 40.0
    """Degrees that the picture's short side spans."""

    def __post_init__(self) -> None:
        for name, low, high in (("elevation", -90, 90), ("azimuth", -3600, 3600)):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"camera: {name} {getattr(self, name):g} is not allowed; it must be {low} to {high}")
        if not 1.01 <= self.distance <= 1000:
            raise InputError(
                f"camera: distance {self.distance:g} is not allowed; it must be 1.01 to 1000 radii of the object"
            )
        if not 1 <= self.fov <= 150:
            raise InputError(f"camera: fov {self.fov:g} is not allowed; it must be 1 to 150 degrees")

    def view(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points around the origin, y up, in camera space."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        around = [[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]]
        down = [[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]]
        rotation = points.new_tensor(down) @ points.new_tensor(around)
        # not `points @ rotation.T`: libraries of matrix products round differently on different machines
        turned = points[:, :1] * rotation[:, 0] + points[:, 1:2] * rotation[:, 1] + points[:, 2:] * rotation[:, 2]
        return turned - points.new_tensor([0, 0, self.distance])

    def focal(self, width: int, height: int) -> float:
        """Pixels that one unit spans at distance 1."""
        return min(width, height) / 2 / math.tan(math.radians(self.fov) / 2)

    def project(self, points: Float[Tensor, "*n 3"], width: int, height: int) -> Float[Tensor, "*n 3"]:
        """Camera space to (x, y, nearness): pixels from the upper left corner, and 1 / distance."""
        near = -1 / points[..., 2]
        focal = self.focal(width, height)
        return torch.stack(
            [width / 2 + focal * points[..., 0] * near, height / 2 - focal * points[..., 1] * near, near], dim=-1
        )


def draw(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    width: int,
    height: int,
    *,
    style: Style = "shaded",
    camera: Camera | None = None,
    background: tuple[float, float, float] | None = None,
) -> Float[Tensor, "3 {height} {width}"]:
    """A picture of a mesh, or of the vertices as a point cloud if there are no faces.

    Args:
        vertices: in the unit ball, y up; faces index them.
        faces: corners of triangles; both sides are seen.
        width: of the picture.
        height: of the picture.
        style: what the colours say.
        camera: by default from the upper right, the whole object in view.
        background: colour in [0, 1]; by default the style's in `BACKGROUNDS`.

    Raises InputError for a size, style or background that cannot be.
    """
    check_picture(width, height, style, background)
    camera = camera or Camera()
    w, h = width * SAMPLES, height * SAMPLES
    points = camera.view(vertices.double())
    if len(faces):
        index, near, normals = _triangles(points[faces], camera, w, h)
    else:
        index, near, normals = _balls(points, camera, w, h)
    colours = _colours(near, normals, style)
    canvas = colours.new_tensor(background or BACKGROUNDS[style]).expand(h * w, 3).clone()
    canvas[index >= 0] = colours
    return F.avg_pool2d(canvas.view(h, w, 3).permute(2, 0, 1), SAMPLES).float().clamp(0, 1)


def check_picture(width: int, height: int, style: str, background: tuple[float, float, float] | None) -> None:
    """Raises InputError for a size, style or background that cannot be drawn."""
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise InputError(f"cannot draw {width}x{height} pixels; at least 1x1, at most {MOST_PIXELS} in all")
    if style not in get_args(Style):
        raise InputError(f"render {style!r} is not known; it must be one of {', '.join(get_args(Style))}")
    if background is not None and not all(0 <= value <= 1 for value in background):
        raise InputError(f"background {background} is not a colour; give red, green and blue in 0 to 1")


def _triangles(
    corners: Float[Tensor, "f 3 3"], camera: Camera, width: int, height: int
) -> tuple[Int[Tensor, "p"], Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Which triangle each pixel shows (-1: none); nearness and normal where there is one."""
    flat = camera.project(corners, width, height)
    xy, near = flat[..., :2], flat[..., 2]
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    seen = area.abs() > 1e-9  # edge-on triangles cover no pixel
    xy, near, area, corners = xy[seen], near[seen], area[seen], corners[seen]

    def nearness(i: Tensor, at: Tensor) -> Tensor:
        shares = [_cross(xy[i, j - 1] - xy[i, j - 2], at - xy[i, j - 2]) / area[i] for j in (0, 1, 2)]
        weights = torch.stack(shares, dim=-1)
        return torch.where((weights >= 0).all(-1), (weights * near[i]).sum(-1), 0.0)

    low, high = xy.amin(1), xy.amax(1)
    index, depth = _nearest(low, high, nearness, width, height)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = F.normalize(normal, dim=-1)
    # towards the viewer, whichever way round the corners are given
    normal = normal * -torch.sign((normal * corners[:, 0]).sum(-1, keepdim=True))
    return index, depth[index >= 0], normal[index[index >= 0]]


def _balls(
    points: Float[Tensor, "n 3"], camera: Camera, width: int, height: int
) -> tuple[Int[Tensor, "p"], Float[Tensor, "m"], Float[Tensor, "m 3"]]:
    """As `_triangles`; the balls are as large as closes the gaps of a surface of so many points, within limits."""
    flat = camera.project(points, width, height)
    side = min(width, height)
    radius = max(min(0.8 / math.sqrt(len(points)), 1 / 16) * side, 0.75 * SAMPLES)
    size = radius * camera.distance / camera.focal(width, height)

    def rise(i: Tensor, at: Tensor) -> Tensor:
        """How far the ball's surface stands out from its centre towards the viewer, in radii; NaN: beside it."""
        return (1 - ((at - flat[i, :2]) / radius).square().sum(-1)).sqrt()

    def nearness(i: Tensor, at: Tensor) -> Tensor:
        distance = (1 / flat[i, 2] - size * rise(i, at)).clamp(min=1e-3)
        return (1 / distance).nan_to_num(0.0)

    index, depth = _nearest(flat[:, :2] - radius, flat[:, :2] + radius, nearness, width, height)
    pixel = torch.nonzero(index >= 0)[:, 0]
    i, at = index[pixel], _centres(pixel, width)
    away = (at - flat[i, :2]) / radius
    return index, depth[pixel], torch.stack([away[:, 0], -away[:, 1], rise(i, at)], dim=-1)


def _nearest(
    low: Float[Tensor, "n 2"],
    high: Float[Tensor, "n 2"],
    nearness: Callable[[Tensor, Tensor], Tensor],
    width: int,
    height: int,
) -> tuple[Int[Tensor, "p"], Float[Tensor, "p"]]:
    """Per pixel, the element of the greatest nearness, the first one of equals; -1 and 0 where there is none.

    Args:
        low: upper left corner of each element's bounding box in pixels.
        high: lower right corner.
        nearness: of elements `[k]` at positions `[k 2]`; 0 where they do not cover it.
        width: of the picture.
        height: of the picture.
    """
    best = torch.zeros(width * height, dtype=torch.float64)
    index = torch.full((width * height,), -1)
    rows = max(FRAGMENTS // width, 1)
    for top in range(0, height, rows):
        # pixels whose centres lie in the box and in this band of rows
        first = (low - 0.5).ceil().clamp(min=low.new_tensor([0, top]), max=low.new_tensor([width, height]))
        ends = low.new_tensor([width - 1, min(top + rows, height) - 1])
        last = (high - 0.5).floor().clamp(min=low.new_tensor([-1, -1]), max=ends)
        counts = (last - first + 1).clamp(min=0).long()
        for part in _parts(counts.prod(1)):
            _cover(part, first.long(), counts, nearness, width, best, index)
    return index, best


def _cover(
    part: Int[Tensor, "k"],
    first: Int[Tensor, "n 2"],
    counts: Int[Tensor, "n 2"],
    nearness: Callable[[Tensor, Tensor], Tensor],
    width: int,
    best: Float[Tensor, "p"],
    index: Int[Tensor, "p"],
) -> None:
    """Enters the elements `part`, which come after those already entered, into the buffers."""
    number = counts[part].prod(1)
    i = part.repeat_interleave(number)
    step = torch.arange(len(i)) - (number.cumsum(0) - number).repeat_interleave(number)
    x = first[i, 0] + step % counts[i, 0]
    y = first[i, 1] + step // counts[i, 0]
    pixel = y * width + x
    near = nearness(i, _centres(pixel, width))
    hit = near > 0
    i, pixel, near = i[hit], pixel[hit], near[hit]
    before = best[pixel]
    best.scatter_reduce_(0, pixel, near, "amax")
    won = (near == best[pixel]) & (near > before)
    index[pixel[won]] = len(first)
    index.scatter_reduce_(0, pixel[won], i[won], "amin")


def _parts(sizes: Int[Tensor, "n"]) -> list[Int[Tensor, "k"]]:
    """The elements that have a size, in order, in parts of about `FRAGMENTS`."""
    some = torch.nonzero(sizes)[:, 0]
    number = sizes[some].cumsum(0) // FRAGMENTS
    return list(some.split(torch.unique_consecutive(number, return_counts=True)[1].tolist()))


def _colours(near: Float[Tensor, "n"], normals: Float[Tensor, "n 3"], style: Style) -> Float[Tensor, "n 3"]:
    match style:
        case "normal":
            return normals / 2 + 0.5
        case "depth":
            # from 0.2: the farthest part still stands out from a black background
            low, high = (near.min(), near.max()) if len(near) else (0, 1)
            value = 1 - 0.8 * (high - near) / max(
                float(high - low), 1e-6 * float(high)
            )  # a wall's rounding is no depth
        case _:
            light = F.normalize(normals.new_tensor([-0.4, 0.6, 0.8]), dim=0)
            value = 0.2 + 0.65 * (normals @ light).clamp(min=0)
    return value[:, None].expand(-1, 3)


def _centres(pixel: Int[Tensor, "n"], width: int) -> Float[Tensor, "n 2"]:
    return torch.stack([pixel % width, pixel // width], dim=-1).double() + 0.5


def _cross(a: Float[Tensor, "*n 2"], b: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
