"""Images and videos in and out. In memory: float32 in [0, 1], images `[3 h w]`, videos `[f 3 h w]`."""

import errno
import os
import tempfile
import warnings
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError, NumericsError, ResourceError
from anyi2v.files import atomic, expanded
from anyi2v.images.fit import Fit, fit_image
from anyi2v.tracks import Tracks, load_tracks
from anyi2v.tracks.contents import doubtful

MAX_FPS = 100
"""Frames per second: a GIF's delays are hundredths of a second."""

VIDEO_SUFFIXES = (".mp4", ".gif", ".npz", ".png")

MOST_PIXELS = 1 << 26
"""Of an image that is read: 8192 x 8192, 800 MB in memory. Small files may claim to hold much more."""

LEAST_RANGE = 0.2
"""Of an image's values: one of less, such as a depth map in millimetres at 16 bit, hardly shows what is on it."""


def load_image(
    path: str | Path, *, size: tuple[int, int] | None = None, paper: float = 1.0, stretch: bool = False
) -> Float[Tensor, "3 h w"]:
    """Reads an image of any mode: grey, palette, 1 to 16 bit, CMYK, with alpha, EXIF-rotated.

    Transparent parts become white, like paper: sketches are often black strokes on nothing. Of an animation
    the first frame is taken.

    Args:
        path: any file that Pillow reads.
        size: (width, height) to fit it to; `fit_image` also tells where the pixels went.
        paper: brightness of transparent parts.
        stretch: map the lowest and the highest value of the image, over its channels and all pixels that are not wholly
            transparent, to 0 and 1. Then an image may also have float values or more than 16 bit.

    Warns about an image whose values span less than `LEAST_RANGE`, unless it is stretched.
    Raises InputError naming the file if it is missing, broken, larger than `MOST_PIXELS`, not of 8 or 16 bit and not
    stretched, or to be stretched and of one value.
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
        raise InputError(f"{path} is not an image that can be read; use PNG or JPEG") from error
    except InputError:
        raise
    except Exception as error:  # decoders of untrusted files fail in many ways
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read image {path}: {reason}") from error
    return image if size is None else fit_image(image, *size)[0]


def _pixels(image: Image.Image, path: str | Path, any_range: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours `[h w 3]` and opacity `[h w 1]`, None without any: uint8, or float32 in [0, 1] where uint8 would lose
    something; with `any_range`, float32 of any values from images that have them."""
    if image.mode.startswith("I"):  # 16 bit grey; "I" is what Pillow calls it after some operations
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
    """The colours with the lowest and highest value of what is not wholly transparent at 0 and 1."""
    seen = colour if alpha is None else colour[alpha[..., 0] > 0]
    if not seen.size or seen.min() == seen.max():
        raise InputError(f"image {path} has one value everywhere, so it cannot be stretched")
    # halves, whose difference float32 can hold; the ends become exactly 0 and 1
    low, high = np.float32(seen.min()) / 2, np.float32(seen.max()) / 2
    return ((colour.astype(np.float32) / 2 - low) / (high - low)).clip(0, 1)


def _warn_about_range(pixels: np.ndarray, path: str | Path) -> None:
    scale = 255 if pixels.dtype == np.uint8 else 1
    low, high = (255 / scale * float(value) for value in (pixels.min(), pixels.max()))
    if 0 < high - low < LEAST_RANGE * 255:
        warnings.warn(
            f"image {path} has values from {low:.0f} to {high:.0f} of 255 only, so what is on it hardly shows; stretch "
            "it to the full range (--stretch, or stretch=True)",
            AnyI2VWarning,
            stacklevel=3,
        )


def load_placed(tracks: str | Path | None, fit: Fit) -> Tracks:
    """Tracks of a file over the source of `fit`, in pixels of the fitted image; no objects without a file.

    Raises InputError naming the file.
    """
    if tracks is None:
        return Tracks(fit.width, fit.height)
    drawn = load_tracks(tracks, size=fit.source)
    try:
        return fit.tracks(drawn)
    except InputError as error:
        hint = "" if fit.crop == (0, 0, *fit.source) else f" (the image was cut: {fit}; to pad it keeps all)"
        raise InputError(f"{tracks}: {error}{hint}") from error


def check_image(image: object) -> None:
    """Raises InputError, telling how to get one, unless `image` is a float tensor `[3 h w]` in [0, 1]."""
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
    """The tracks, without any objects for None.

    Warns about an object whose first box shows nothing that stands out from the image, and if all weights are 0.
    Raises InputError for anything else than tracks, telling how to load them.
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
    """What a value is, for an error message."""
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
    """`[h w 3]`, uint8 or float in [0, 1], to the image as used here."""
    values = torch.from_numpy(np.array(pixels))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return rearrange(values, "h w c -> c h w").contiguous()


def to_bytes(video: Float[Tensor, "*f 3 h w"]) -> UInt8[np.ndarray, "*f h w 3"]:
    """Rounded to 8 bit and clipped to [0, 1]; `from_bytes(to_bytes(x))` changes no 8-bit image.

    Raises NumericsError naming the first frame with NaN or infinite values.
    """
    finite = video.isfinite().flatten(-3).all(-1)
    if not finite.all():
        frame = int((~finite).flatten().nonzero()[0]) + 1
        raise NumericsError(f"frame {frame} has NaN or infinite values; nothing was written")
    pixels = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pixels, "... c h w -> ... h w c").cpu().numpy()


def magnify(video: Float[Tensor, "*f 3 h w"], factor: int) -> Float[Tensor, "*f 3 hh ww"]:
    """Every pixel becomes `factor` x `factor` pixels."""
    return video.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def write_image(path: str | Path, image: Float[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG with 8 bit, whole or not at all; raises NumericsError on NaN."""
    pixels = to_bytes(image) if isinstance(image, Tensor) else image
    with atomic(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_video(path: str | Path, video: Float[Tensor, "f 3 h w"], *, fps: float, enlarge: int = 1) -> None:
    """Writes a video by the suffix of `path`, whole or not at all; equal frames give equal bytes.

    .mp4: H.264, yuv420p, visually lossless. .gif: endless loop, 256 colours per frame, no dithering; frames
    that equal their predecessor lengthen it. .npz: arrays `video` (float32, not rounded) and `fps`. .png: the
    frames side by side.

    Args:
        path: where to; existing files are replaced.
        video: in [0, 1]; clipped and rounded to 8 bit except in .npz.
        fps: frames per second; a GIF's are rounded to 1/100 s.
        enlarge: every pixel becomes `enlarge` x `enlarge` pixels, so that players do not blur small videos.

    Raises:
        InputError: unknown suffix, no frames, odd size for .mp4, fps or enlarge out of range.
        NumericsError: NaN or infinite values.
        ResourceError: the place cannot be written; or there is no ffmpeg that can write an .mp4.
    """
    path = expanded(path)
    suffix = path.suffix.lower()
    if suffix not in VIDEO_SUFFIXES:
        raise InputError(f"cannot write {path}: suffix {suffix!r} is none of {', '.join(VIDEO_SUFFIXES)}")
    if not len(video):
        raise InputError(f"cannot write {path}: the video has no frames")
    if not 0 < fps <= MAX_FPS:
        raise InputError(f"cannot write {path}: fps={fps} is not allowed; it must be above 0 and at most {MAX_FPS}")
    if enlarge < 1:
        raise InputError(f"cannot write {path}: enlarge={enlarge} is not allowed; it must be at least 1")
    video = magnify(video, enlarge)
    frames = to_bytes(video)
    with atomic(path) as temporary:
        if suffix == ".npz":
            np.savez_compressed(temporary, video=video.detach().float().cpu().numpy(), fps=fps)
        elif suffix == ".png":
            Image.fromarray(rearrange(frames, "f h w c -> h (f w) c")).save(temporary)
        elif suffix == ".gif":
            _write_gif(temporary, frames, fps)
        else:
            try:
                _write_mp4(temporary, frames, fps)
            except ResourceError as error:
                raise ResourceError(f"cannot write {path}: {error}") from error


def _write_gif(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 / fps, loop=0)


def _write_mp4(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> None:
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise InputError(
            f"an mp4 cannot have {width}x{height} pixels: both must be even; use enlarge=2, or write a .gif"
        )
    # one thread and no encoder version in the file: equal frames give equal bytes on every machine
    exact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    try:
        iio.imwrite(
            path,
            frames,
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            quality=7,  # crf 15: visually lossless
            macro_block_size=1,
            output_params=["-preset", "medium", "-movflags", "+faststart", *exact],
            ffmpeg_log_level="error",
        )
    except Exception as error:  # the program is missing, ends early, lacks the encoder: of any class
        if os.strerror(errno.ENOSPC) in str(error):
            raise
        raise ResourceError(_ffmpeg_words(str(error) or type(error).__name__)) from error
    if not _whole(path):  # the plugin does not ask how ffmpeg ended
        raise ResourceError(_ffmpeg_words("it leaves no whole file, as without libx264 or on a full disk"))


def _whole(path: Path) -> bool:
    """Whether the boxes of an mp4 fill the file to its last byte, pictures (mdat) and their index (moov) among them.

    Each box begins with its length in 4 bytes, in 8 after the kind where those say 1, and its kind in 4 (ISO 14496-12).
    """
    if not path.is_file():
        return False
    size, start, kinds = path.stat().st_size, 0, set[bytes]()
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            length, kind = int.from_bytes(file.read(4)), file.read(4)
            length = int.from_bytes(file.read(8)) if length == 1 else length
            if length < 8:
                return False
            kinds.add(kind)
            start += length
    return start == size and {b"moov", b"mdat"} <= kinds


def _ffmpeg_words(said: str) -> str:
    """What went wrong, and the way out, on one line."""
    # the plugin's message has its own words, the command, and last what the program has printed
    last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
    return (
        f"ffmpeg cannot write an mp4: {''.join(last)[:200]}. An ffmpeg with libx264 comes with "
        "pip install 'imageio[ffmpeg]'; the variable IMAGEIO_FFMPEG_EXE names another one; a .gif needs none"
    )


def mp4_problem() -> str | None:
    """Why no .mp4 can be written on this machine, in words, or None; a clip of two small frames is encoded to know."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write_mp4(Path(folder) / "probe.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    except ResourceError as error:
        return str(error)
    except OSError:  # there is no place to try it; the run's folder is another one
        return None
    return None
