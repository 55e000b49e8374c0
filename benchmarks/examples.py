"""Example inputs of the package: `python -m benchmarks.examples [FOLDER]` writes src/anyi2v/examples or another folder.

The scenes are test cases of the synthetic world: their objects start where the condition image shows them, and have
other colours in the prompt than in a photo.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyi2v.examples import FOLDER, INDEX
from anyi2v.files import atomic
from anyi2v.images.media import write_image
from anyi2v.images.raster import Camera
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.solids import prism
from anyi2v.micro.world.world import Modality, object_masks, still
from anyi2v.tracks import Tracks

PICTURES: tuple[tuple[Modality, str, int], ...] = (
    ("edge", "edge map", 1126),
    ("depth", "depth map", 1141),
    ("segmentation", "segmentation", 1100),
    ("photo", "photo", 1006),
    ("sketch", "sketch", 1014),
    ("silhouette", "silhouette", 1023),
    ("mixed", "mixed modalities", 1030),
)
"""Modality, title and number of each test case; the first three are those of `anyi2v demo`."""
MESH, LAYERS = 1042, 1051
"""Numbers of the test cases of the mesh and of the layers."""
DIRECTION = Camera(15, 10)
"""Direction from which the mesh is seen."""


def main(folder: Path) -> None:
    """Write all examples and their index."""
    entries = [_picture(folder, *case) for case in PICTURES] + [_mesh(folder), _layers(folder)]
    with atomic(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({"examples": entries}, indent=1) + "\n", encoding="utf-8")


def _picture(folder: Path, modality: Modality, title: str, seed: int) -> dict[str, Any]:
    case = make_case(seed, modality)
    write_image(folder / f"{modality}.png", case.image)
    return {**_entry(folder, modality, title, case), "image": f"{modality}.png"}


def _mesh(folder: Path) -> dict[str, Any]:
    """Write a prism as a mesh, in the centre of the frame and of the size of its box."""
    case = make_case(MESH, "depth", "mesh")
    (sprite,), size = case.scene.sprites, case.scene.size
    vertices, faces = prism(sprite.shape, sprite.angle)
    lines = [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in vertices.tolist()]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces.tolist()]
    with atomic(folder / "mesh.obj") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    distance = round(DIRECTION.focal(size, size) / sprite.radii[0], 1)
    look = {"render": "depth", "camera": [DIRECTION.azimuth, DIRECTION.elevation, distance]}
    return {**_entry(folder, "mesh", "mesh, drawn as a depth map", case), "image": "mesh.obj", **look}


def _layers(folder: Path) -> dict[str, Any]:
    """Write the background of a depth map, and a photo of the object with its mask."""
    case = make_case(LAYERS, "photo")
    first = still(case.scene, 0)
    pictures: dict[str, Tensor] = {
        "layers-bottom.png": render(replace(first, sprites=()), "depth")[0],
        "layers-top.png": case.image,
        "layers-mask.png": torch.stack(object_masks(first)).any(0)[:1].expand(3, -1, -1).float(),
    }
    for name, picture in pictures.items():
        write_image(folder / name, picture)
    bottom, top, mask = pictures
    return {**_entry(folder, "layers", "layers: a photo on a depth map", case), "layers": [bottom, f"{top}:{mask}"]}


def _entry(folder: Path, name: str, title: str, case: Case) -> dict[str, Any]:
    """Write the track file; return what all entries of the index have."""
    with atomic(folder / f"{name}.json") as temporary:
        temporary.write_text(written(case.tracks), encoding="utf-8")
    return {"name": name, "title": title, "prompt": case.prompt, "tracks": f"{name}.json"}


def written(tracks: Tracks) -> str:
    """Return tracks as JSON for readers: one box per line, in tenths of a pixel, without masks."""
    objects = [replace(track, mask=None) for track in tracks.objects]
    data = json.loads(json.dumps(replace(tracks, objects=tuple(objects)).to_dict()), parse_float=_tenths)
    return re.sub(r"\[\s+([^][]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(data, indent=1)) + "\n"


def _tenths(number: str) -> float:
    return round(float(number), 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
