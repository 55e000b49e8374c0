"""Is it the right object, with its outline? Compares samples with the best aligned render of each object."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.scenes.world import SCALES, Placement, paint

STEPS = 16
"""Number of scales tried, from slightly below the smallest to slightly above the largest."""


class Templates(NamedTuple):
    """An object at the centre of the picture, at all scales and angles tried."""

    painted: Float[Tensor, "t 4 h w"]
    spectra: Tensor
    """Spectra of the masks at twice the size, so that positions do not wrap around."""
    areas: Float[Tensor, " t"]


class Fit(NamedTuple):
    """Best aligned render of an object for each of several masks."""

    iou: Float[Tensor, " n"]
    """Intersection over union of the mask and the object's true mask."""
    painted: Float[Tensor, "n 4 h w"]
    """The aligned object, with premultiplied colours."""


def templates(
    sprite: Float[Tensor, "4 s s"], size: int, angles: Sequence[float], scales: tuple[float, float] = SCALES
) -> Templates:
    """Return all renders of an object that masks are compared with."""
    low, high = scales
    sides = torch.linspace(0.85 * low, 1.1 * high, STEPS).tolist()
    painted = torch.stack([paint(sprite, Placement(0.5, 0.5, s, a), size) for s in sides for a in angles])
    masks = (painted[:, 3] > 0.5).float()
    return Templates(painted, torch.fft.rfft2(masks, s=(2 * size, 2 * size)), masks.sum((1, 2)))


def align(masks: Bool[Tensor, "n h w"], tried: Templates) -> Fit:
    """Find the render with the largest intersection over union with each mask, over all pixel positions."""
    size = masks.shape[-1]
    ious, found = [], []
    for mask in masks.float():
        spectrum = torch.fft.rfft2(mask, s=(2 * size, 2 * size))
        shared = torch.fft.irfft2(spectrum * tried.spectra.conj(), s=(2 * size, 2 * size)).round()
        iou = shared / (mask.sum() + tried.areas[:, None, None] - shared).clamp(min=1)
        best, row, column = torch.unravel_index(iou.argmax(), iou.shape)
        shift = [int((x + size) % (2 * size)) - size for x in (row, column)]
        ious.append(iou.max())
        found.append(_shifted(tried.painted[best], *shift))
    return Fit(torch.stack(ious), torch.stack(found))


def _shifted(painted: Float[Tensor, "4 h w"], down: int, right: int) -> Float[Tensor, "4 h w"]:
    height, width = painted.shape[1:]
    moved = torch.zeros_like(painted)
    to_y, from_y = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height + min(-down, 0))
    to_x, from_x = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width + min(-right, 0))
    moved[:, to_y, to_x] = painted[:, from_y, from_x]
    return moved


def distance(images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], fit: Fit) -> Float[Tensor, " n"]:
    """Distance between images and aligned renders in [0, 1]: mean over the union of both masks.

    A pixel in both masks counts the Euclidean distance between its colours, at most 1; a pixel in only one counts 1.
    """
    theirs = fit.painted[:, 3] > 0.5
    colours = fit.painted[:, :3] / fit.painted[:, 3:].clamp(min=0.5)
    gap = (images - colours).square().sum(1).sqrt().clamp(max=1)
    gap = torch.where(masks & theirs, gap, (masks ^ theirs).float())
    return gap.sum((1, 2)) / (masks | theirs).sum((1, 2)).clamp(min=1)


class Judgement(NamedTuple):
    """Judgement of each picture."""

    iou: Float[Tensor, " n"]
    """Intersection over union with the requested object's outline."""
    nearest: Int[Tensor, " n"]
    """Object whose aligned render is nearest."""
    masks: Bool[Tensor, "n h w"]
    fit: Fit
    """Alignment with the requested object."""


def judge(
    images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], asked: Int[Tensor, " n"], tried: Sequence[Templates]
) -> Judgement:
    """Compare pictures with every object."""
    fits = [align(masks, one) for one in tried]
    distances = torch.stack([distance(images, masks, fit) for fit in fits])
    rows = list(enumerate(asked.tolist()))
    own = Fit(torch.stack([fits[o].iou[i] for i, o in rows]), torch.stack([fits[o].painted[i] for i, o in rows]))
    return Judgement(own.iou, distances.argmin(0), masks, own)
