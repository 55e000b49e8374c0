"""Condition images built from image files, rendered geometry, several layers, or the edges of a photo."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.images.fit import Fit, Mode, fit_image, plan
from anyi2v.images.geometry import GEOMETRY_SUFFIXES, OTHER_MESHES, load_geometry
from anyi2v.images.hed import soft_edges
from anyi2v.images.media import check_image, from_bytes, load_image, to_bytes
from anyi2v.images.raster import Camera, Style, check_picture, draw

LEAST_SEEN = 0.2
"""Minimum of a mask's brightest pixel; masks with 0 and 1 instead of 0 and 255 are common."""

LEAST_EDGE = 0.5
"""Minimum of the brightest pixel of the edges; HED responds weakly to plain surfaces too."""


@dataclass(frozen=True)
class Look:
    """Settings for rendering geometry; raises InputError for an invalid style or background."""

    style: Style = "shaded"
    camera: Camera = field(default_factory=Camera)
    up: Literal["y", "z"] = "y"
    """Upward axis of the file."""
    background: tuple[float, float, float] | None = None
    """Red, green, blue in [0, 1]; None: white, black for depth, the colour of a front-facing wall for normals."""

    def __post_init__(self) -> None:
        check_picture(1, 1, self.style, self.background)


@dataclass(frozen=True)
class Layer:
    """An image or geometry file, visible everywhere or where the image `mask` is white."""

    path: Path
    mask: Path | None = None

    @staticmethod
    def parse(text: str) -> "Layer":
        """Parse "image" or "image:mask"; existing files with colons in their names and drives (`C:\\`) are handled.

        Raises InputError if the image or the mask is empty.
        """
        colons = [i for i, letter in enumerate(text) if letter == ":"]
        if not colons or _exists(text):
            return Layer(Path(text))
        for i in reversed(colons):
            if _exists(text[:i]) and _exists(text[i + 1 :]):
                return Layer(Path(text[:i]), Path(text[i + 1 :]))
        colons = [i for i in colons if not _DRIVE.search(text[: i + 2])]
        if not colons:
            return Layer(Path(text))
        path, mask = text[: colons[-1]], text[colons[-1] + 1 :]
        if not path or not mask:
            raise InputError(f"layer {text!r} is not usable; write image.png, or image.png:mask.png")
        return Layer(Path(path), Path(mask))


_DRIVE = re.compile(r"(^|:)[A-Za-z]:[\\/]$")


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except OSError:  # too long for a file name
        return False


def load_condition(
    layers: Sequence[Layer],
    width: int,
    height: int,
    *,
    fit: Mode = "crop",
    look: Look | None = None,
    extract: Literal["edges", "hed"] | None = None,
    stretch: bool = False,
) -> tuple[Float[Tensor, "3 {height} {width}"], Fit]:
    """Load a condition image of the given size, rounded to 8 bit, and the placement of the first file in it.

    Args:
        layers: from the bottom up; all but the first need a mask. A mask has its image's size and is fitted in the same
            way; for geometry, which is rendered at the requested size, it may have any size.
        width: width of the condition image.
        height: height of the condition image.
        fit: treatment of other aspect ratios.
        look: settings for rendering geometry.
        extract: replaces the first file by its edges, see `edges` and `soft_edges`.
        stretch: map the lowest and highest value of each image file to 0 and 1, see `load_image`.

    Raises InputError naming the file that cannot be read, fitted or rendered, or the layer without a mask.
    """
    if not layers:
        raise InputError("the condition has no layers; give at least one image")
    for number, layer in enumerate(layers[1:], 2):
        if layer.mask is None:
            raise InputError(f"layer {number} ({layer.path}) needs a mask: write {layer.path}:mask.png")
    fitted = [_load_layer(layer, width, height, fit, look or Look(), stretch) for layer in layers]
    pictures = [(image, mask) for image, mask, _ in fitted]
    place = fitted[0][2]
    if extract:
        extractor = soft_edges if extract == "hed" else edges
        pictures[0] = _edges_of(layers[0].path, pictures[0][0], place, extractor), pictures[0][1]
    return from_bytes(to_bytes(compose(pictures))), place


def compose(layers: Sequence[tuple[Tensor, Tensor | None]]) -> Float[Tensor, "3 h w"]:
    """Composite images: each covers the previous ones with its mask as opacity.

    Uncovered areas are white, like paper.

    Args:
        layers: images `[3 h w]` in [0, 1], each with its mask `[h w]` in [0, 1], or None to cover everything.

    Raises InputError naming the layer if its values are not usable or its size differs from the first one's.
    """
    if not layers:
        raise InputError("the condition has no layers; give at least one image")
    size = layers[0][0].shape
    picture = torch.ones(size)
    for number, (image, mask) in enumerate(layers, 1):
        _check_layer(number, image, torch.ones(size[1:]) if mask is None else mask, size)
        picture = image if mask is None else picture + (image - picture) * mask
    return picture.clamp(0, 1)


def _check_layer(number: int, image: Tensor, mask: Tensor, size: torch.Size) -> None:
    for what, shape, wanted in (("image", image.shape, size), ("mask", mask.shape, size[1:])):
        if shape != wanted:
            raise InputError(f"layer {number}: its {what} has shape {tuple(shape)}; it must be {tuple(wanted)}")
    try:
        check_image(image)
    except InputError as error:
        raise InputError(f"layer {number}: {error}") from error
    if not mask.is_floating_point() or not ((mask >= 0) & (mask <= 1)).all():
        raise InputError(f"layer {number}: its mask is {mask.dtype}, or not all in [0, 1]; it must be float in [0, 1]")


def render(path: str | Path, width: int, height: int, look: Look | None = None) -> Float[Tensor, "3 {height} {width}"]:
    """Render a mesh (.obj .off .ply .stl .glb) or point cloud (.ply .xyz .pts .npy) to a picture in [0, 1].

    On the same machine, the same file and look give identical bytes. Raises InputError naming the file if it cannot be
    read, or if embreex is needed and missing.
    """
    look = look or Look()
    check_picture(width, height, look.style, look.background)
    shape = load_geometry(path, up=look.up)
    if len(shape.faces) and find_spec("embreex") is None:
        raise InputError(f"drawing {path} needs embreex: pip install 'anyi2v[mesh]'")
    options = {"style": look.style, "camera": look.camera, "background": look.background}
    return draw(shape.vertices, shape.faces, width, height, **options)


def load_mask(path: str | Path) -> Float[Tensor, "h w"]:
    """Load an image as a mask: 1 where it is white, 0 where it is black or transparent.

    Raises InputError naming the file if it cannot be read or selects nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnyI2VWarning)  # about a small range, because a mask cannot be stretched
        mask = load_image(path, paper=0.0).mean(0)
    if not mask.any():
        raise InputError(f"mask {path} is black everywhere, so its layer is invisible; paint visible areas white")
    if (brightest := mask.max().item()) < LEAST_SEEN:
        warnings.warn(
            f"mask {path} has values up to {255 * brightest:.0f} of 255 only, so its layer hardly shows; white is 255",
            AnyI2VWarning,
            stacklevel=2,
        )
    return mask


def edges(
    image: Float[Tensor, "3 h w"], *, sigma: float = 1.0, low: float = 0.1, high: float = 0.2
) -> Float[Tensor, "3 h w"]:
    """Extract edges by scikit-image's Canny detector, as white lines on black, one or two pixels wide.

    Args:
        image: in [0, 1].
        sigma: standard deviation of the preceding blur, in pixels.
        low: lines are extended while the gradient (change of brightness per pixel) is above this.
        high: lines start where the gradient is above this.

    Raises InputError if scikit-image is not installed.
    """
    if find_spec("skimage") is None:
        raise InputError("edges need scikit-image: pip install 'anyi2v[edges]'")
    from skimage.feature import canny

    lines = canny(image.mean(0).numpy(), sigma=sigma, low_threshold=low, high_threshold=high)
    return torch.from_numpy(lines).float().expand_as(image).clone()


def _edges_of(
    path: Path, image: Float[Tensor, "3 h w"], place: Fit, extractor: Callable[[Tensor], Tensor]
) -> Float[Tensor, "3 h w"]:
    """Extract the edges inside `place.target`, without an edge towards the padding."""
    x0, y0, x1, y1 = place.target
    picture = torch.zeros_like(image)
    picture[:, y0:y1, x0:x1] = extractor(image[:, y0:y1, x0:x1])
    if picture.max() < LEAST_EDGE:
        raise InputError(f"{path} has no edges to extract at {place.width}x{place.height} px; use it as it is")
    return picture


def _load_layer(
    layer: Layer, width: int, height: int, fit: Mode, look: Look, stretch: bool
) -> tuple[Tensor, Tensor | None, Fit]:
    geometry = layer.path.suffix.lower() in (*GEOMETRY_SUFFIXES, *OTHER_MESHES)
    if geometry:
        image, place = render(layer.path, width, height, look), plan((width, height), width, height, fit)
    else:
        source = load_image(layer.path, stretch=stretch)
        image, place = fit_image(source, width, height, fit)
    if layer.mask is None:
        return image, None, place
    mask = load_mask(layer.mask)
    size = (mask.shape[1], mask.shape[0])
    if not geometry and size != place.source:
        raise InputError(
            f"mask {layer.mask} has {size[0]}x{size[1]} px, but {layer.path} has "
            f"{place.source[0]}x{place.source[1]}; they must have the same size"
        )
    return image, fit_image(mask.expand(3, -1, -1), width, height, fit)[0][0], place
