"""Template matching: locate an object of a video's first frame in the later frames.

The template is the object's box in frame 1 with a margin. Its similarity to a place of a frame is Lin's concordance
correlation of the colours (Lin 1989), 2 cov / (var_t + var_f + |mean_t - mean_f|^2). It is 1 for equal pixels. Unlike
normalised cross-correlation it also compares contrast and colour, so that noise on a flat background is similar to
nothing. The sums of all places are computed by Fourier transforms, without the pixels outside of the frame (Padfield
2012).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor

SIDE = 64
"""Maximum shorter side in pixels; larger videos are reduced to it."""
SCALES = tuple(2.0 ** (k / 4) for k in range(-4, 5))
"""Sizes at which the object is searched, relative to frame 1; from one frame to the next, the size changes by at most
one step."""
MARGIN = 0.25
"""Margin on each side, in box sizes. Without it, a square that fills its box would have no outline."""
SURROUNDINGS = 0.25
"""Weight of pixels in the margin, and of those in the box but not in the mask; the object's pixels have weight 1."""
LEAST_SIMILARITY = 0.5
"""Minimum similarity of a place to count as the object."""
LEAST_CONTRAST = 0.03
"""Minimum standard deviation of a template's colours; below it there is nothing to recognise."""
LEAST_VISIBLE = 0.25
"""Minimum share of a template, by weight, within the frame."""
DISTANCE_PENALTY = 1.0
"""Similarity subtracted per frame diagonal of distance from the last place, to choose between similar objects."""


class Located(NamedTuple):
    """Places of an object in all frames of a video."""

    centres: Float[Tensor, "f 2"]
    """Centre (x, y) of the object's box in pixels; the last known one where the object is not found."""
    found: Bool[Tensor, " f"]
    """All False if frame 1 shows nothing to recognise in the box."""


class _Templates(NamedTuple):
    """The template at each of `SCALES`, on periodic canvases with its centre in the first pixel."""

    weights: Float[Tensor, "s 1 y x"]
    colours: Float[Tensor, "s 3 y x"]


@dataclass(frozen=True)
class _Shape:
    """Size of the frames, and of the larger canvases for Fourier transforms."""

    frame: tuple[int, int]
    canvas: tuple[int, int]

    def transformed(self, frame: Float[Tensor, "c h w"]) -> Complex[Tensor, "c y xx"]:
        """Transform a frame with zeros around it."""
        (height, width), (rows, columns) = self.frame, self.canvas
        return torch.fft.rfft2(F.pad(frame, (0, columns - width, 0, rows - height)))

    def sums(self, products: Complex[Tensor, "s n y xx"]) -> Float[Tensor, "s n h w"]:
        """Transform back, which yields a sum for each place of the frame."""
        return torch.fft.irfft2(products, s=self.canvas)[..., : self.frame[0], : self.frame[1]]


def locate(
    video: Float[Tensor, "f 3 h w"],
    box: tuple[float, float, float, float],
    mask: Bool[Tensor, "h w"] | None = None,
) -> Located:
    """Locate the object in `box` of frame 1 in each frame, in order.

    Only places with their centre inside the frame are considered.

    Args:
        video: in [0, 1], on the CPU.
        box: x0, y0, x1, y1 in pixels; at least partly inside the frame.
        mask: pixels of the object in frame 1; None: the whole box.
    """
    frames, _, height, width = video.shape
    video, mask = _reduced(video.float(), mask)
    ratio = torch.tensor([video.shape[3] / width, video.shape[2] / height])
    corners = torch.tensor(box).view(2, 2) * ratio
    centre, half = corners.mean(0), (corners[1] - corners[0]) / 2
    anchor = centre.floor() + 0.5  # the centre of a pixel, so that frame 1 is not interpolated
    similarity = _Similarity(video[0], (centre, half, anchor), mask)
    centres, found = centre.repeat(frames, 1), torch.zeros(frames, dtype=torch.bool)
    if similarity.contrast >= LEAST_CONTRAST:
        found[0], place, scale = True, anchor, SCALES.index(1.0)
        for frame in range(1, frames):
            near = slice(max(scale - 1, 0), scale + 2)
            best, value, number = _best(similarity(video[frame], near), place)
            found[frame] = value >= LEAST_SIMILARITY
            if found[frame]:
                place, scale = best, near.start + number
            centres[frame] = place + (centre - anchor) * SCALES[scale]
    return Located(centres / ratio, found)


def peak_offset(before: float, peak: float, after: float) -> float:
    """Return the position of the maximum of a parabola through three values at -1, 0 and 1, clipped to [-0.5, 0.5].

    0 if the middle value is not a maximum, or a value is infinite.
    """
    curve = before - 2 * peak + after
    return max(-0.5, min(0.5 * (before - after) / curve, 0.5)) if -math.inf < curve < 0 else 0.0


def _reduced(
    video: Float[Tensor, "f 3 h w"], mask: Bool[Tensor, "h w"] | None
) -> tuple[Float[Tensor, "f 3 y x"], Bool[Tensor, "y x"] | None]:
    """Reduce a video and a mask to a shorter side of at most `SIDE` pixels."""
    height, width = video.shape[2:]
    factor = SIDE / min(height, width)
    if factor >= 1:
        return video, mask
    size = (round(height * factor), round(width * factor))
    small = F.interpolate(video, size, mode="bilinear", antialias=True)
    return small, None if mask is None else F.interpolate(mask[None, None].float(), size, mode="area")[0, 0] >= 0.5


def _sampled(
    frame: Float[Tensor, "3 h w"],
    place: tuple[Float[Tensor, "2"], Float[Tensor, "2"], Float[Tensor, "2"]],
    mask: Bool[Tensor, "h w"] | None,
) -> _Templates:
    """Sample the templates from frame 1; `place` is the box's centre, half its size, and the templates' centre."""
    centre, half, anchor = place
    size = torch.tensor([frame.shape[2], frame.shape[1]])
    outer = half * (1 + 2 * MARGIN) + 1
    reach = torch.minimum((outer * SCALES[-1]).ceil(), size).long()
    # multiples of 32 have fast Fourier transforms
    columns, rows = (-(-(size + reach) // 32) * 32).tolist()
    x, y = (torch.arange(-n, n + 1) for n in reach.tolist())
    offsets = torch.stack(torch.meshgrid(x.float(), y.float(), indexing="xy"), dim=-1)
    pixels = torch.cat([frame, torch.ones(1, *frame.shape[1:]) if mask is None else mask[None].float()])
    weights, colours = torch.zeros(len(SCALES), 1, rows, columns), torch.zeros(len(SCALES), 3, rows, columns)
    for number, scale in enumerate(SCALES):
        at = anchor + offsets / scale
        grid = (2 * at / size - 1)[None]
        found = F.grid_sample(pixels[None], grid, padding_mode="border", align_corners=False)[0]
        away = (at - centre).abs()
        own = (away <= half).all(-1) & (found[3] >= 0.5)
        used = (away <= outer).all(-1) & ((at > 0) & (at < size)).all(-1)
        weights[number, 0, y[:, None] % rows, x % columns] = torch.where(own, 1.0, SURROUNDINGS) * used
        colours[number, :, y[:, None] % rows, x % columns] = found[:3]
    return _Templates(weights, colours)


class _Similarity:
    """Similarity of templates to each place of a frame; whatever does not depend on the frame is computed once."""

    def __init__(
        self,
        frame: Float[Tensor, "3 h w"],
        place: tuple[Float[Tensor, "2"], Float[Tensor, "2"], Float[Tensor, "2"]],
        mask: Bool[Tensor, "h w"] | None,
    ):
        weights, colours = _sampled(frame, place, mask)
        height, width = frame.shape[1:]
        self.shape = shape = _Shape((height, width), (weights.shape[2], weights.shape[3]))
        self.weights, self.weighted = (torch.fft.rfft2(x).conj() for x in (weights, weights * colours))
        inside = shape.transformed(torch.ones(1, height, width))
        self.visible = shape.sums(self.weights * inside).clamp(min=1e-6)
        self.means = shape.sums(self.weighted * inside) / self.visible
        brightness = (weights * colours.square()).sum(1, keepdim=True)
        squares = shape.sums(torch.fft.rfft2(brightness).conj() * inside) / self.visible
        self.variances = _variance(squares, self.means)
        total = weights.sum((2, 3), keepdim=True).clamp(min=1e-6)
        means = (weights * colours).sum((2, 3), keepdim=True) / total
        whole = _variance(brightness.sum((2, 3), keepdim=True) / total, means)
        self.hidden = self.visible < LEAST_VISIBLE * total
        self.least = (0.2 * whole).clamp(min=1e-6)
        """Minimum denominator, a tenth of its usual value: a part without contrast is similar to nothing."""
        self.contrast = whole[SCALES.index(1.0)].sqrt().item()

    def __call__(self, frame: Float[Tensor, "3 h w"], near: slice) -> Float[Tensor, "s h w"]:
        """Return the similarity at the scales `near`, by the place of the centre; -inf where it must not be."""
        visible, means, shape = self.visible[near], self.means[near], self.shape
        pixels, squares = (shape.transformed(x) for x in (frame, frame.square().sum(0, keepdim=True)))
        there = shape.sums(self.weights[near] * pixels) / visible
        products = shape.sums((self.weighted[near] * pixels).sum(1, keepdim=True)) / visible
        covariance = products - (there * means).sum(1, keepdim=True)
        variance = _variance(shape.sums(self.weights[near] * squares) / visible, there)
        apart = (there - means).square().sum(1, keepdim=True)
        similarity = 2 * covariance / torch.maximum(self.variances[near] + variance + apart, self.least[near])
        return similarity.masked_fill(self.hidden[near], -torch.inf)[:, 0]


def _variance(squares: Float[Tensor, "s 1 *p"], means: Float[Tensor, "s 3 *p"]) -> Float[Tensor, "s 1 *p"]:
    """Return the variance over all channels; rounding makes no variance negative."""
    return (squares - means.square().sum(1, keepdim=True)).clamp(min=0)


def _best(similarity: Float[Tensor, "s h w"], last: Float[Tensor, "2"]) -> tuple[Float[Tensor, "2"], float, int]:
    """Return position (x, y), similarity and scale number of the most similar place near `last`."""
    height, width = similarity.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    distance = torch.hypot(x - last[0], y - last[1]) / math.hypot(height, width)
    index = (similarity - DISTANCE_PENALTY * distance).argmax()
    scale, row, column = (int(i) for i in torch.unravel_index(index, similarity.shape))
    around = F.pad(similarity[scale], (1, 1, 1, 1), value=-math.inf)[row : row + 3, column : column + 3]
    shift = (peak_offset(*around[1].tolist()), peak_offset(*around[:, 1].tolist()))
    return torch.tensor([column, row]) + 0.5 + torch.tensor(shift), around[1, 1].item(), scale
