"""Whatever a file holds and whatever flags say: a picture, or an InputError that names the file. In one process."""

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig
from anyi2v.cli.condition import ConditionFlags
from anyi2v.errors import InputError
from anyi2v.images.conditions import Layer, load_condition
from anyi2v.images.fit import Fit

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'anyi2v[mesh]'")

PIXELS = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
FORMATS = ("png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm", "ico", "tga")
MESHES = ("obj", "ply", "plya", "stl", "stla", "glb", "xyz", "npy")


def image_file(kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, format=kind)
    return data.getvalue()


def mesh_file(kind: str) -> bytes:
    mesh = trimesh.creation.icosphere(subdivisions=1)
    if kind == "npy":
        data = io.BytesIO()
        np.save(data, mesh.vertices)
        return data.getvalue()
    if kind == "xyz":
        return "\n".join(" ".join(map(str, row)) for row in mesh.vertices.tolist()).encode()
    name, options = {"plya": ("ply", {"encoding": "ascii"}), "stla": ("stl_ascii", {})}.get(kind, (kind, {}))
    made = mesh.export(file_type=name, **options)
    return made.encode() if isinstance(made, str) else made


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Cut, overwritten in places, with a hole, doubled, with other numbers, or nothing of it left."""
    array = bytearray(data)
    match random.integers(0, 7):
        case 0:
            return data[: random.integers(0, len(data))]
        case 1 | 2:
            head = min(len(data), 120)  # headers are where lies hurt
            for _ in range(random.integers(1, 6)):
                array[random.integers(0, head)] = random.integers(0, 256)
        case 3:
            for _ in range(random.integers(1, 20)):
                array[random.integers(0, len(array))] = random.integers(0, 256)
        case 4:
            start = random.integers(0, len(array))
            del array[start : start + random.integers(1, 40)]
        case 5:
            for digit in (b"1", b"3", b"4"):
                if random.random() < 0.5:
                    number = random.choice([b"-1", b"99999999999", b"1e400", b"nan", b"0", b""])
                    array = bytearray(bytes(array).replace(digit, number, int(random.integers(1, 3))))
        case _:
            return random.bytes(int(random.integers(0, 200)))
    return bytes(array)


def outcome(path: Path, layers: list[Layer]) -> str:
    """Runs it: "picture" or "refused"; fails on any other exception, and on messages without the file."""
    return result(lambda: load_condition(layers, 16, 12), re.escape(path.name))


def result(make: Callable[[], tuple[Tensor, Fit]], names: str) -> str:
    """As `outcome`, for errors that have the pattern `names`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow and numpy warn about some of the files
            picture, fit = make()
    except InputError as error:
        return refused(str(error), names)
    assert picture.shape == (3, fit.height, fit.width)
    assert 0 <= picture.min() <= picture.max() <= 1
    return "picture"


def refused(message: str, names: str) -> str:
    assert re.search(names, message), message
    return "refused"


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images(tmp_path: Path, kind: str) -> None:
    whole, random = image_file(kind), np.random.default_rng(FORMATS.index(kind))
    found: Counter[str] = Counter()
    for number in range(60):
        path = tmp_path / f"{number}.png"
        path.write_bytes(damaged(whole, random))
        found[outcome(path, [Layer(path)])] += 1
    assert found["refused"] >= 5  # the damage is real


@pytest.mark.parametrize("kind", MESHES)
def test_damaged_meshes(tmp_path: Path, kind: str) -> None:
    whole, random = mesh_file(kind), np.random.default_rng(MESHES.index(kind))
    found: Counter[str] = Counter()
    for number in range(60):
        path = tmp_path / f"{number}.{kind[:3]}"
        path.write_bytes(damaged(whole, random))
        found[outcome(path, [Layer(path)])] += 1
    assert found["refused"] >= 5


def test_damaged_masks(tmp_path: Path) -> None:
    random, good = np.random.default_rng(0), tmp_path / "good.png"
    good.write_bytes(image_file("png"))
    found: Counter[str] = Counter()
    for number in range(100):
        path = tmp_path / f"{number}.png"
        size = tuple(random.integers(1, 14, 2)) if random.random() < 0.5 else (9, 12)
        values = random.integers(0, 2, size) * 255 * random.integers(0, 2)
        data = io.BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(data, format="png")
        path.write_bytes(damaged(data.getvalue(), random) if random.random() < 0.4 else data.getvalue())
        found[outcome(path, [Layer(good), Layer(good, path)])] += 1
    assert found["refused"] >= 20
    assert found["picture"] >= 5


def shown(flags: ConditionFlags) -> tuple[Tensor, Fit]:
    return load_condition(**flags.condition(BackboneConfig(name="any", width=16, height=16)))


def test_any_flags(tmp_path: Path) -> None:
    """Flags are usable, or the error names one of them, its file or its value."""
    random, image, mesh = np.random.default_rng(0), tmp_path / "i.png", tmp_path / "m.ply"
    image.write_bytes(image_file("png"))
    mesh.write_bytes(mesh_file("ply"))
    numbers = (0.0, -1.0, 1.0, 3.0, 40.0, 1e9, -1e9, 1e-9, math.inf, -math.inf, math.nan)
    texts = (
        str(image),
        str(mesh),
        f"{image}:{image}",
        f"{mesh}:{image}",
        "",
        ":",
        "a:",
        ":a",
        "nix.png",
        f"{image}:nix",
    )
    sizes = (None, 0, -4, 3, 4, 8, 12, 16, 20, 10**9)
    found: Counter[str] = Counter()

    def some(options: tuple, chance: float = 0.5):
        return options[random.integers(0, len(options))] if random.random() < chance else options[0]

    for _ in range(200):
        flags = ConditionFlags(
            image=some((mesh, image, None, tmp_path, tmp_path / "nix.obj")),
            layer=tuple(some(texts, 1.0) for _ in range(random.integers(0, 3))),
            fit=some(("crop", "pad", "stretch")),
            width=some(sizes, 0.2),
            height=some(sizes, 0.2),
            extract=some((None, "edges"), 0.2),
            render=some(("shaded", "depth", "normal")),
            camera=tuple(float(some((1.5, *numbers), 0.2)) for _ in range(3)),  # pyright: ignore[reportArgumentType]
            fov=float(some((40.0, *numbers), 0.2)),
            up=some(("y", "z")),
            background=some((None, (0.5, 0.5, 0.5), (2.0, 0.0, 0.0), (0.0, math.nan, 0.0)), 0.3),
        )
        names = r"camera: (azimuth|elevation|distance|fov)|px|draw|size|layer|background|image|mask|m\.ply|nix"
        found[result(partial(shown, flags), names)] += 1
    assert min(found["refused"], found["picture"]) >= 20
