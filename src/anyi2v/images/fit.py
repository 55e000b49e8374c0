"""Fitting of images of any size to a video's size, together with their tracks, by one affine map per axis."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks import Box, Point, Track, Tracks
from anyi2v.tracks.checks import text
from anyi2v.tracks.masks import cropped

Mode = Literal["crop", "pad", "stretch"]
"""Treatment of other aspect ratios: crop to the centre, pad around the whole image, or distort."""

MOST_PIXELS = 1 << 24
"""Maximum number of pixels of a fitted image, 4096 x 4096."""

MOST_CUT = 0.5
"""Fraction of a box's visible part that a crop may remove without a warning."""

Region = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in whole pixels, half-open."""


@dataclass(frozen=True)
class Fit:
    """Placement of an image: the region `crop` of the source is resized to the region `target` of the fitted image."""

    source: tuple[int, int]
    """(width, height) of the source."""
    crop: Region
    """Region that is kept, in pixels of the source."""
    width: int
    height: int
    target: Region
    """Its place in pixels of the fitted image; the rest is padding."""

    def __str__(self) -> str:
        kept = "whole" if self.crop == (0, 0, *self.source) else f"part {self.crop}"
        whole = self.target == (0, 0, self.width, self.height)
        place = f"{self.width}x{self.height}" if whole else f"{self.target} of {self.width}x{self.height}"
        return f"{kept} of {self.source[0]}x{self.source[1]} px -> {place}"

    @property
    def scale(self) -> tuple[float, float]:
        """Fitted pixels per source pixel along x and y, which differ by rounding or stretching."""
        (a, b, c, d), (x0, y0, x1, y1) = self.target, self.crop
        return (c - a) / (x1 - x0), (d - b) / (y1 - y0)

    def points(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """Map points (x, y) of the source to pixels of the fitted image; they may be outside of it."""
        (x, y), (x0, y0), (a, b) = self.scale, self.crop[:2], self.target[:2]
        return tuple(((px - x0) * x + a, (py - y0) * y + b) for px, py in points)

    def back(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """Map points of the fitted image to pixels of the source, the inverse of `points`."""
        (x, y), (x0, y0), (a, b) = self.scale, self.crop[:2], self.target[:2]
        return tuple(((px - a) / x + x0, (py - b) / y + y0) for px, py in points)

    def boxes(self, boxes: Sequence[Box]) -> tuple[Box, ...]:
        """Map boxes of the source to pixels of the fitted image, without clipping."""
        low, high = self.points([b[:2] for b in boxes]), self.points([b[2:] for b in boxes])
        return tuple((*a, *b) for a, b in zip(low, high, strict=True))

    def tracks(self, tracks: Tracks) -> Tracks:
        """Map tracks, in any frame of reference over the source image, to pixels of the fitted image.

        Warns about an object if the crop removes more than half of its visible box in any frame. Raises InputError if
        an object's first box is cropped away.
        """
        drawn = tracks.scaled(*self.source).objects
        objects = [
            replace(
                track,
                boxes=self.boxes(track.boxes),
                points=self.points(track.points),
                mask=None if track.mask is None else self.mask(track.mask),
            )
            for track in drawn
        ]
        fitted = Tracks(self.width, self.height, tuple(objects))
        for track in drawn:
            self._warn_about_cut(track)
        return fitted

    def _warn_about_cut(self, track: Track) -> None:
        for frame, box in enumerate(track.boxes, 1):
            whole, kept = _visible(box, (0, 0, *self.source)), _visible(box, self.crop)
            if kept < (1 - MOST_CUT) * whole:
                warnings.warn(
                    f"object {track.name!r}, frame {frame}: the crop keeps {kept / whole:.0%} of its box {text(box)} "
                    f"({self}); use padding (--fit pad) to keep the whole image",
                    AnyI2VWarning,
                    stacklevel=3,
                )
                return

    def mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h2 w2"]:
        """Map a mask over the source image to pixels of the fitted image; False outside of the source."""
        width, height = self.source
        (x0, y0), (x1, y1) = self.back([(0, 0), (self.width, self.height)])
        return cropped(mask, (x0 / width, y0 / height, x1 / width, y1 / height), self.width, self.height)


def plan(source: tuple[int, int], width: int, height: int, mode: Mode = "crop") -> Fit:
    """Compute the placement of an image of `source` = (width, height); raises InputError for an invalid size or
    mode."""
    check_fit(width, height, mode)
    size = (width, height)
    crop = _centred(source, size) if mode == "crop" else (0, 0, *source)
    target = _centred(size, source) if mode == "pad" else (0, 0, *size)
    return Fit(source, crop, width, height, target)


def check_fit(width: int, height: int, mode: str) -> None:
    """Raise InputError for an invalid size or mode."""
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise InputError(
            f"size {width}x{height} is not possible; both must be at least 1, with at most {MOST_PIXELS} pixels in all"
        )
    if mode not in get_args(Mode):
        raise InputError(f"fit {mode!r} is not known; it must be one of {', '.join(get_args(Mode))}")


def fit_image(
    image: Float[Tensor, "3 h w"], width: int, height: int, mode: Mode = "crop"
) -> tuple[Float[Tensor, "3 {height} {width}"], Fit]:
    """Fit an image to a size; return the image and its placement.

    Resizing is bilinear with antialiasing; an image that already has the size is returned unchanged. "crop" cuts the
    excess of the aspect ratio evenly on both sides. "pad" keeps the whole image and fills the rest with the median
    colour of the image's border: paper stays paper, and an edge map's background stays black. "stretch" distorts the
    whole image to the size.
    """
    fit = plan((image.shape[2], image.shape[1]), width, height, mode)
    x0, y0, x1, y1 = fit.crop
    a, b, c, d = fit.target
    kept = image[:, y0:y1, x0:x1]
    if (c - a, d - b) != (x1 - x0, y1 - y0):
        kept = F.interpolate(kept[None], (d - b, c - a), mode="bilinear", antialias=True)[0].clamp(0, 1)
    if fit.target == (0, 0, width, height):
        return kept, fit
    canvas = border_colour(image)[:, None, None].repeat(1, height, width)
    canvas[:, b:d, a:c] = kept
    return canvas, fit


def _visible(box: Box, region: Region) -> float:
    """Return the area of the part of a box inside a region."""
    sides = (min(box[k + 2], region[k + 2]) - max(box[k], region[k]) for k in (0, 1))
    return math.prod(max(side, 0.0) for side in sides)


def border_colour(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3"]:
    """Return the median of the outermost pixels, per channel."""
    sides = (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1])
    return torch.cat(sides, dim=1).median(dim=1).values


def _centred(frame: tuple[int, int], aspect: tuple[int, int]) -> Region:
    """Return the largest centred region of `frame` with the given aspect ratio, at least one pixel wide and high."""
    scale = min(frame[0] / aspect[0], frame[1] / aspect[1])
    w, h = (min(max(round(side * scale), 1), most) for side, most in zip(aspect, frame, strict=True))
    x, y = (frame[0] - w) // 2, (frame[1] - h) // 2
    return x, y, x + w, y + h
