"""Example inputs that ship with the package: condition images of all modalities, each with a track file and a prompt.

The files in this folder are made by `python -m benchmarks.examples` from the synthetic world of the micro backbones.
Importing this module does not import torch.
"""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from anyi2v.errors import InputError, suggestion
from anyi2v.files import atomic, check_place, expanded, read_json
from anyi2v.images.source import ConditionSource

ExampleName = Literal["edge", "depth", "segmentation", "photo", "sketch", "silhouette", "mixed", "mesh", "layers"]
FOLDER = Path(__file__).parent
INDEX = "index.json"
"""Name of the file that lists the examples."""


@dataclass(frozen=True)
class Example:
    """Inputs of a job: condition image, tracks and prompt. Files are named relative to their folder."""

    name: str
    title: str
    """Kind of condition image in words, such as "edge map"."""
    prompt: str
    tracks: str
    image: str | None = None
    layers: tuple[str, ...] = ()
    """Layers `image:mask` instead of an image, the bottom one without a mask."""
    render: Literal["shaded", "depth", "normal"] = "shaded"
    """Rendering style, for a mesh."""
    camera: tuple[float, float, float] = ConditionSource.camera
    """Camera, for a mesh."""

    @property
    def files(self) -> list[str]:
        """Names of all files."""
        images = [self.image] if self.image else [name for layer in self.layers for name in layer.split(":")]
        return [*images, self.tracks]

    def source(self, folder: Path = FOLDER) -> ConditionSource:
        """Return the condition image, with the files in `folder`."""
        image = None if self.image is None else folder / self.image
        layers = tuple(":".join(str(folder / name) for name in layer.split(":")) for layer in self.layers)
        return ConditionSource(image=image, layer=layers, render=self.render, camera=self.camera)

    def arguments(self, folder: Path) -> list[str]:
        """Return the flags of `anyi2v animate` that use the files in `folder`."""
        source, usual = self.source(folder), ConditionSource()
        found = [] if source.image is None else ["--image", str(source.image)]
        found += [part for layer in source.layer for part in ("--layer", layer)]
        found += ["--render", source.render] if source.render != usual.render else []
        found += ["--camera", *(f"{x:g}" for x in source.camera)] if source.camera != usual.camera else []
        return [*found, "--tracks", str(folder / self.tracks), "--prompt", self.prompt]


@cache
def examples() -> dict[str, Example]:
    """Return all examples by name."""
    found = {}
    for entry in read_json(FOLDER / INDEX)["examples"]:
        lists = {key: tuple(entry[key]) for key in ("layers", "camera") if key in entry}
        found[entry["name"]] = Example(**(entry | lists))
    return found


def example(name: str) -> Example:
    """Return an example by name; raises InputError naming all if there is none."""
    if name not in examples():
        known = get_args(ExampleName)
        raise InputError(f"there is no example {name!r}{suggestion(name, known)} (all: {', '.join(known)})")
    return examples()[name]


def copy_examples(folder: Path) -> list[Path]:
    """Copy the files of all examples into `folder` and return their paths.

    Raises InputError if one of them exists already, ResourceError if the folder cannot be written; nothing is copied
    then.
    """
    folder = expanded(folder)
    check_place(folder)
    names = [name for chosen in examples().values() for name in chosen.files]
    if there := [name for name in names if (folder / name).exists()]:
        raise InputError(f"{folder} already has {', '.join(there[:3])}; give another folder, nothing was copied")
    for name in names:
        with atomic(folder / name) as temporary:
            shutil.copyfile(FOLDER / name, temporary)
    return [folder / name for name in names]
