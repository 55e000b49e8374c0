import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v import raster
from anyi2v.errors import InputError
from anyi2v.raster import BACKGROUNDS, Camera, check_picture, draw

FRONT = Camera(azimuth=0, elevation=0, distance=3, fov=40)
QUAD = torch.tensor([[-0.6, -0.4, 0.0], [0.6, -0.4, 0.0], [0.6, 0.4, 0.0], [-0.6, 0.4, 0.0]], dtype=torch.float64)
QUAD_FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])
POINTS = torch.empty(0, 3, dtype=torch.int64)


def soup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Triangles that intersect each other, in the unit ball."""
    corners = torch.rand(count * 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return corners, torch.arange(count * 3).view(count, 3)


def by_ray(corners: Tensor, camera: Camera, width: int, height: int) -> Tensor:
    """Distance to the viewer along each pixel's ray by Moeller and Trumbore's intersection; inf: nothing hit."""
    a, b, c = camera.view(corners.reshape(-1, 3)).view(-1, 3, 3).unbind(1)
    focal = min(width, height) / 2 / math.tan(math.radians(camera.fov) / 2)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -torch.ones_like(x)], -1).view(-1, 1, 3)
    rays = rays.double()
    cross = torch.linalg.cross(rays, (c - a)[None].expand(len(rays), -1, -1))
    scale = (cross * (b - a)).sum(-1)
    u = (cross * -a).sum(-1) / scale
    q = torch.linalg.cross(-a, b - a)
    v, distance = (q * rays).sum(-1) / scale, (q * (c - a)).sum(-1) / scale
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    return torch.where(hit, distance, torch.inf).amin(1).view(height, width)


@given(st.integers(1, 30), st.integers(0, 999), st.floats(-180, 180), st.floats(-90, 90), st.integers(1, 40))
def test_the_nearest_triangle_is_seen(count: int, seed: int, azimuth: float, elevation: float, width: int) -> None:
    vertices, faces = soup(count, seed)
    camera = Camera(azimuth, elevation, 2.0)
    points = camera.view(vertices)
    index, near, _ = raster._triangles(points[faces], camera, width, 24)
    expected = by_ray(vertices[faces], camera, width, 24).flatten()
    seen = index >= 0
    # a ray may hit an edge in one computation and miss it in the other
    assert (seen != expected.isfinite()).float().mean() <= 0.01
    both = seen & expected.isfinite()
    wrong = (1 / near[both[seen]] - expected[both]).abs() > 1e-6
    assert wrong.float().mean() <= 0.01 if both.any() else True


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 999), st.sampled_from([1, 7, 100]))
def test_parts_and_bands_do_not_matter(count: int, seed: int, fragments: int) -> None:
    vertices, faces = soup(count, seed)
    for elements in (faces, POINTS):
        whole = draw(vertices, elements, 12, 8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raster, "FRAGMENTS", fragments)
            assert torch.equal(draw(vertices, elements, 12, 8), whole)


@given(st.integers(1, 20), st.integers(0, 999), st.randoms())
def test_the_order_of_triangles_does_not_matter(count: int, seed: int, random: Random) -> None:
    vertices, faces = soup(count, seed)
    order = list(range(count))
    random.shuffle(order)
    # each triangle's corners turned, too
    moved = torch.stack([faces[i].roll(random.randrange(3)) for i in order])
    # which of two triangles is nearer is decided up to rounding
    assert (draw(vertices, moved, 16, 16) - draw(vertices, faces, 16, 16)).abs().mean() < 1e-3


def test_a_wall_is_where_the_projection_says() -> None:
    picture = draw(QUAD, QUAD_FACES, 60, 40, camera=FRONT)
    # 1.2 x 0.8 at distance 3, seen by 20 / tan(20 degrees) px per unit at distance 1
    focal = 20 / math.tan(math.radians(20))
    dark = picture[0] < 1
    rows, columns = torch.nonzero(dark.any(1))[:, 0], torch.nonzero(dark.any(0))[:, 0]
    for low, high, size, middle in ((columns[0], columns[-1], 1.2, 30), (rows[0], rows[-1], 0.8, 20)):
        assert abs(int(low) - (middle - focal * size / 6)) <= 1
        assert abs(int(high) + 1 - (middle + focal * size / 6)) <= 1
    assert torch.equal(picture, picture.flip(1))
    assert torch.equal(picture, picture.flip(2))


def test_styles_of_a_wall_that_faces_the_viewer() -> None:
    normal = draw(QUAD, QUAD_FACES, 8, 8, style="normal", camera=FRONT)
    assert torch.allclose(normal, torch.tensor([0.5, 0.5, 1.0])[:, None, None].expand(3, 8, 8))
    assert draw(QUAD, QUAD_FACES, 8, 8, style="depth", camera=FRONT)[:, 4, 4].tolist() == [1, 1, 1]
    for style in BACKGROUNDS:
        assert torch.equal(
            draw(QUAD, QUAD_FACES.flip(1), 8, 8, style=style, camera=FRONT),
            draw(QUAD, QUAD_FACES, 8, 8, style=style, camera=FRONT),
        )


def test_near_is_bright_in_depth() -> None:
    tilted = Camera(azimuth=0, elevation=-50, distance=3)  # from below: the lower edge is nearer
    picture = draw(QUAD, QUAD_FACES, 32, 32, style="depth", camera=tilted)[0]
    column = picture[:, 16]
    inner = column[column > 0][1:-1]  # without the smoothed edges
    assert (inner.diff() > 0).all()
    assert 0.2 <= inner.min() < inner.max() <= 1


def test_angles_go_right_and_up() -> None:
    dot = torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.0, -0.9]], dtype=torch.float64)
    for camera, axis, sign in ((Camera(azimuth=20, elevation=0), 0, -1), (Camera(azimuth=0, elevation=20), 1, -1)):
        # what is in front moves to the left when the viewer goes right, down when it goes up
        assert camera.view(dot)[0, axis] * sign > 0.2
    right = torch.tensor([[0.9, 0, 0]], dtype=torch.float64)
    assert Camera(azimuth=90, elevation=0).view(right)[0].tolist() == pytest.approx([0, 0, -2.1], abs=1e-12)


@given(st.floats(-180, 180), st.floats(-90, 90), st.integers(0, 99))
def test_the_whole_object_is_seen_by_default(azimuth: float, elevation: float, seed: int) -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    camera = Camera(azimuth, elevation)
    for width, height in ((64, 40), (40, 64)):
        flat = camera.project(camera.view(points / points.norm(dim=1).max()), width, height)
        assert (flat[:, :2] >= 0).all()
        assert (flat[:, 0] <= width).all()
        assert (flat[:, 1] <= height).all()


def test_points_are_balls() -> None:
    one = torch.zeros(1, 3, dtype=torch.float64)
    # of a 16th of the side: 10 px around the middle
    shaded, normal = (draw(one, POINTS, 161, 161, style=s, camera=FRONT) for s in ("shaded", "normal"))
    assert torch.allclose(normal[:, 80, 80], torch.tensor([0.5, 0.5, 1.0]), atol=0.02)
    assert normal[0, 80, 87] > 0.7  # the right side faces right
    assert normal[1, 73, 80] > 0.7  # the upper side faces up
    assert shaded[0, 75, 76] > shaded[0, 85, 84]  # lit from the upper left
    assert int((shaded[0] < 1).sum()) == pytest.approx(math.pi * (161 / 16) ** 2, rel=0.1)


def test_nothing_in_view_is_the_background() -> None:
    away = Camera(azimuth=0, elevation=0, distance=1.5, fov=1)
    corner = torch.tensor([[0.5, 0.5, 0], [0.6, 0.5, 0], [0.5, 0.6, 0]], dtype=torch.float64)
    for style, colour in BACKGROUNDS.items():
        picture = draw(corner, torch.tensor([[0, 1, 2]]), 4, 4, style=style, camera=away)
        assert torch.equal(picture, torch.tensor(colour)[:, None, None].expand(3, 4, 4))
    given_colour = draw(corner, torch.tensor([[0, 1, 2]]), 4, 4, camera=away, background=(0.25, 0.5, 0.75))
    assert given_colour[:, 0, 0].tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"elevation": 91.0}, "elevation 91 is not allowed; it must be -90 to 90"),
        ({"azimuth": math.nan}, "azimuth nan is not allowed"),
        ({"distance": 1.0}, "distance 1 is not allowed; it must be 1.01 to 1000 radii"),
        ({"fov": 0.0}, "fov 0 is not allowed; it must be 1 to 150 degrees"),
    ],
)
def test_cameras_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Camera(**values)


def test_pictures_that_cannot_be() -> None:
    for values, message in (
        ((0, 4, "shaded", None), "cannot draw 0x4 pixels"),
        ((4096, 4096, "shaded", None), "cannot draw 4096x4096 pixels"),
        ((4, 4, "glass", None), "render 'glass' is not known; it must be one of shaded, depth, normal"),
        ((4, 4, "depth", (0.0, 2.0, 0.0)), r"background \(0.0, 2.0, 0.0\) is not a colour"),
    ):
        with pytest.raises(InputError, match=message):
            check_picture(*values)
