"""Settings of a condition image, shared by command-line flags and batch lines; imports torch only when used."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyi2v.backbone.config import BackboneConfig
from anyi2v.errors import InputError


@dataclass(frozen=True)
class ConditionSource:
    """Files and settings of a condition image; nothing is read yet."""

    image: Path | None = None
    """Condition image of any modality (photo, edges, depth, sketch, ...), mesh (.obj .off .ply .stl .glb) or point
    cloud (.ply .xyz .pts .npy)."""
    layer: tuple[str, ...] = ()
    """Layers `image:mask`, pasted over the image where the mask is white. Without an image, the first layer is the
    bottom one and needs no mask."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How to fit an image whose aspect ratio is not the video's: crop to the centre, pad with the border's colour, or
    distort."""
    stretch: bool = False
    """Map the lowest and highest value of each image file to black and white, for depth maps in millimetres, float
    images, and others that use only part of the range."""
    width: int | None = None
    """Width of the video in pixels; None: the backbone's."""
    height: int | None = None
    """Height of the video in pixels; None: the backbone's."""
    extract: Literal["edges", "hed"] | None = None
    """Replace the image (or first layer) by its edges, white on black: thin lines (Canny), or soft ones (HED)."""
    render: Literal["shaded", "depth", "normal"] = "shaded"
    """Rendering style of a mesh or point cloud."""
    camera: tuple[float, float, float] = (30.0, 20.0, 3.0)
    """Camera for a mesh or point cloud: azimuth and elevation in degrees, distance in radii of the object."""
    fov: float = 40.0
    """Field of view of the camera along the shorter side, in degrees."""
    up: Literal["y", "z"] = "y"
    """Upward axis of mesh and point cloud files."""
    background: tuple[float, float, float] | None = None
    """Background colour of rendered geometry, as red, green, blue in 0 to 1; None: white, black for depth, (0.5, 0.5,
    1) for normals."""

    def condition(self, config: BackboneConfig) -> dict[str, Any]:
        """Build the arguments of `anyi2v.images.conditions.load_condition`.

        Raises InputError naming the invalid flag, or the nearest sizes that the backbone can generate.
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
