"""Reading and writing of images. In memory, images are float32 `[3 h w]` and videos `[f 3 h w]`, in [0, 1]."""

import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError, NumericsError
from anyi2v.files import atomic, expanded
from anyi2v.images.fit import Fit, fit_image
from anyi2v.tracks import Tracks, load_tracks
from anyi2v.tracks.contents import doubtful

MOST_PIXELS = 1 << 26
"""Maximum number of pixels of an image, 8192 x 8192 or 800 MB in memory; small files may declare much more."""

LEAST_RANGE = 0.2
"""Range of values below which an image has hardly visible content, such as a 16-bit depth map in millimetres."""


def load_image(
    path: str | Path, *, size: tuple[int, int] | None = None, paper: float = 1.0, stretch: bool = False
) -> Float[Tensor, "3 h w"]:
    """Read an image of any mode: grey, palette, 1 to 16 bit, CMYK, with alpha, EXIF-rotated.

    Transparent parts become white, like paper, because sketches are often black strokes on a transparent background.
    For an animation, the first frame is read.

    Args:
        path: any file that Pillow reads.
        size: (width, height) to fit it to; `fit_image` also returns the placement.
        paper: brightness of transparent parts.
        stretch: map the lowest and highest value, over all channels and all pixels that are not fully transparent, to 0
            and 1. This also allows float values and more than 16 bit.

    Warns if the values span less than `LEAST_RANGE` and are not stretched. Raises InputError naming the file if it is
    missing, broken, larger than `MOST_PIXELS`, neither 8 nor 16 bit without `stretch`, or constant with `stretch`.
    """
    try:
        with Image.open(expanded(path)) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InputError(
                    f"image {path} has {file.width}x{file.height} px; at most {MOST_PIXELS} in all are read; reduce it"
                )
            colour, alpha = _pixels(ImageOps.exif_transpose(file), path, stretch)
            colour = _stretched(colour, alpha, path) if stretch else colour
            pixels = colour if alpha is None else colour * alpha + paper * (1 - alpha)
            if not stretch:
                _warn_about_range(pixels, path)
            image = from_bytes(pixels)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a readable image; use PNG or JPEG") from error
    except InputError:
        raise
    except Exception as error:  # decoders of untrusted files fail in many ways
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read image {path}: {reason}") from error
    return image if size is None else fit_image(image, *size)[0]


def _pixels(image: Image.Image, path: str | Path, any_range: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colours `[h w 3]` and opacity `[h w 1]`, None without transparency.

    The dtype is uint8, or float32 in [0, 1] if uint8 would lose precision; with `any_range`, images may have float32
    values of any range.
    """
    if image.mode.startswith("I"):  # 16 bit grey; Pillow uses "I" for it after some operations
        grey = np.asarray(image).astype(np.float32) / 65535
        if not any_range and not 0 <= grey.min() <= grey.max() <= 1:
            raise InputError(f"image {path} has more than 16 bit; save it with 8 or 16, or stretch it (--stretch)")
        return np.repeat(grey[..., None], 3, axis=2), None
    if image.mode == "F":
        grey = np.asarray(image)
        if not any_range:
            raise InputError(
                f"image {path} has float values, whose range is unknown; save it with 8 or 16 bit, or stretch it "
                "(--stretch)"
            )
        if not np.isfinite(grey).all():
            raise InputError(f"image {path} has NaN or infinite values, so it cannot be stretched")
        return np.repeat(grey[..., None], 3, axis=2), None
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    return rgba[..., :3], rgba[..., 3:]


def _stretched(colour: np.ndarray, alpha: np.ndarray | None, path: str | Path) -> np.ndarray:
    """Map the lowest and highest value of all pixels that are not fully transparent to 0 and 1."""
    seen = colour if alpha is None else colour[alpha[..., 0] > 0]
    if not seen.size or seen.min() == seen.max():
        raise InputError(f"image {path} has one value everywhere, so it cannot be stretched")
    # halved, so that the difference fits float32; the ends become exactly 0 and 1
    low, high = np.float32(seen.min()) / 2, np.float32(seen.max()) / 2
    return ((colour.astype(np.float32) / 2 - low) / (high - low)).clip(0, 1)


def _warn_about_range(pixels: np.ndarray, path: str | Path) -> None:
    scale = 255 if pixels.dtype == np.uint8 else 1
    low, high = (255 / scale * float(value) for value in (pixels.min(), pixels.max()))
    if 0 < high - low < LEAST_RANGE * 255:
        warnings.warn(
            f"image {path} only has values from {low:.0f} to {high:.0f} of 255, so its content is hardly visible; "
            "stretch it to the full range (--stretch, or stretch=True)",
            AnyI2VWarning,
            stacklevel=3,
        )


def load_placed(tracks: str | Path | None, fit: Fit) -> Tracks:
    """Load tracks drawn over the source of `fit` and map them to the fitted image; no objects if there is no file.

    Raises InputError naming the file.
    """
    if tracks is None:
        return Tracks(fit.width, fit.height)
    drawn = load_tracks(tracks, size=fit.source)
    try:
        return fit.tracks(drawn)
    except InputError as error:
        hint = "" if fit.crop == (0, 0, *fit.source) else f" (the image was cropped: {fit}; padding keeps all)"
        raise InputError(f"{tracks}: {error}{hint}") from error


def check_image(image: object) -> None:
    """Raise InputError with advice unless `image` is a float tensor `[3 h w]` in [0, 1]."""
    if not isinstance(image, Tensor):
        raise InputError(f"the image is {_kind(image)}; {_TENSOR_OF.get(_kind(image), _TENSOR_OF[''])}")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise InputError(f"the image has shape {tuple(image.shape)}; it must be [3, height, width]")
    if not image.is_floating_point():
        raise InputError(f"the image is {image.dtype}; it must be float in [0, 1] (divide uint8 by 255)")
    if not image.isfinite().all():
        raise InputError("the image has NaN or infinite values")
    low, high = image.aminmax()
    if low < 0 or high > 1:
        raise InputError(f"the image's values are {low:g} to {high:g}; they must lie in [0, 1]")


def check_tracks(tracks: object, image: Float[Tensor, "3 h w"]) -> Tracks:
    """Return the tracks, or tracks without objects for None.

    Warns about an object whose first box has nothing that stands out from the image, and if all weights are 0. Raises
    InputError, with advice, for anything other than tracks.
    """
    if tracks is None:
        return Tracks(image.shape[2], image.shape[1])
    if not isinstance(tracks, Tracks):
        raise InputError(
            f"tracks is a {type(tracks).__name__}, not Tracks; load a file with anyi2v.load_tracks(path), JSON data "
            "with anyi2v.tracks.tracks_from_dict(data)"
        )
    for line in doubtful(image.detach().float().cpu().numpy(), tracks):
        warnings.warn(line, AnyI2VWarning, stacklevel=3)
    return tracks


def _kind(value: object) -> str:
    """Describe the type of a value for an error message."""
    if isinstance(value, str | Path):
        return "a path"
    if isinstance(value, Image.Image):
        return "a PIL image"
    return "a NumPy array" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


_TENSOR_OF = {
    "a path": "load it with anyi2v.load_image(path)",
    "a PIL image": "load its file with anyi2v.load_image(path), or use "
    'anyi2v.images.media.from_bytes(numpy.asarray(image.convert("RGB")))',
    "a NumPy array": "of [height, width, 3] in uint8, or float in [0, 1], use anyi2v.images.media.from_bytes(array)",
    "": "it must be a float tensor [3, height, width] in [0, 1], as anyi2v.load_image(path) gives",
}


def from_bytes(pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
    """Convert an array `[h w 3]`, uint8 or float in [0, 1], to an image tensor."""
    values = torch.from_numpy(np.array(pixels))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return rearrange(values, "h w c -> c h w").contiguous()


def to_bytes(video: Float[Tensor, "*f 3 h w"]) -> UInt8[np.ndarray, "*f h w 3"]:
    """Clip to [0, 1] and round to 8 bit; `from_bytes(to_bytes(x))` leaves 8-bit images unchanged.

    Raises NumericsError naming the first frame with NaN or infinite values.
    """
    finite = video.isfinite().flatten(-3).all(-1)
    if not finite.all():
        frame = int((~finite).flatten().nonzero()[0]) + 1
        raise NumericsError(f"frame {frame} has NaN or infinite values; nothing was written")
    pixels = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pixels, "... c h w -> ... h w c").cpu().numpy()


def magnify(video: Float[Tensor, "*f 3 h w"], factor: int) -> Float[Tensor, "*f 3 hh ww"]:
    """Enlarge every pixel to `factor` x `factor` pixels."""
    return video.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def write_image(path: str | Path, image: Float[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an 8-bit PNG atomically; raises NumericsError on NaN."""
    pixels = to_bytes(image) if isinstance(image, Tensor) else image
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
