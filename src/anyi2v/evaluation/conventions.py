"""What published numbers called FID and FVD give to which network: conventions that are not interchangeable."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from anyi2v.errors import InputError


@dataclass(frozen=True)
class Convention:
    """How frames become the input of an extractor, and which of them."""

    name: str
    size: int | None = None
    """Side of the square that frames are resized to, bilinearly without antialiasing; None: as they are."""
    crop: bool = False
    """Resize the shorter side, and cut out the middle; else both sides, whatever the aspect."""
    low: float = 0.0
    """Value of black."""
    high: float = 1.0
    """Value of white."""
    eight_bit: bool = True
    """Round frames to 8 bit first, as files of pictures have them."""
    as_bytes: bool = False
    """Give uint8 in 0 to 255 instead."""
    options: dict[str, bool] = field(default_factory=dict)
    """Keyword arguments of the extractor."""
    least_frames: int = 1
    """Of a video."""
    frames: int | None = None
    """Take this many from the beginning; None: all."""
    multiple: int = 1
    """The last videos, in order of their names, are left out until their number is a multiple of this."""


FRAME_CONVENTIONS = {
    convention.name: convention
    for convention in (
        # pytorch-fid 0.3.0, which DragAnything uses: Inception (2015-12-05, TF port), pool3 of 2048
        Convention("pytorch-fid", size=299),
        # inception-2015-12-05.pt of StyleGAN3 resizes by itself, as TensorFlow 1 did
        Convention("stylegan", as_bytes=True, options={"return_features": True}),
        Convention("as-is", eight_bit=False),
    )
}
"""Of distances between sets of frames."""

VIDEO_CONVENTIONS = {
    convention.name: convention
    for convention in (
        # google-research/frechet_video_distance, which DragAnything uses, there with GIFs: 400 logits
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
        # cd-fvd 0.1.1 with I3D: VideoGPT's file, other pixels
        Convention("cd-fvd", size=224, low=-1, least_frames=16, frames=16),
        Convention("as-is", eight_bit=False),
    )
}
"""Of distances between sets of videos."""


def find(name: str, conventions: dict[str, Convention]) -> Convention:
    """The convention of that name; raises InputError listing all."""
    if name not in conventions:
        raise InputError(f"there is no convention {name!r}; it must be one of {', '.join(conventions)}")
    return conventions[name]


def prepare(
    video: Float[Tensor, "f 3 h w"], convention: Convention
) -> Float[Tensor, "g 3 y x"] | UInt8[Tensor, "g 3 y x"]:
    """Frames of a video in [0, 1], as the convention gives them to its network.

    Raises InputError if there are fewer than it needs.
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
    if crop:  # the longer side rounded upwards
        shape = (size, math.ceil(width * size / height)) if height < width else (math.ceil(height * size / width), size)
    frames = F.interpolate(frames, size=shape, mode="bilinear")
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return frames[:, :, top : top + size, left : left + size]
