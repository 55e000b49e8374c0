"""Writing of videos as GIF, mp4 (by ffmpeg), arrays, or frames side by side."""

import errno
import os
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from anyi2v.errors import InputError, ResourceError
from anyi2v.files import atomic, expanded
from anyi2v.images.media import magnify, to_bytes

MAX_FPS = 100
"""Maximum frames per second; a GIF's delays are in hundredths of a second."""

VIDEO_SUFFIXES = (".mp4", ".gif", ".npz", ".png")


def write_video(path: str | Path, video: Float[Tensor, "f 3 h w"], *, fps: float, enlarge: int = 1) -> None:
    """Write a video atomically, in the format given by the suffix of `path`; equal frames give identical bytes.

    .mp4: H.264, yuv420p, visually lossless. .gif: endless loop, 256 colours per frame, no dithering; a frame equal to
    the previous one extends its duration. .npz: arrays `video` (float32, not rounded) and `fps`. .png: the frames side
    by side.

    Args:
        path: output file; an existing file is replaced.
        video: in [0, 1]; clipped and rounded to 8 bit except in .npz.
        fps: frames per second; a GIF's frame times are rounded to 1/100 s.
        enlarge: factor by which pixels are enlarged, so that players do not blur small videos.

    Raises:
        InputError: unknown suffix, no frames, odd size for .mp4, or fps or enlarge out of range.
        NumericsError: NaN or infinite values.
        ResourceError: the path cannot be written, or no ffmpeg can write an .mp4.
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
    # one thread and no encoder version in the file, so that equal frames give identical bytes on every machine
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
    except Exception as error:  # of any class: the program is missing, ends early or lacks the encoder
        if os.strerror(errno.ENOSPC) in str(error):
            raise
        raise ResourceError(_ffmpeg_words(str(error) or type(error).__name__)) from error
    if not whole_mp4(path):  # the plugin ignores ffmpeg's exit code
        raise ResourceError(_ffmpeg_words("its file is incomplete, as without libx264 or on a full disk"))


def whole_mp4(path: Path) -> bool:
    """Return whether the boxes of an mp4 cover the file to its last byte and include mdat (data) and moov (index).

    Each box starts with its length in 4 bytes and its kind in 4; if the length is 1, it follows in 8 bytes (ISO
    14496-12).
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
    """Describe ffmpeg's error and its fix on one line."""
    # the plugin's message has its own text, the command, and last the output of the program
    last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
    return (
        f"ffmpeg cannot write an mp4: {''.join(last)[:200]}. An ffmpeg with libx264 comes with "
        "pip install 'imageio[ffmpeg]'; the variable IMAGEIO_FFMPEG_EXE selects another one; a .gif needs none"
    )


def mp4_problem() -> str | None:
    """Encode a tiny clip to check for .mp4 support; return the reason if it fails, else None."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write_mp4(Path(folder) / "probe.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    except ResourceError as error:
        return str(error)
    except OSError:  # no temporary folder to try it in, which says nothing about the run's folder
        return None
    return None
