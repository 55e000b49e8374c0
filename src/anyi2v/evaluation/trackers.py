"""Trackers follow points through a video: the protocol `Tracker`, Lucas-Kanade, and networks in files."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from anyi2v.errors import InputError
from anyi2v.evaluation.extractors import checksum, load_extractor
from anyi2v.evaluation.opencv import check_opencv
from anyi2v.images.media import to_bytes


@runtime_checkable
class Tracker(Protocol):
    """Protocol of point trackers; any callable with this signature can be used."""

    def __call__(
        self, video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n f 2"], Bool[Tensor, "n f"]]:
        """Locate points (x, y) of frame 1 in each frame.

        Args:
            video: in [0, 1].
            points: in pixels; the centre of the first pixel is (0, 0).

        Returns:
            Positions in the same unit, with the given points in frame 1, and whether each is visible.
        """
        ...


@dataclass(frozen=True)
class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2001) from frame to frame, with the checks of Kalal et al. 2010.

    A point is lost if tracking backwards does not return to its origin, if its surroundings before and after a step do
    not look alike, or if it leaves the frame. From then on it is invisible and keeps its last visible position. Needs
    the extra `eval`.
    """

    window: int = 21
    """Side of the compared square in pixels; odd."""
    levels: int = 3
    """Pyramid levels above the full resolution: the largest step is about `window / 2 * 2**levels` pixels."""
    most_return_error: float = 1.0
    """Maximum distance, in pixels at full resolution, between a point and the result of tracking it back."""
    least_correlation: float = 0.5
    """Minimum normalised correlation of the windows around a point before and after a step."""
    progress: bool = False
    """Show a progress bar over the frames."""

    def __call__(
        self, video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n f 2"], Bool[Tensor, "n f"]]:
        """See `Tracker`; raises InputError without OpenCV."""
        check_opencv()
        grey = _grey(video)
        height, width = grey.shape[1:]
        at = points.numpy().astype(np.float32).reshape(-1, 1, 2)
        positions, visible = [at], [np.ones(len(at), bool)]
        frames = tqdm(pairwise(grey), "frames tracked", len(grey) - 1, unit="frame", disable=not self.progress)
        for before, after in frames:
            there, found = self._step(before, after, at)
            back, returned = self._step(after, before, there)
            kept = visible[-1] & found & returned & (np.linalg.norm(back - at, axis=-1)[:, 0] <= self.most_return_error)
            kept = kept & ((there >= 0) & (there <= (width - 1, height - 1))).all(axis=(1, 2))
            kept = kept & (self._correlation(before, after, at, there) >= self.least_correlation)
            at = np.where(kept[:, None, None], there, at)
            positions.append(at)
            visible.append(kept)
        paths = torch.from_numpy(np.stack(positions, axis=1)[:, :, 0])
        return paths, torch.from_numpy(np.stack(visible, axis=1))

    def _step(
        self, before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"], at: Float[np.ndarray, "n 1 2"]
    ) -> tuple[Float[np.ndarray, "n 1 2"], Bool[np.ndarray, " n"]]:
        """Track points to the next frame; also return whether OpenCV found them."""
        import cv2

        if not len(at):
            return at, np.ones(0, bool)
        there, found, _ = cv2.calcOpticalFlowPyrLK(
            before, after, at, at.copy(), winSize=(self.window, self.window), maxLevel=self.levels
        )
        return there, found.reshape(-1) > 0

    def _correlation(
        self,
        before: UInt8[np.ndarray, "h w"],
        after: UInt8[np.ndarray, "h w"],
        at: Float[np.ndarray, "n 1 2"],
        there: Float[np.ndarray, "n 1 2"],
    ) -> Float[np.ndarray, " n"]:
        """Correlate the windows around the points, in [-1, 1]; 0 where a window is flat."""
        import cv2

        found = np.zeros(len(at))
        for number, points in enumerate(zip(at[:, 0], there[:, 0], strict=True)):
            if not np.isfinite(points).all():
                continue
            x, y = (
                cv2.getRectSubPix(frame, (self.window, self.window), point.tolist()).astype(np.float64)
                for frame, point in zip((before, after), points, strict=True)
            )
            x, y = x - x.mean(), y - y.mean()
            found[number] = (x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-9)
        return found


class NetworkTracker:
    """A network in a TorchScript file that tracks points, with the signature of CoTracker's predictors.

    The network maps a video `[1 f 3 h w]` with values from 0 to 255 and queries `[1 n 3]`, the frame and the position
    (x, y) of each point, to positions `[1 f n 2]` and visibility `[1 f n]`: Booleans, or numbers that are above 0.5
    where a point is visible.

    Args:
        path: TorchScript file; load only files that you trust.

    Raises:
        InputError: the file is not a TorchScript file.
    """

    def __init__(self, path: Path):
        self.path, self.network, self.sha256 = path, load_extractor(path), checksum(path)

    def __repr__(self) -> str:
        """Name the file by its contents, for the records of evaluations."""
        return f"NetworkTracker({self.path.name}, sha256={self.sha256})"

    @torch.no_grad()
    def __call__(
        self, video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n f 2"], Bool[Tensor, "n f"]]:
        """See `Tracker`; raises InputError naming the file if the network fails or returns something else."""
        frames, count = len(video), len(points)
        if not count:
            return torch.zeros(0, frames, 2), torch.zeros(0, frames, dtype=torch.bool)
        queries = torch.cat([torch.zeros(count, 1), points.float()], dim=1)
        found = _run(self.network, self.path, 255 * video.float()[None], queries[None])
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in found[:2]]
        if shapes != [(1, frames, count, 2), (1, frames, count)]:
            raise InputError(
                f"tracker {self.path} returns {shapes}; it must return positions {(1, frames, count, 2)} and "
                f"visibility {(1, frames, count)}"
            )
        paths, visible = found[0][0].movedim(0, 1).float(), found[1][0].T
        seen = (visible if visible.dtype == torch.bool else visible > 0.5) & paths.isfinite().all(-1)
        paths = torch.where(paths.isfinite(), paths, points[:, None].float())
        paths[:, 0] = points
        return paths, seen


def _run(network: nn.Module, path: Path, *inputs: Tensor) -> tuple[Any, ...]:
    """Return the network's outputs."""
    try:
        found = network(*inputs)
    except Exception as error:  # TorchScript raises errors of any class, with long messages
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(f"tracker {path} fails on inputs of {shapes}: {reason[0]:.200}") from error
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def load_tracker(path: Path | None) -> Tracker:
    """Return the tracker of a file, or Lucas-Kanade without one; raises InputError if it cannot be loaded."""
    if path is None:
        check_opencv()
        return LucasKanade()
    return NetworkTracker(path)


def _grey(video: Float[Tensor, "f 3 h w"]) -> UInt8[np.ndarray, "f h w"]:
    """Convert to 8-bit luma (ITU-R BT.601), OpenCV's input."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (video.float() * weights).sum(1, keepdim=True)
    return np.ascontiguousarray(to_bytes(grey.expand(-1, 3, -1, -1))[..., 0])
