"""What a condition image is made from, as flags and lines of a batch say it. Free of torch until it is used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyi2v.backbone.config import BackboneConfig
from anyi2v.errors import InputError


@dataclass(frozen=True)
class ConditionSource:
    """The files that a condition image is made from, and how; nothing of them has been read."""

    image: Path | None = None
    """Condition image: photo, edges, depth, sketch, anything; or a mesh (.obj .off .ply .stl .glb) or point
    cloud (.ply .xyz .pts .npy)."""
    layer: tuple[str, ...] = ()
    """Each `image:mask`, laid over the image where the mask is white. Without an image, the first layer is the bottom
    and needs no mask."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """What is done about another aspect ratio: cut around the centre, fill up with the border's colour, distort."""
    stretch: bool = False
    """Map the lowest and the highest value of each image file to black and white: for depth maps in millimetres, float
    images, and others that use a part of the range only."""
    width: int | None = None
    """Pixels; None: the backbone's."""
    height: int | None = None
    """Pixels; None: the backbone's."""
    extract: Literal["edges", "hed"] | None = None
    """Turn the image (or first layer) into its edges, white on black: thin lines (Canny), or soft ones (HED)."""
    render: Literal["shaded", "depth", "normal"] = "shaded"
    """What a mesh or point cloud is drawn as."""
    camera: tuple[float, float, float] = (30.0, 20.0, 3.0)
    """On a mesh: azimuth and elevation in degrees, distance in radii of the object."""
    fov: float = 40.0
    """Degrees that the short side of a drawn mesh's picture spans."""
    up: Literal["y", "z"] = "y"
    """The upward axis in the files of meshes."""
    background: tuple[float, float, float] | None = None
    """Red, green, blue in 0 to 1 behind a mesh; None: white, black for depth, (0.5, 0.5, 1) for normals."""

    def condition(self, config: BackboneConfig) -> dict[str, Any]:
        """The arguments of `anyi2v.images.conditions.load_condition`.

        Raises InputError naming what is wrong about the flags, and the nearest sizes that the backbone can make.
        """
        from anyi2v.images.conditions import Layer, Look
        from anyi2v.images.raster import Camera

        if self.image is None and not self.layer:
            raise InputError("there is no condition image: give an image, or --layer")
        width = config.width if self.width is None else self.width
        height = config.height if self.height is None else self.height
        config.check_size(width, height)
        bottom = [] if self.image is None else [Layer(self.image)]
        return {
            "layers": bottom + [Layer.parse(text) for text in self.layer],
            "width": width,
            "height": height,
            "fit": self.fit,
            "extract": self.extract,
            "stretch": self.stretch,
            "look": Look(self.render, Camera(*self.camera, fov=self.fov), self.up, self.background),
        }
