"""Reading of meshes and point clouds, normalised to the unit ball."""

import io
import json
import logging
import re
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.files import expanded

GEOMETRY_SUFFIXES = (".obj", ".off", ".ply", ".stl", ".glb", ".xyz", ".pts", ".npy")
OTHER_MESHES = {
    ".gltf": "it refers to other files; export it as .glb, which holds everything",
    **dict.fromkeys(
        (".fbx", ".dae", ".3ds", ".blend", ".usd", ".usdz", ".usdc", ".usda", ".abc", ".x3d", ".3mf", ".max", ".step"),
        "export it as .glb or .obj, for example from Blender",
    ),
    **dict.fromkeys((".pcd", ".las", ".laz", ".e57"), "convert it to .ply or .xyz, for example with CloudCompare"),
}
"""Suffixes of unsupported meshes and point clouds, with advice."""
MOST_COLUMNS = 16
"""Maximum number of columns of a point array; a wider one is a depth map or another picture."""

MOST_BYTES = 256 << 20
MOST_ELEMENTS = 5_000_000
"""Maximum number of vertices, and of triangles, of a file."""


@dataclass(frozen=True)
class Geometry:
    """A mesh, or a point cloud if there are no faces."""

    vertices: Float[Tensor, "v 3"]
    """Float64, y up, centre of the bounding box at the origin, farthest used vertex at distance 1."""
    faces: Int[Tensor, "f 3"]


def load_geometry(path: str | Path, *, up: Literal["y", "z"] = "y") -> Geometry:
    """Read a mesh (.obj .off .ply .stl .glb) or a point cloud (.ply .xyz .pts, .npy of shape `[n >= 3]`).

    Only the file itself is read, no files that it refers to; colours and textures are ignored.

    Args:
        path: file of at most 256 MiB, with at most 5 million vertices and triangles.
        up: upward axis of the file.

    Raises InputError naming the file if it is missing, broken, too large, empty, or if trimesh is not installed.
    """
    path = expanded(path)
    suffix = path.suffix.lower()
    if suffix in OTHER_MESHES:
        raise InputError(f"cannot read {path}: a {suffix} file is not supported: {OTHER_MESHES[suffix]}")
    if suffix not in GEOMETRY_SUFFIXES:
        raise InputError(f"cannot read {path}: suffix {suffix!r} is none of {', '.join(GEOMETRY_SUFFIXES)}")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path} has {size >> 20} MiB; at most {MOST_BYTES >> 20} are read; simplify it")
        vertices, faces = _read_npy(path) if suffix == ".npy" else _read_mesh(path, suffix)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return _normalised(path, vertices, faces, up)


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        # mapped, so that a header that claims more than the file holds is an error, not an allocation
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        what = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "not one array"
        raise InputError(f"{path} is {what}; points must be numbers of shape (n, 3), further columns are ignored")
    if array.shape[1] > MOST_COLUMNS:
        raise InputError(
            f"{path} has shape {array.shape}, but points have 3 to {MOST_COLUMNS} columns; save a depth map or another "
            "picture as a PNG of 16 bit"
        )
    return np.asarray(array[:, :3]), np.empty((0, 3), dtype=np.int64)


def _read_mesh(path: Path, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    if find_spec("trimesh") is None:
        raise InputError(f"reading {path} needs trimesh: pip install 'anyi2v[mesh]'")
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # its messages are in the error, or irrelevant
    content = path.read_bytes()
    if suffix == ".glb":
        _check_glb(path, content)
    # bytes without a name, so that it cannot look for materials next to the file
    data = io.BytesIO(content)
    options: dict[str, Any] = {"skip_materials": True} if suffix == ".obj" else {}
    if suffix == ".pts":  # like .xyz, but the first line may be the number of points
        data, suffix = io.BytesIO(re.sub(rb"\A\s*\d+\s*\n", b"", content)), ".xyz"
    try:
        scene = trimesh.load_scene(data, file_type=suffix[1:], process=False, **options)
        parts = [_part(*scene.graph[node], scene.geometry) for node in _drawn(path, scene)]
    except InputError:
        raise
    except Exception as error:  # a parser of untrusted files fails in many ways
        raise InputError(f"{path} is not a readable {suffix} file: {type(error).__name__}: {error!s:.200}") from error
    return _joined(path, parts)


def _check_glb(path: Path, content: bytes) -> None:
    """Raise InputError if the header declares arrays that are too large, which the file need not contain."""
    try:
        (length,) = struct.unpack_from("<I", content, 12)  # length of the first chunk, which is JSON
        counts = [array["count"] for array in json.loads(content[20 : 20 + length]).get("accessors", [])]
        largest = max(counts, default=0)
    except Exception as error:
        raise InputError(f"{path} is not a readable .glb file: broken header ({type(error).__name__})") from error
    if largest > 3 * MOST_ELEMENTS:
        raise InputError(
            f"{path} has an array of {largest} elements; at most {3 * MOST_ELEMENTS} are read; simplify it"
        )


def _drawn(path: Path, scene: Any) -> list[Any]:
    """Return the nodes with geometry, checking their total size; a small file may instance a large mesh many times."""
    nodes = list(scene.graph.nodes_geometry)
    total = sum(len(scene.geometry[scene.graph[node][1]].vertices) for node in nodes)
    if total > MOST_ELEMENTS:
        raise InputError(f"{path} has {total} points in all; at most {MOST_ELEMENTS} are drawn; simplify it")
    return nodes


def _part(transform: np.ndarray, name: Any, geometry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices in scene coordinates, and the faces."""
    item = geometry[name]
    vertices = np.asarray(item.vertices, dtype=np.float64).reshape(-1, 3)
    faces = np.asarray(getattr(item, "faces", []), dtype=np.int64).reshape(-1, 3)
    return vertices @ transform[:3, :3].T + transform[:3, 3], faces


def _joined(path: Path, parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate all parts; points are dropped if there are triangles."""
    meshes = [part for part in parts if len(part[1])] or parts
    if not meshes:
        raise InputError(f"{path} has neither triangles nor points")
    offsets = np.cumsum([0, *(len(vertices) for vertices, _ in meshes[:-1])])
    faces = [faces + offset for (_, faces), offset in zip(meshes, offsets, strict=True)]
    return np.concatenate([vertices for vertices, _ in meshes]), np.concatenate(faces)


def _normalised(path: Path, vertices: np.ndarray, faces: np.ndarray, up: str) -> Geometry:
    for array, what in ((vertices, "points"), (faces, "triangles")):
        if len(array) > MOST_ELEMENTS:
            raise InputError(f"{path} has {len(array)} {what}; at most {MOST_ELEMENTS} are drawn; simplify it")
    if not len(vertices):
        raise InputError(f"{path} has neither triangles nor points")
    if len(faces):
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise InputError(f"{path}: a triangle names vertex {faces.max()}, but there are {len(vertices)}")
        used, faces = np.unique(faces, return_inverse=True)
        vertices, faces = vertices[used], faces.reshape(-1, 3)
    points = np.array(vertices, dtype=np.float64)
    bad = ~(np.abs(points) <= 1e100).all(axis=1)  # squares of larger ones overflow
    if bad.any():
        raise InputError(f"{path}: point {int(bad.argmax()) + 1} is {tuple(points[bad.argmax()].tolist())}; not finite")
    if up == "z":
        points = points[:, [0, 2, 1]] * (1, 1, -1)
    points -= (points.min(axis=0) + points.max(axis=0)) / 2
    radius = np.sqrt((points**2).sum(axis=1).max())
    if not radius > 0:
        raise InputError(f"{path} has no extent: all its points are the same")
    return Geometry(torch.from_numpy(points / radius), torch.from_numpy(faces.astype(np.int64)))
