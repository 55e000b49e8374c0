import base64
import io
import json
import re
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.images import geometry
from anyi2v.images.geometry import GEOMETRY_SUFFIXES, Geometry, load_geometry

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'anyi2v[mesh]'")


def wedge():
    """A mesh without symmetry."""
    vertices = [[0, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]]
    return trimesh.Trimesh(vertices, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], process=False)


def triangles(shape: Geometry) -> set[tuple[tuple[float, ...], ...]]:
    """The triangles as sets of corners, whatever the order."""
    corners = shape.vertices[shape.faces].numpy().round(5) + 0.0
    return {tuple(sorted(map(tuple, triangle.tolist()))) for triangle in corners}


@pytest.mark.parametrize("suffix", [".obj", ".off", ".ply", ".stl", ".glb"])
def test_a_mesh_is_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    wedge().export(tmp_path / f"a{suffix}")
    shape = load_geometry(tmp_path / f"a{suffix}")
    # the box's middle is (2, 1, 0.5), and its farthest vertex (4, 0, 0)
    expected = (wedge().triangles - (2, 1, 0.5)) / np.sqrt(2**2 + 1 + 0.5**2)
    assert triangles(shape) == {tuple(sorted(map(tuple, (t.round(5) + 0.0).tolist()))) for t in expected}


@given(st.floats(1e-6, 1e6), st.tuples(*[st.floats(-1e3, 1e3)] * 3))
def test_size_and_place_do_not_matter(scale: float, shift: tuple[float, float, float]) -> None:
    vertices, faces = np.array(wedge().vertices), np.array(wedge().faces)
    plain = geometry._normalised(Path("a"), vertices, faces, "y")
    moved = geometry._normalised(Path("a"), (vertices + shift) * scale, faces, "y")
    # float64 keeps 13 digits of coordinates up to 1000
    assert torch.allclose(plain.vertices, moved.vertices, atol=1e-10)
    assert float(plain.vertices.norm(dim=1).max()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".pts", ".npy"])
def test_points_without_triangles_are_a_cloud(tmp_path: Path, suffix: str) -> None:
    points = np.random.default_rng(0).random((50, 3))
    path = tmp_path / f"a{suffix}"
    if suffix == ".ply":
        trimesh.PointCloud(points).export(path)
    elif suffix == ".xyz":
        np.savetxt(path, points)
    elif suffix == ".pts":  # a line with their number, and columns of intensity and colour
        more = np.random.default_rng(1).integers(0, 256, (50, 4))
        np.savetxt(path, np.concatenate([points, more], axis=1), header="50", comments="")
    else:
        np.save(path, np.concatenate([points, points], axis=1))  # further columns are ignored
    shape = load_geometry(path)
    assert shape.faces.shape == (0, 3)
    middle = (points.min(0) + points.max(0)) / 2
    expected = (points - middle) / np.linalg.norm(points - middle, axis=1).max()
    assert np.abs(shape.vertices.numpy() - expected).max() < 1e-6  # .ply may hold float32


def test_an_array_as_wide_as_a_picture_is_no_list_of_points(tmp_path: Path) -> None:
    np.save(tmp_path / "depth.npy", np.zeros((48, 64)))
    with pytest.raises(InputError, match=r"has shape \(48, 64\), but points have 3 to 16 columns; save a depth map"):
        load_geometry(tmp_path / "depth.npy")


def test_up(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.0, 0, -1], [0, 0, 1]]))
    assert load_geometry(tmp_path / "a.npy", up="z").vertices[1].tolist() == [0, 1, 0]
    assert load_geometry(tmp_path / "a.npy").vertices[1].tolist() == [0, 0, 1]
    # a rotation: no mirror image
    np.save(tmp_path / "b.npy", np.eye(3) * 2 - 1)
    before, after = (load_geometry(tmp_path / "b.npy", up=up).vertices for up in ("y", "z"))
    assert torch.linalg.det(before) * torch.linalg.det(after) > 0


def test_scenes_are_put_together(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for x in (-3, 3):
        scene.add_geometry(wedge(), transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    scene.export(tmp_path / "a.glb")
    shape = load_geometry(tmp_path / "a.glb")
    assert len(shape.faces) == 8
    assert float(shape.vertices[:, 0].max()) == pytest.approx(-float(shape.vertices[:, 0].min()))


def test_vertices_of_no_triangle_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 99 99 99\nf 1 2 3\n")
    assert len(load_geometry(tmp_path / "a.obj").vertices) == 3


def test_other_files_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text("mtllib ../secret.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    opened = []
    real = io.open

    def spy(file, *args, **options):
        opened.append(str(file))
        return real(file, *args, **options)

    with patch("io.open", spy), patch("builtins.open", spy):
        load_geometry(path)
    assert not [name for name in opened if "secret" in name]


def glb(tree: dict[str, object]) -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON") + text


def test_small_files_of_large_scenes_are_refused(tmp_path: Path) -> None:
    corners = base64.b64encode(np.eye(3, dtype=np.float32).tobytes()).decode()
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": 36, "uri": f"data:application/octet-stream;base64,{corners}"}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0} for _ in range(30)],
        "scenes": [{"nodes": list(range(30))}],
        "scene": 0,
    }
    path = tmp_path / "a.glb"
    path.write_bytes(glb(tree))
    assert len(load_geometry(path).vertices)
    with patch.object(geometry, "MOST_ELEMENTS", 50), pytest.raises(InputError, match=r"a\.glb has 90 points in all"):
        load_geometry(path)


def test_arrays_that_are_only_claimed_are_refused(tmp_path: Path) -> None:
    tree = {"asset": {"version": "2.0"}, "accessors": [{"componentType": 5126, "count": 10**9, "type": "VEC3"}]}
    path = tmp_path / "a.glb"
    path.write_bytes(glb(tree))
    with pytest.raises(InputError, match=r"a\.glb has an array of 1000000000 elements; at most 15000000 are read"):
        load_geometry(path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    files = {
        "nan.npy": (np.full((4, 3), np.nan), r"point 1 is \(nan, nan, nan\); not finite"),
        "huge.npy": (np.array([[0, 0, 0], [0, 1e300, 0]]), "point 2 is"),
        "same.npy": (np.ones((4, 3)), "has no extent: all its points are the same"),
        "none.npy": (np.ones((0, 3)), "has neither triangles nor points"),
        "flat.npy": (np.ones((4, 2)), r"is float64 of shape \(4, 2\); points must be numbers of shape \(n, 3\)"),
        "text.npy": (np.array([["a", "b", "c"]]), "points must be numbers"),
        "any.npy": (np.array([[{}, {}, {}]], dtype=object), "is not a .npy file of numbers"),
    }
    for name, (array, _) in files.items():
        np.save(tmp_path / name, array, allow_pickle=True)
    texts = {
        "empty.obj": ("", "is not a readable .obj file|has neither"),
        "outside.obj": ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "is not a readable .obj file|names vertex"),
        "nothing.ply": ("ply", "is not a readable .ply file"),
        "a.fbx": ("", r"a \.fbx file is not supported: export it as \.glb or \.obj"),
        "a.off2": ("", r"suffix '.off2' is none of .obj, .off, .ply, .stl, .glb, .xyz, .pts, .npy"),
    }
    for name, (text, _) in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.obj").mkdir()
    others = {"absent.obj": (None, "No such file"), "folder.obj": (None, "Is a directory")}
    for name, (_, reason) in (files | texts | others).items():
        with pytest.raises(InputError, match=f"{re.escape(str(tmp_path / name))}.*({reason})"):
            load_geometry(tmp_path / name)


def test_too_much_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((20, 3)))
    with patch.object(geometry, "MOST_ELEMENTS", 19), pytest.raises(InputError, match="has 20 points; at most 19"):
        load_geometry(tmp_path / "a.npy")
    with patch.object(geometry, "MOST_BYTES", 100), pytest.raises(InputError, match="at most 0 are read; simplify it"):
        load_geometry(tmp_path / "a.npy")


def test_without_trimesh_the_way_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\n")
    with (
        patch.object(geometry, "find_spec", lambda _: None),
        pytest.raises(InputError, match=r"needs trimesh: pip install 'anyi2v\[mesh\]'"),
    ):
        load_geometry(tmp_path / "a.obj")


def test_suffixes_are_all_read() -> None:
    assert set(GEOMETRY_SUFFIXES) == {".obj", ".off", ".ply", ".stl", ".glb", ".xyz", ".pts", ".npy"}
