"""Preprocessing conventions of published FID and FVD numbers; they are not interchangeable."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from anyi2v.errors import InputError


@dataclass(frozen=True)
class Convention:
    """Which frames become the input of a feature extractor, and how."""

    name: str
    size: int | None = None
    """Side of the square to which frames are resized, bilinearly without antialiasing; None: keep the size."""
    crop: bool = False
    """Resize the shorter side and take a centre crop; otherwise resize both sides, ignoring the aspect ratio."""
    low: float = 0.0
    """Value of black in the network's input."""
    high: float = 1.0
    """Value of white in the network's input."""
    eight_bit: bool = True
    """Round frames to 8 bits first, as in image files."""
    as_bytes: bool = False
    """Pass uint8 values from 0 to 255 instead."""
    options: dict[str, bool] = field(default_factory=dict)
    """Keyword arguments of the extractor."""
    least_frames: int = 1
    """Minimum number of frames in a video."""
    frames: int | None = None
    """Number of frames to take from the beginning; None: all."""
    multiple: int = 1
    """The number of videos is reduced to a multiple of this by dropping the last ones by name."""


FRAME_CONVENTIONS = {
    convention.name: convention
    for convention in (
        # pytorch-fid 0.3.0, which DragAnything uses: Inception (2015-12-05, TF port), pool3 of 2048
        Convention("pytorch-fid", size=299),
        # StyleGAN3's inception-2015-12-05.pt resizes internally, like TensorFlow 1
        Convention("stylegan", as_bytes=True, options={"return_features": True}),
        Convention("as-is", eight_bit=False),
    )
}
"""Conventions for distances between sets of frames, by name."""

VIDEO_CONVENTIONS = {
    convention.name: convention
    for convention in (
        # google-research/frechet_video_distance, used by DragAnything, there with GIFs: 400 logits
        Convention("google", size=224, low=-1, multiple=16),
        # StyleGAN-V's i3d_torchscript.pt
        Convention(
            "styleganv",
            size=224,
            crop=True,
            low=-1,
            least_frames=10,
            options={"rescale": False, "resize": False, "return_features": True},
        ),
        # VideoGPT's i3d_pretrained_400.pt
        Convention("videogpt", size=224, crop=True, low=-1, least_frames=10),
        # cd-fvd 0.1.1 with I3D: VideoGPT's file, different preprocessing
        Convention("cd-fvd", size=224, low=-1, least_frames=16, frames=16),
        Convention("as-is", eight_bit=False),
    )
}
"""Conventions for distances between sets of videos, by name."""


def find(name: str, conventions: dict[str, Convention]) -> Convention:
    """Return the convention with the given name; raises InputError listing all."""
    if name not in conventions:
        raise InputError(f"there is no convention {name!r}; it must be one of {', '.join(conventions)}")
    return conventions[name]


def prepare(
    video: Float[Tensor, "f 3 h w"], convention: Convention
) -> Float[Tensor, "g 3 y x"] | UInt8[Tensor, "g 3 y x"]:
    """Convert the frames of a video in [0, 1] to the network's input under a convention.

    Raises:
        InputError: the video has fewer frames than the convention requires.
    """
    if len(video) < convention.least_frames:
        raise InputError(
            f"convention {convention.name!r} needs videos of {convention.least_frames} frames or more, "
            f"but this one has {len(video)}"
        )
    frames = video[: convention.frames].float()
    if convention.eight_bit:
        frames = (frames * 255).round() / 255
    if convention.size is not None:
        frames = _resized(frames, convention.size, convention.crop)
    if convention.as_bytes:
        return (frames * 255).round().clamp(0, 255).to(torch.uint8)
    return convention.low + (convention.high - convention.low) * frames


def _resized(frames: Float[Tensor, "f 3 h w"], size: int, crop: bool) -> Float[Tensor, "f 3 s s"]:
    height, width = frames.shape[2:]
    shape = (size, size)
    if crop:  # the longer side is rounded up
        shape = (size, math.ceil(width * size / height)) if height < width else (math.ceil(height * size / width), size)
    frames = F.interpolate(frames, size=shape, mode="bilinear")
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return frames[:, :, top : top + size, left : left + size]
