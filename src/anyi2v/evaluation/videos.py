"""Reading videos one at a time: mp4, GIF, npz, folders of frames, folders of runs; paired by name."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageSequence
from torch import Tensor

from anyi2v.errors import AnyI2VError, InputError, plural
from anyi2v.files import OURS, expanded
from anyi2v.images.media import MOST_PIXELS, load_image
from anyi2v.images.video import whole_mp4
from anyi2v.reports.folder import RECORD
from anyi2v.timing import counted

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".npz")
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RUN_VIDEOS = ("video.mp4", "video.gif")
"""Video files of a run, of which the first that exists is read: a GIF has only 256 colours."""

MOST_FRAMES = 4096
"""Maximum number of frames of a video; small files may claim to contain many more."""


class Shape(NamedTuple):
    """Number of frames and size of a video."""

    frames: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{plural(self.frames, 'frame')} of {self.width}x{self.height} px"


def find_videos(folder: str | Path) -> dict[str, Path]:
    """Find all videos in a folder, sorted by name: the file's name without suffix, or the folder's name.

    Subfolders must contain frames as images, or be runs. Other file types, hidden files and subfolders without any
    files (a run's `inspection`) are ignored.

    Raises:
        InputError: the folder is missing or has no video, two videos have the same name, or a subfolder is neither.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the videos")
    if (folder / RECORD).is_file() or _frames_in(folder):
        raise InputError(f"{folder} is a single video; give the folder that holds it and others")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", OURS)):
            continue
        if path.is_dir():
            video, name = _inside(path), path.name
        elif path.suffix.lower() in SUFFIXES:
            video, name = path, path.stem
        else:
            continue
        if name in found:
            raise InputError(f"{folder}: {found[name].name} and {path.name} are two videos of one name; keep one")
        found[name] = video
    if not found:
        raise InputError(
            f"{folder} holds no video: no file of {', '.join(SUFFIXES)}, no folder of a run or of frames "
            f"({', '.join(FRAME_SUFFIXES)})"
        )
    return found


def _inside(folder: Path) -> Path:
    """Return the video in a run's folder, or the folder itself if it contains frames."""
    if (folder / RECORD).is_file():
        for name in RUN_VIDEOS:
            if (folder / name).is_file():
                return folder / name
        raise InputError(f"{folder} is a run without {' or '.join(RUN_VIDEOS)}; repeat it (anyi2v animate --repeat)")
    if not _frames_in(folder):
        raise InputError(f"{folder} holds neither frames nor a run with {RECORD}; finish it, or move it away")
    return folder


def _frames_in(folder: Path) -> list[Path]:
    """Return the frames in order of the last number in their names, then of the names."""
    frames = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != "."]
    return sorted(frames, key=lambda path: (int((re.findall(r"\d+", path.stem) or ["0"])[-1]), path.name))


def read_video(path: str | Path) -> Float[Tensor, "f 3 h w"]:
    """Read a video in [0, 1] from a file, whose suffix determines the format, or from a folder of frames.

    .npz: array `video` `[f 3 h w]`, as written by `write_video`. .gif: a frame shown for a multiple of the shortest
    time is repeated, because `write_video` merges equal frames. Other formats are read by ffmpeg.

    Raises:
        InputError: the file is missing or damaged, it has no frames or more than `MOST_FRAMES`, frames differ in size,
            or values are NaN, infinite or outside [0, 1]; the message names the file and the frame.
    """
    path = expanded(path)
    read: Callable[[Path], Tensor]
    if path.is_dir():
        read = _read_frames
    else:
        read = {".npz": _read_npz, ".gif": _read_gif}.get(path.suffix.lower(), _read_ffmpeg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn about what is either an error below or harmless
            video = read(path)
    except AnyI2VError:
        raise
    except Exception as error:  # decoders of untrusted files fail in many ways
        said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
        raise InputError(f"cannot read video {path}: {said.splitlines()[-1]:.200}") from error
    return video


def _read_frames(folder: Path) -> Float[Tensor, "f 3 h w"]:
    paths = _frames_in(folder)
    _check_count(len(paths), folder)
    frames = [load_image(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise InputError(
                f"frame {path} has {frame.shape[2]}x{frame.shape[1]} px, but {paths[0].name} has "
                f"{frames[0].shape[2]}x{frames[0].shape[1]}; a video's frames have one size"
            )
    return torch.stack(frames)


def _read_npz(path: Path) -> Float[Tensor, "f 3 h w"]:
    with np.load(path, allow_pickle=False) as file:
        if "video" not in file:
            raise InputError(f"{path} has no array 'video', but {', '.join(map(repr, file.files)) or 'nothing'}")
        values = file["video"]
    if values.ndim != 4 or values.shape[1] != 3 or values.dtype.kind != "f" or not values.size:
        raise InputError(
            f"{path}: 'video' is {values.dtype} {values.shape}; it must be float [frames, 3, height, width]"
        )
    _check_count(len(values), path)
    video = torch.from_numpy(values.astype(np.float32))
    finite = video.isfinite().flatten(1).all(1)
    if not finite.all():
        raise InputError(f"{path}: frame {int((~finite).nonzero()[0]) + 1} has NaN or infinite values")
    low, high = video.aminmax()
    if low < -1e-3 or high > 1 + 1e-3:  # rounding may push samplers' videos out of range
        raise InputError(f"{path}: values are {low:g} to {high:g}; they must lie in [0, 1]")
    return video.clamp(0, 1)


def _read_gif(path: Path) -> Float[Tensor, "f 3 h w"]:
    with Image.open(path) as file:
        if file.width * file.height > MOST_PIXELS:
            raise InputError(f"{path} has {file.width}x{file.height} px; at most {MOST_PIXELS} in all are read")
        _check_count(getattr(file, "n_frames", 1), path)
        frames = [(np.asarray(f.convert("RGB")), f.info.get("duration", 0)) for f in ImageSequence.Iterator(file)]
    shortest = min(time for _, time in frames)
    repeats = [max(round(time / shortest), 1) if shortest else 1 for _, time in frames]
    _check_count(sum(repeats), path)
    return _as_video(np.stack([frame for frame, _ in frames]).repeat(repeats, axis=0))


def _read_ffmpeg(path: Path) -> Float[Tensor, "f 3 h w"]:
    with path.open("rb"):  # a missing file keeps the system's message
        pass
    if path.suffix.lower() == ".mp4" and not whole_mp4(path):
        raise InputError(f"cannot read video {path}: it is no whole mp4; a part of the file is missing")
    frames = []
    for frame in iio.imiter(path, plugin="FFMPEG"):
        frames.append(frame)
        _check_count(len(frames), path)
    _check_count(len(frames), path)
    return _as_video(np.stack(frames))


def _as_video(frames: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "f 3 h w"]:
    return rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "f h w c -> f c h w").float() / 255


def _check_count(frames: int, path: Path) -> None:
    if not frames:
        raise InputError(f"{path} has no frames")
    if frames > MOST_FRAMES:
        raise InputError(f"{path} has more than {MOST_FRAMES} frames; give shorter videos")


def check_names(generated: Mapping[str, object], other: Mapping[str, object], folder: str | Path) -> None:
    """Raise InputError naming the first entry of either side without a partner of the same name."""
    for name in sorted(generated.keys() ^ other.keys()):
        here, there = ("the generated videos", folder) if name in generated else (folder, "the generated videos")
        raise InputError(
            f"{name!r} is among {here}, but not in {there}: {len(generated)} generated, {len(other)} in {folder}; "
            "they are paired by name"
        )


def read_all(videos: Mapping[str, Path], like: Shape | None = None) -> Iterator[tuple[str, Float[Tensor, "f 3 h w"]]]:
    """Yield names and videos in turn; raises InputError if a video's frames or size differ from the first's.

    Args:
        videos: files by name.
        like: required shape of all videos; None: the shape of the first.
    """
    first: str | Path = "others"
    for name, path in videos.items():
        video = read_video(path)
        if like is None:
            like, first = shape_of(video), path
        if shape_of(video) != like:
            raise InputError(f"{path} has {shape_of(video)}, but {first} {like}; all must agree")
        yield name, video


def read_shown(
    videos: Mapping[str, Path], title: str, *, progress: bool
) -> Iterator[tuple[str, Float[Tensor, "f 3 h w"]]]:
    """Like `read_all`, with a progress bar or messages."""
    yield from counted(read_all(videos), len(videos), title, bar=progress, unit="video")


def shape_of(video: Float[Tensor, "f 3 h w"]) -> Shape:
    """Return the number of frames, the width and the height."""
    return Shape(video.shape[0], video.shape[3], video.shape[2])
