"""Bringing an image of any size to a video's size, and tracks along with it: one affine map per axis."""

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
"""What is done about another aspect ratio: cut around the centre, fill up around the whole image, or distort."""

MOST_PIXELS = 1 << 24
"""Of a fitted image: 4096 x 4096."""

MOST_CUT = 0.5
"""Of what the source shows of a box: where the crop takes more, it says so."""

Region = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in whole pixels, half-open."""


@dataclass(frozen=True)
class Fit:
    """Where the pixels of an image went: `crop` of the source was stretched to fill `target` of the fitted image."""

    source: tuple[int, int]
    """(width, height) before."""
    crop: Region
    """What was kept, in pixels of the source."""
    width: int
    height: int
    target: Region
    """Where it lies, in pixels of the fitted image; what is around it is padding."""

    def __str__(self) -> str:
        kept = "whole" if self.crop == (0, 0, *self.source) else f"part {self.crop}"
        whole = self.target == (0, 0, self.width, self.height)
        place = f"{self.width}x{self.height}" if whole else f"{self.target} of {self.width}x{self.height}"
        return f"{kept} of {self.source[0]}x{self.source[1]} px -> {place}"

    @property
    def scale(self) -> tuple[float, float]:
        """Fitted pixels per source pixel along x and y; they differ by rounding, or by stretching."""
        (a, b, c, d), (x0, y0, x1, y1) = self.target, self.crop
        return (c - a) / (x1 - x0), (d - b) / (y1 - y0)

    def points(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """Points (x, y) of the source, in pixels of the fitted image; they may lie outside of it."""
        (x, y), (x0, y0), (a, b) = self.scale, self.crop[:2], self.target[:2]
        return tuple(((px - x0) * x + a, (py - y0) * y + b) for px, py in points)

    def back(self, points: Sequence[Point]) -> tuple[Point, ...]:
        """Points of the fitted image, in pixels of the source: the inverse of `points`."""
        (x, y), (x0, y0), (a, b) = self.scale, self.crop[:2], self.target[:2]
        return tuple(((px - a) / x + x0, (py - b) / y + y0) for px, py in points)

    def boxes(self, boxes: Sequence[Box]) -> tuple[Box, ...]:
        """Boxes of the source, in pixels of the fitted image; not clipped."""
        low, high = self.points([b[:2] for b in boxes]), self.points([b[2:] for b in boxes])
        return tuple((*a, *b) for a, b in zip(low, high, strict=True))

    def tracks(self, tracks: Tracks) -> Tracks:
        """Tracks in any frame over the source image, in pixels of the fitted image.

        Warns about an object of which the crop takes more than half out of the frame, in whichever frame.
        Raises InputError if an object's first box was cropped away.
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
                    f"({self}); to pad it (--fit pad) keeps all of the image",
                    AnyI2VWarning,
                    stacklevel=3,
                )
                return

    def mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h2 w2"]:
        """A mask over the source image, at the fitted image's pixels; not set where the source has none."""
        width, height = self.source
        (x0, y0), (x1, y1) = self.back([(0, 0), (self.width, self.height)])
        return cropped(mask, (x0 / width, y0 / height, x1 / width, y1 / height), self.width, self.height)


def plan(source: tuple[int, int], width: int, height: int, mode: Mode = "crop") -> Fit:
    """Where an image of `source` = (width, height) goes; raises InputError for a size or mode that cannot be."""
    check_fit(width, height, mode)
    size = (width, height)
    crop = _centred(source, size) if mode == "crop" else (0, 0, *source)
    target = _centred(size, source) if mode == "pad" else (0, 0, *size)
    return Fit(source, crop, width, height, target)


def check_fit(width: int, height: int, mode: str) -> None:
    """Raises InputError for a size or mode that cannot be."""
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise InputError(
            f"size {width}x{height} is not possible; both must be at least 1, at most {MOST_PIXELS} in all"
        )
    if mode not in get_args(Mode):
        raise InputError(f"fit {mode!r} is not known; it must be one of {', '.join(get_args(Mode))}")


def fit_image(
    image: Float[Tensor, "3 h w"], width: int, height: int, mode: Mode = "crop"
) -> tuple[Float[Tensor, "3 {height} {width}"], Fit]:
    """The image at the size of a backbone, and the way of its pixels.

    Resized bilinearly, antialiased; an image that has the size already is returned as it is. With "crop", what
    sticks out of the new aspect ratio is cut away, evenly on both sides. With "pad", the whole image is kept, and
    the rest has the median colour of the image's border: paper stays paper, and an edge map's black stays black.
    With "stretch", the whole image fills the whole size.
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
    """Area of the part of a box that lies in a region."""
    sides = (min(box[k + 2], region[k + 2]) - max(box[k], region[k]) for k in (0, 1))
    return math.prod(max(side, 0.0) for side in sides)


def border_colour(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3"]:
    """The median, per channel, of the outermost pixels."""
    sides = (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1])
    return torch.cat(sides, dim=1).median(dim=1).values


def _centred(frame: tuple[int, int], aspect: tuple[int, int]) -> Region:
    """The largest region of `frame` with that aspect ratio, around its centre, at least a pixel wide and high."""
    scale = min(frame[0] / aspect[0], frame[1] / aspect[1])
    w, h = (min(max(round(side * scale), 1), most) for side, most in zip(aspect, frame, strict=True))
    x, y = (frame[0] - w) // 2, (frame[1] - h) // 2
    return x, y, x + w, y + h
