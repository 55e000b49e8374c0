"""Trackers follow points through a video. Any callable of `Tracker`'s form serves; shipped is Lucas-Kanade's."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from anyi2v.evaluation.opencv import check_opencv
from anyi2v.images.media import to_bytes


@runtime_checkable
class Tracker(Protocol):
    """Follows points through a video."""

    def __call__(
        self, video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n f 2"], Bool[Tensor, "n f"]]:
        """Where points (x, y) of frame 1 are in each frame, and whether they are visible there.

        Args:
            video: in [0, 1].
            points: in pixels; the middle of the first pixel is (0, 0).

        Returns:
            Positions in the same unit, the points themselves in frame 1; and visibility.
        """
        ...


@dataclass(frozen=True)
class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2001) from frame to frame, checked as in Kalal et al. 2010.

    A point is lost if tracking back does not return to where it came from, if its surroundings before and after a step
    do not look alike, or if it leaves the frame: from there on it is not visible, and stays where it was last seen.
    Needs the extra `eval`.
    """

    window: int = 21
    """Side in pixels of the square that is compared; odd."""
    levels: int = 3
    """Of the pyramid, above the full resolution: the largest step is about `window / 2 * 2**levels` pixels."""
    most_return_error: float = 1.0
    """Distance in pixels at full resolution between a point and where tracking back leads to."""
    least_correlation: float = 0.5
    """Normalised correlation of the windows around a point before and after a step."""

    def __call__(
        self, video: Float[Tensor, "f 3 h w"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n f 2"], Bool[Tensor, "n f"]]:
        """See `Tracker`; raises InputError without OpenCV."""
        check_opencv()
        grey = _grey(video)
        height, width = grey.shape[1:]
        at = points.numpy().astype(np.float32).reshape(-1, 1, 2)
        positions, visible = [at], [np.ones(len(at), bool)]
        for before, after in pairwise(grey):
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
        """Where points are in the next frame, and whether OpenCV has found them."""
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
        """Of the windows around the points, in [-1, 1]; 0 where a window is flat."""
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


def _grey(video: Float[Tensor, "f 3 h w"]) -> UInt8[np.ndarray, "f h w"]:
    """Luma of ITU-R BT.601 in 8 bit, as OpenCV takes it."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (video.float() * weights).sum(1, keepdim=True)
    return np.ascontiguousarray(to_bytes(grey.expand(-1, 3, -1, -1))[..., 0])
