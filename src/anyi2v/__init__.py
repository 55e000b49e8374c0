"""AnyI2V: animate any conditional image along drawn trajectories, in plain PyTorch.

The names below are imported lazily, to keep the command line's start-up short.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyi2v.backbone.networks import Backbone
    from anyi2v.backbone.unet import UNet, points, record
    from anyi2v.checkpoints.checkpoint import load, loras_applied, save
    from anyi2v.errors import AnyI2VError
    from anyi2v.images.media import load_image
    from anyi2v.images.video import write_video
    from anyi2v.job import Result
    from anyi2v.method.config import MethodConfig
    from anyi2v.pipeline import animate, invert_images
    from anyi2v.tracks import Track, Tracks, load_tracks

    __version__: str

_HOMES = {
    "AnyI2VError": "errors",
    "Backbone": "backbone.networks",
    "MethodConfig": "method.config",
    "Result": "job",
    "Track": "tracks",
    "Tracks": "tracks",
    "UNet": "backbone.unet",
    "animate": "pipeline",
    "invert_images": "pipeline",
    "load": "checkpoints.checkpoint",
    "load_image": "images.media",
    "load_tracks": "tracks",
    "loras_applied": "checkpoints.checkpoint",
    "points": "backbone.unet",
    "record": "backbone.unet",
    "save": "checkpoints.checkpoint",
    "write_video": "images.video",
}

__all__ = [
    "AnyI2VError",
    "Backbone",
    "MethodConfig",
    "Result",
    "Track",
    "Tracks",
    "UNet",
    "animate",
    "invert_images",
    "load",
    "load_image",
    "load_tracks",
    "loras_applied",
    "points",
    "record",
    "save",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("anyi2v")
    if name in ("comparators", "samplers"):
        return import_module(f"anyi2v.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'anyi2v' has no attribute {name!r}")
    return getattr(import_module(f"anyi2v.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
