import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.images import raster
from anyi2v.images.raster import BACKGROUNDS, Camera, check_picture, draw

pytest.importorskip("embreex", reason="embreex is not installed: pip install 'anyi2v[mesh]'")

FRONT = Camera(azimuth=0, elevation=0, distance=3, fov=40)
QUAD = torch.tensor([[-0.6, -0.4, 0.0], [0.6, -0.4, 0.0], [0.6, 0.4, 0.0], [-0.6, 0.4, 0.0]], dtype=torch.float64)
QUAD_FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])
POINTS = torch.empty(0, 3, dtype=torch.int64)


def soup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Triangles that intersect each other, in the unit ball."""
    corners = torch.rand(count * 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return corners, torch.arange(count * 3).view(count, 3)


def grid(points: Tensor) -> tuple[Tensor, Tensor]:
    """A closed mesh through `[n m 3]` points whose rows and columns are rings."""
    n, m = points.shape[:2]
    i = torch.arange(n * m).view(n, m)
    right, below = i.roll(-1, 1), i.roll(-1, 0)
    faces = torch.stack([i, right, below, right, below.roll(-1, 1), below], dim=-1)
    return points.reshape(-1, 3), faces.view(-1, 3)


def torus(n: int = 120, m: int = 60) -> tuple[Tensor, Tensor]:
    """Around the z axis, of radii 0.7 and 0.3."""
    u, v = torch.meshgrid(torch.arange(n) * (2 * math.pi / n), torch.arange(m) * (2 * math.pi / m), indexing="ij")
    u, v = u.double(), v.double()
    ring = 0.7 + 0.3 * v.cos()
    return grid(torch.stack([ring * u.cos(), ring * u.sin(), 0.3 * v.sin()], dim=-1))


def sphere(n: int = 200) -> tuple[Tensor, Tensor]:
    """Of radius 1, its corners on it."""
    u, v = torch.meshgrid(torch.arange(n) * (2 * math.pi / n), torch.linspace(0, math.pi, n), indexing="ij")
    u, v = u.double(), v.double()
    points, faces = grid(torch.stack([v.sin() * u.cos(), v.cos(), v.sin() * u.sin()], dim=-1))
    return points, faces.view(n, n, -1)[:, :-1].reshape(-1, 3)  # the last ring is the other pole


def fine_wall(n: int) -> tuple[Tensor, Tensor]:
    """2 n^2 triangles in a square of side 1.2 whose edges lie where rays go."""
    y, x = torch.meshgrid(*[torch.linspace(-0.6, 0.6, n + 1).double()] * 2, indexing="ij")
    i = torch.arange((n + 1) ** 2).view(n + 1, n + 1)
    a, b, c, d = i[:-1, :-1], i[:-1, 1:], i[1:, 1:], i[1:, :-1]
    return torch.stack([x, y, 0 * x], -1).view(-1, 3), torch.stack([a, b, c, a, c, d], -1).view(-1, 3)


def slopes(camera: Camera, width: int, height: int) -> Tensor:
    """Directions of the pixels' rays `[p 3]` at z = -1."""
    focal = min(width, height) / 2 / math.tan(math.radians(camera.fov) / 2)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -torch.ones_like(x)], -1)
    return rays.view(-1, 3).double()


def by_hand(corners: Tensor, camera: Camera, width: int, height: int) -> Tensor:
    """Distance along z of each pixel's ray by Moeller and Trumbore's intersection; inf: nothing hit."""
    eye = torch.tensor([0, 0, camera.distance])
    a, b, c = (camera.turn(corners.reshape(-1, 3)) - eye).view(-1, 3, 3).unbind(1)
    rays = slopes(camera, width, height)[:, None]
    cross = torch.linalg.cross(rays, (c - a)[None].expand(len(rays), -1, -1))
    scale = (cross * (b - a)).sum(-1)
    u = (cross * -a).sum(-1) / scale
    q = torch.linalg.cross(-a, b - a)
    v, distance = (q * rays).sum(-1) / scale, (q * (c - a)).sum(-1) / scale
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    return torch.where(hit, distance, torch.inf).amin(1)


def seen(vertices: Tensor, faces: Tensor, camera: Camera, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Distance along z, inf for nothing, and normal, of each pixel."""
    near, normals = raster._triangles(camera.turn(vertices), faces, camera, width, height)
    return 1 / near, normals


@given(st.integers(1, 30), st.integers(0, 999), st.floats(-180, 180), st.floats(-90, 90), st.integers(1, 40))
def test_the_nearest_triangle_is_seen(count: int, seed: int, azimuth: float, elevation: float, width: int) -> None:
    vertices, faces = soup(count, seed)
    camera = Camera(azimuth, elevation, 2.0)
    distance, _ = seen(vertices, faces, camera, width, 24)
    expected = by_hand(vertices[faces], camera, width, 24)
    # a ray may hit an edge in one computation and miss it in the other
    assert (distance.isfinite() != expected.isfinite()).float().mean() <= 0.01
    both = distance.isfinite() & expected.isfinite()
    # float32, and triangles seen edge-on
    wrong = (distance[both] - expected[both]).abs() > 1e-4
    assert wrong.float().mean() <= 0.01 if both.any() else True


@pytest.mark.parametrize("camera", [Camera(0, 0), Camera(70, -35, 1.5, 90), Camera(10, 20, 1000, 1), Camera(5, 90, 30)])
def test_a_sphere_is_as_far_as_geometry_says(camera: Camera) -> None:
    distance, normals = seen(*sphere(), camera, 61, 61)
    rays = slopes(camera, 61, 61)
    # |(0, 0, d) + t ray| = 1
    square, half = rays.square().sum(-1), camera.distance
    root = half**2 - square * (camera.distance**2 - 1)
    inner = root > 0.02 * half**2 / camera.distance**2  # flat pieces differ much along the outline only
    assert inner.any()
    expected = (half - root.clamp(min=0).sqrt()) / square
    # a chord of 2 pi / 200 lies 5e-4 below the circle; rays meet it at slopes of up to 1 / 0.14
    assert (distance - expected)[inner].abs().max() < 4e-3
    surface = rays * expected[:, None] + torch.tensor([0, 0, camera.distance])
    assert ((normals * surface).sum(-1)[inner] > math.cos(0.03)).all()  # a piece spans 2 pi / 200
    assert distance[root < 0].isinf().all()


@given(st.integers(0, 7), st.integers(2, 64), st.sampled_from([1.2, 3.0, 50.0]))
def test_no_ray_slips_through_between_triangles(quarter: int, n: int, distance: float) -> None:
    camera = Camera(45.0 * quarter, 0, distance)
    vertices = torch.tensor([[0, 0, 0.5], [0, 0, -0.5]]).double()
    # pyramids on both sides of a square ring: rays go exactly along edges and through corners
    ring = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]).double()
    faces = torch.tensor([[a + 2, (a + 1) % 4 + 2, tip] for tip in (0, 1) for a in range(4)])
    solid, _ = seen(torch.cat([vertices, ring]), faces, camera, 64, 64)
    rows = solid.isfinite().view(64, 64).int()
    assert (rows.diff(dim=1).abs().sum(1) <= 2).all()  # convex: one piece in each row and column
    assert (rows.diff(dim=0).abs().sum(0) <= 2).all()
    wall, _ = seen(*fine_wall(n), Camera(0, 0, distance, 2 * math.degrees(math.atan(0.5 / distance))), 64, 64)
    assert wall.isfinite().all()
    assert (wall - distance).abs().max() < 1e-6


def test_a_torus_has_one_hole_and_no_cracks() -> None:
    ring = torus(600, 200)
    for camera in (Camera(0, 0), Camera(0, 0, 1.5, 80), Camera(0, 0, 200, 1)):
        distance, _ = seen(*ring, camera, 512, 512)
        radius = slopes(camera, 512, 512)[:, :2].norm(dim=1) * camera.distance
        # rays that touch it meet z = 0 at a radius of 0.7 -+ 0.3 / cos(slope): at most 0.4, at least 1
        solid = (radius > 0.405) & (radius < 0.995)
        # without Embree's robust mode, some rays are lost between triangles
        assert distance[solid].isfinite().all()
        assert distance[radius < 0.38].isinf().all()


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 999), st.sampled_from([1, 7, 100]))
def test_chunks_do_not_matter(count: int, seed: int, chunk: int) -> None:
    vertices, faces = soup(count, seed)
    for elements in (faces, POINTS):
        whole = draw(vertices, elements, 12, 8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raster, "CHUNK", chunk)
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


def test_the_same_bytes_on_any_number_of_threads() -> None:
    ring = torus(600, 300)
    pictures = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        pictures.append(draw(*ring, 96, 64))
    torch.set_num_threads(1)
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize("style", BACKGROUNDS)
@pytest.mark.parametrize("points", [False, True])
def test_more_samples_change_the_edges_only(style: raster.Style, points: bool) -> None:
    # few points: crowds of balls smaller than a pixel look different on other samples
    vertices, faces = sphere(8 if points else 60)
    pictures = []
    for samples in (2, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(raster, "SAMPLES", samples)
            pictures.append(draw(vertices, POINTS if points else faces, 64, 64, style=style))
    difference = (pictures[0] - pictures[1]).abs().amax(0)
    # measured: 0.0033 to 0.0103, and 0.07 to 0.25 at an edge, where one of four samples more or less counts
    assert difference.mean() < 0.015
    assert difference.max() < 0.35


@pytest.mark.parametrize("azimuth", [0.0, 37.0, -120.0])
def test_turning_the_camera_is_turning_the_object(azimuth: float) -> None:
    vertices, faces = torus()
    camera = Camera(azimuth, 0)
    still = draw(camera.turn(vertices), faces, 48, 48, camera=Camera(0, 0))
    assert (draw(vertices, faces, 48, 48, camera=camera) - still).abs().mean() < 1e-3
    # twice as far, half as large (in angles that are small)
    sizes = [int((draw(vertices, faces, 96, 96, camera=Camera(azimuth, 20, d, 10))[0] < 1).sum()) for d in (20, 40)]
    assert sizes[0] / sizes[1] == pytest.approx(4, rel=0.15)


def test_tiny_triangles_have_normals_too() -> None:
    # they span 1e-8: their area is far below what float32 tells from zero beside 1
    camera = Camera(0, 0, 1.01, 1)
    tiny = QUAD * 1e-8
    assert torch.allclose(seen(tiny, QUAD_FACES, camera, 1, 1)[1], torch.tensor([[0.0, 0.0, 1.0]]))


def test_a_wall_is_where_the_projection_says() -> None:
    picture = draw(QUAD, QUAD_FACES, 60, 40, camera=FRONT)
    # 1.2 x 0.8 at distance 3, seen by 20 / tan(20 degrees) px per unit at distance 1
    focal = 20 / math.tan(math.radians(20))
    dark = picture[0] < 1
    rows, columns = torch.nonzero(dark.any(1))[:, 0], torch.nonzero(dark.any(0))[:, 0]
    for low, high, size, middle in ((columns[0], columns[-1], 1.2, 30), (rows[0], rows[-1], 0.8, 20)):
        assert abs(int(low) - (middle - focal * size / 6)) <= 1
        assert abs(int(high) + 1 - (middle + focal * size / 6)) <= 1
    for axis in (1, 2):
        assert torch.allclose(picture, picture.flip(axis), atol=1e-6)


def test_styles_of_a_wall_that_faces_the_viewer() -> None:
    normal = draw(QUAD, QUAD_FACES, 8, 8, style="normal", camera=FRONT)
    assert torch.allclose(normal, torch.tensor([0.5, 0.5, 1.0])[:, None, None].expand(3, 8, 8))
    assert draw(QUAD, QUAD_FACES, 8, 8, style="depth", camera=FRONT)[:, 4, 4].tolist() == [1, 1, 1]
    for style in BACKGROUNDS:
        assert torch.equal(
            draw(QUAD, QUAD_FACES.flip(1), 8, 8, style=style, camera=FRONT),
            draw(QUAD, QUAD_FACES, 8, 8, style=style, camera=FRONT),
        )


@pytest.mark.parametrize("azimuth", [37.0, 111.0])
def test_rounding_is_no_depth(azimuth: float) -> None:
    camera = Camera(azimuth, 0)
    facing = Camera(-azimuth, 0).turn(QUAD)
    depth = draw(facing, QUAD_FACES, 32, 32, style="depth", camera=camera)[0]
    # 0.8 of the brightness for 1e-4 radii, and float32's 1e-7
    assert depth[12:20, 12:20].min() > 0.99


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
        assert camera.turn(dot)[0, axis] * sign > 0.2
    right = torch.tensor([[0.9, 0, 0]], dtype=torch.float64)
    assert Camera(azimuth=90, elevation=0).turn(right)[0].tolist() == pytest.approx([0, 0, 0.9], abs=1e-12)


@given(st.floats(-180, 180), st.floats(-90, 90), st.sampled_from([(120, 80), (80, 120)]))
def test_the_whole_object_is_seen_by_default(azimuth: float, elevation: float, size: tuple[int, int]) -> None:
    picture = draw(*sphere(40), *size, style="depth", camera=Camera(azimuth, elevation))[0]
    border = torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert not border.any()
    # the unit ball's outline, of half-angle asin(1 / 3) in one of 20 degrees
    extent = int((picture > 0).any(1).sum())
    assert extent == pytest.approx(80 * math.tan(math.asin(1 / 3)) / math.tan(math.radians(20)), abs=2)


def test_points_are_balls() -> None:
    one = torch.zeros(1, 3, dtype=torch.float64)
    # of a 16th of the side: 10 px around the middle
    shaded, normal = (draw(one, POINTS, 161, 161, style=s, camera=FRONT) for s in ("shaded", "normal"))
    assert torch.allclose(normal[:, 80, 80], torch.tensor([0.5, 0.5, 1.0]), atol=0.02)
    assert normal[0, 80, 87] > 0.7  # the right side faces right
    assert normal[1, 73, 80] > 0.7  # the upper side faces up
    assert shaded[0, 75, 76] > shaded[0, 85, 84]  # lit from the upper left
    assert int((shaded[0] < 1).sum()) == pytest.approx(math.pi * (161 / 16) ** 2, rel=0.1)


def test_points_hide_what_lies_behind() -> None:
    pair = torch.tensor([[0, 0, -0.5], [0.02, 0, 0.5]], dtype=torch.float64)
    for order in (pair, pair.flip(0)):
        near, normals = raster._balls(order, FRONT, 64, 64)
        # a ball's radius is 1/16 of 64 px = 4 px, which is 4 * 3 / focal = 0.1365 at distance 3
        assert 1 / near.max() == pytest.approx(2.5 - 0.1365, abs=2e-3)
        assert torch.allclose(normals[near > 0].norm(dim=1), torch.ones(1), atol=1e-5)


def test_nothing_in_view_is_the_background() -> None:
    away = Camera(azimuth=0, elevation=0, distance=1.5, fov=1)
    corner = torch.tensor([[0.5, 0.5, 0], [0.6, 0.5, 0], [0.5, 0.6, 0]], dtype=torch.float64)
    for style, colour in BACKGROUNDS.items():
        picture = draw(corner, torch.tensor([[0, 1, 2]]), 4, 4, style=style, camera=away)
        assert torch.equal(picture, torch.tensor(colour)[:, None, None].expand(3, 4, 4))
    for edge_on in (corner[:, [2, 2, 1]], corner[[0, 0, 0]], corner.flip(0) * 0):
        assert torch.equal(draw(edge_on, torch.tensor([[0, 1, 2]]), 4, 4, camera=Camera(0, 0)), torch.ones(3, 4, 4))
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
