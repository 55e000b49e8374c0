"""Rendering of meshes and point clouds on the CPU, bit-identical from run to run on the same machine.

Meshes are ray-traced by Embree. Points are drawn as small balls, so that they have a surface to shade. Geometry is
inside the unit ball, so distances are in radii of the object, and nothing is behind the camera. Camera space is the
rotated ball: x to the right, y up, z towards the viewer at (0, 0, distance).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.errors import InputError

Style = Literal["shaded", "depth", "normal"]
"""Grey shading with a light from the upper left; depth, near is bright; surface normals as colours."""

BACKGROUNDS: dict[Style, tuple[float, float, float]] = {
    "shaded": (1.0, 1.0, 1.0),
    "depth": (0.0, 0.0, 0.0),
    "normal": (0.5, 0.5, 1.0),  # the normal of a wall that faces the viewer
}

SAMPLES = 2
"""Supersampling factor: pictures are rendered this many times larger and averaged."""
MOST_PIXELS = 1 << 22
CHUNK = 1 << 20
"""Number of rays, or of point-pixel pairs, processed at once, about 100 MB."""


@dataclass(frozen=True)
class Camera:
    """Position and field of view of the camera; raises InputError for an invalid angle or distance."""

    azimuth: float = 30.0
    """Degrees around the object's upward axis, to the right."""
    elevation: float = 20.0
    """Degrees above the horizon, -90 to 90."""
    distance: float = 3.0
    """Distance from the object's centre in radii of the object; above 1."""
    fov: float = 40.0
    """Field of view of the picture's shorter side, in degrees."""

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

    def turn(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Rotate points around the origin, y up, to camera space."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        around = [[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]]
        down = [[1, 0, 0], [0, math.cos(e), -math.sin(e)], [0, math.sin(e), math.cos(e)]]
        rotation = points.new_tensor(down) @ points.new_tensor(around)
        # not `points @ rotation.T`: matrix multiplications round differently on different machines
        return points[:, :1] * rotation[:, 0] + points[:, 1:2] * rotation[:, 1] + points[:, 2:] * rotation[:, 2]

    def focal(self, width: int, height: int) -> float:
        """Return the focal length in pixels, the size of one unit at distance 1."""
        return min(width, height) / 2 / math.tan(math.radians(self.fov) / 2)


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
    """Render a mesh, or the vertices as a point cloud if there are no faces.

    Args:
        vertices: in the unit ball, y up.
        faces: vertex indices of triangles, which are visible from both sides.
        width: width of the picture.
        height: height of the picture.
        style: meaning of the colours.
        camera: by default from the upper right, with the whole object in view.
        background: colour in [0, 1]; by default the style's in `BACKGROUNDS`.

    Raises InputError for an invalid size, style or background. Triangles need embreex: `anyi2v[mesh]`.
    """
    check_picture(width, height, style, background)
    camera = camera or Camera()
    w, h = width * SAMPLES, height * SAMPLES
    points = camera.turn(vertices.double())
    near, normals = _triangles(points, faces, camera, w, h) if len(faces) else _balls(points, camera, w, h)
    seen = near > 0
    canvas = torch.tensor(background or BACKGROUNDS[style], dtype=torch.float32).expand(h * w, 3).clone()
    canvas[seen] = _colours(near[seen], normals[seen], style).float()
    return F.avg_pool2d(canvas.view(h, w, 3).permute(2, 0, 1), SAMPLES).clamp(0, 1)


def check_picture(width: int, height: int, style: str, background: tuple[float, float, float] | None) -> None:
    """Raise InputError for an invalid size, style or background."""
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise InputError(f"cannot draw {width}x{height} pixels; at least 1x1, at most {MOST_PIXELS} in all")
    if style not in get_args(Style):
        raise InputError(f"render {style!r} is not known; it must be one of {', '.join(get_args(Style))}")
    if background is not None and not all(0 <= value <= 1 for value in background):
        raise InputError(f"background {background} is not a colour; give red, green and blue in 0 to 1")


def _triangles(
    points: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], camera: Camera, width: int, height: int
) -> tuple[Float[Tensor, "p"], Float[Tensor, "p 3"]]:
    """Trace rays through the pixel centres; return 1 / distance along z, 0 for no hit, and unit normals."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene(robust=True)  # no ray passes between two adjacent triangles
    TriangleMesh(scene, points.float().numpy(), faces.int().numpy())
    near, normals = torch.zeros(width * height, dtype=torch.float64), torch.zeros(width * height, 3)
    start = 1.002  # rays start at this z, just before the unit ball, because they are traced in float32
    to_camera = torch.tensor([1, -1]) / camera.focal(width, height)
    for pixels in torch.arange(width * height).split(CHUNK):
        slopes = (_xy(pixels, width) + 0.5 - torch.tensor([width / 2, height / 2])) * to_camera
        rays = F.pad(slopes, (0, 1), value=-1)
        origins = F.pad(slopes * (camera.distance - start), (0, 1), value=start)
        found = scene.run(origins.numpy(), rays.numpy(), output=True)
        triangle, way, normal = (torch.from_numpy(found[name]) for name in ("primID", "tfar", "Ng"))
        hit = triangle >= 0
        near[pixels[hit]] = 1 / (camera.distance - start + way[hit].double())
        normal = F.normalize(normal[hit].double(), dim=-1, eps=1e-100).float()
        # flipped towards the viewer, regardless of the triangle's orientation
        away = (normal * rays[hit]).sum(-1, keepdim=True) > 0
        normals[pixels[hit]] = torch.where(away, -normal, normal)
    return near, normals


def _balls(
    points: Float[Tensor, "n 3"], camera: Camera, width: int, height: int
) -> tuple[Float[Tensor, "p"], Float[Tensor, "p 3"]]:
    """Like `_triangles` for points, as balls large enough to close the gaps of a sampled surface, within limits."""
    side, focal = min(width, height), camera.focal(width, height)
    radius = max(min(0.8 / math.sqrt(len(points)), 1 / 16) * side, 0.75 * SAMPLES)
    depth = camera.distance - points[:, 2]
    xy = torch.tensor([width / 2, height / 2]) + focal * points[:, :2] * torch.tensor([1, -1]) / depth[:, None]

    def surface(i: Int[Tensor, "*k"], pixel: Int[Tensor, "*k 2"]) -> tuple[Tensor, Tensor]:
        """Return the distance along z and the normal of ball `i` at the pixel's centre; NaN outside the ball."""
        away = (pixel + 0.5 - xy[i]) / radius
        rise = (1 - away.square().sum(-1)).sqrt()
        distance = (depth[i] - rise * radius * camera.distance / focal).clamp(min=1e-3)
        return distance, torch.stack([away[..., 0], -away[..., 1], rise], dim=-1)

    # per pixel, the minimum of (distance, ball index) as one integer; distances are below 2 ** 10
    none = torch.iinfo(torch.int64).max
    first = torch.full((width * height,), none)
    reach = torch.arange(-math.ceil(radius - 0.5), math.ceil(radius - 0.5) + 1)
    square = torch.cartesian_prod(reach, reach)
    for part in torch.arange(len(points)).split(max(CHUNK // len(square), 1)):
        i = part[:, None].expand(-1, len(square))
        pixel = xy[i].floor().long() + square
        distance, _ = surface(i, pixel)
        hit = (distance > 0) & ((pixel >= 0) & (pixel < torch.tensor([width, height]))).all(-1)
        key = (distance[hit] * 2**28).long() * len(points) + i[hit]
        first.scatter_reduce_(0, pixel[hit] @ torch.tensor([1, width]), key, "amin")

    near, normals = torch.zeros(width * height, dtype=torch.float64), torch.zeros(width * height, 3)
    seen = torch.nonzero(first < none)[:, 0]
    distance, normal = surface(first[seen] % len(points), _xy(seen, width))
    near[seen], normals[seen] = 1 / distance, normal.float()
    return near, normals


def _colours(near: Float[Tensor, "n"], normals: Float[Tensor, "n 3"], style: Style) -> Float[Tensor, "n 3"]:
    match style:
        case "normal":
            return normals / 2 + 0.5
        case "depth":
            # from 0.2: the farthest part still stands out from a black background
            low, high = (near.min(), near.max()) if len(near) else (0, 1)
            # depth differences up to a ten-thousandth of a radius are Embree's rounding
            value = 1 - 0.8 * (high - near) / max(float(high - low), 1e-4 * float(high) ** 2)
        case _:
            light = F.normalize(torch.tensor([-0.4, 0.6, 0.8]), dim=0)
            value = 0.2 + 0.65 * (normals * light).sum(-1).clamp(min=0)
    return value[:, None].expand(-1, 3)


def _xy(pixel: Int[Tensor, "n"], width: int) -> Int[Tensor, "n 2"]:
    return torch.stack([pixel % width, pixel // width], dim=-1)
