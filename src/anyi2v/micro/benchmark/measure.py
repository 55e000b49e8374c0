"""Metrics of a micro video against its ground truth: presence, position and colour of objects.

The world's colours are known, so objects are found without a network, as the largest connected patch of pixels whose
nearest palette colour is that of the object, or of any of the objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.micro.world.world import BACKGROUND_COLOURS, OBJECT_COLOURS
from anyi2v.numerics.template_matching import peak_offset

NAMES = (*OBJECT_COLOURS, *BACKGROUND_COLOURS)
SMALLEST = 20 / 64**2
"""Minimum size of an object as a share of the frame; smaller ones do not count as found."""


@dataclass(frozen=True)
class Scores:
    """Scores of one object of a video for condition, prompt and track."""

    trajectory_error: float
    """Mean distance in pixels between the object's centroid and the target; a frame without the object counts as half
    the frame's width. As for all scores, frames in which the target is not visible are ignored."""
    relative_error: float
    """The same for the displacement from the object's own position in frame 1, so that a wrong start does not count.
    From frame 2 on; half the frame's width if the object is missing, there or in frame 1."""
    jerk: float
    """Mean length in pixels of the centroid's second difference over time, where defined: 0 for steady motion; NaN if
    the object is never found in three consecutive frames."""
    found: float
    """Share of frames in which the object is found."""
    first_frame_iou: float
    """Intersection over union of the object in frame 1 and the condition's mask."""
    colour_right: bool
    """Whether most of the condition's mask has the prompted object colour in frame 1."""
    background_right: float
    """Mean share, over frames, of the pixels far from objects and targets with the prompted colour; the same for all
    objects of a video."""


@dataclass(frozen=True)
class Target:
    """Expected colour, path and mask of an object."""

    colour: str
    centres: Float[Tensor, "f 2"]
    """Centroid (x, y) of its mask in pixels; NaN in frames in which it is not visible."""
    mask: Bool[Tensor, "h w"]
    """Mask in the condition image."""
    margin: float
    """Distance from the target, in pixels, within which pixels do not count as background."""


def nearest_colours(video: Float[Tensor, "f 3 h w"]) -> Int[Tensor, "f h w"]:
    """Return the index into `NAMES` of the palette colour nearest to each pixel."""
    palette = torch.tensor([*OBJECT_COLOURS.values(), *BACKGROUND_COLOURS.values()])
    pixels = video.movedim(1, -1).flatten(0, 2)
    return torch.cdist(pixels, palette).argmin(-1).view(video.shape[0], *video.shape[2:])


def largest_component(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """Return the largest 4-connected patch of each mask; empty masks stay empty.

    Each pixel starts with its own label and takes its neighbourhood's largest until nothing changes.
    """
    labels = torch.arange(1, masks[0].numel() + 1, dtype=torch.float32).view(masks.shape[1:]) * masks
    while True:
        across = F.max_pool2d(labels[:, None], (1, 3), stride=1, padding=(0, 1))
        down = F.max_pool2d(labels[:, None], (3, 1), stride=1, padding=(1, 0))
        spread = torch.maximum(across, down)[:, 0] * masks
        if torch.equal(spread, labels):
            break
        labels = spread
    out = torch.zeros_like(masks)
    for f, label in enumerate(labels.long()):
        counts = label.flatten().bincount()
        counts[0] = 0
        if counts.sum():
            out[f] = label == counts.argmax()
    return out


def find_object(video: Float[Tensor, "f 3 h w"], colour: str) -> Bool[Tensor, "f h w"]:
    """Return the mask of the object of a colour per frame; empty if there is none of sufficient size."""
    return notable(largest_component(nearest_colours(video) == NAMES.index(colour)))


def notable(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """Clear masks smaller than `SMALLEST`."""
    return masks & (masks.flatten(1).float().mean(1) >= SMALLEST)[:, None, None]


def find_objects(video: Float[Tensor, "f 3 h w"], targets: Sequence[Target]) -> list[Bool[Tensor, "f h w"]]:
    """Return each object's mask per frame; empty if there is none of sufficient size.

    A pixel with the colour of any object belongs to the object whose target is nearest, so that touching objects are
    separated; of these pixels the largest patch is kept, across gaps of up to two pixels, which occur between colours.
    Whether an object has the right colour is scored separately from its position.
    """
    height, width = video.shape[-2:]
    coloured = torch.isin(nearest_colours(video), torch.tensor([NAMES.index(target.colour) for target in targets]))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([target.centres for target in targets])[..., None, None, :]
    distance = (torch.stack([x, y], dim=-1) - centres).norm(dim=-1).nan_to_num(torch.inf)
    nearest = distance.argmin(0)
    masks = [coloured & (nearest == number) for number in range(len(targets))]
    return [notable(largest_component(closed(mask)) & mask) for mask in masks]


def closed(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """Fill gaps of up to two pixels in masks."""
    wider = F.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)
    return (-F.max_pool2d(-wider, 3, stride=1, padding=1))[:, 0] > 0


def centroids(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 2"]:
    """Return the centroid (x, y) of each mask in pixels; NaN for an empty one."""
    height, width = masks.shape[1:]
    weights = masks.float()
    area = weights.sum((1, 2))
    x = (weights.sum(1) * (torch.arange(width) + 0.5)).sum(1) / area
    y = (weights.sum(2) * (torch.arange(height) + 0.5)).sum(1) / area
    return torch.stack([x, y], dim=-1)


def bounding_areas(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, " f"]:
    """Return the number of pixels in the bounding box of each mask; 0 for an empty one."""
    return masks.any(1).sum(1) * masks.any(2).sum(1) * 1.0


def measure(video: Float[Tensor, "f 3 h w"], targets: Sequence[Target], background: str) -> list[Scores]:
    """Score a video in [0, 1], one entry per object; `background` is the prompted background colour."""
    names, width = nearest_colours(video), video.shape[-1]
    objects = find_objects(video, targets)
    background_right = _background(names, objects, targets, NAMES.index(background))
    scores = []
    for target, masks in zip(targets, objects, strict=True):
        centres, wanted = centroids(masks), target.centres
        seen = wanted.isfinite().all(-1)
        distance = (centres - wanted).norm(dim=-1).nan_to_num(width / 2)[seen]
        way = (centres - centres[0] - (wanted - wanted[0])).norm(dim=-1).nan_to_num(width / 2)[1:][seen[1:]]
        bends = (centres[2:] - 2 * centres[1:-1] + centres[:-2]).norm(dim=-1)
        inside = names[0][target.mask] == NAMES.index(target.colour)
        scores.append(
            Scores(
                trajectory_error=distance.mean().item(),
                relative_error=way.mean().item(),
                jerk=bends.nanmean().item(),
                found=masks.flatten(1).any(1)[seen].float().mean().item(),
                first_frame_iou=((masks[0] & target.mask).sum() / (masks[0] | target.mask).sum()).item(),
                colour_right=inside.float().mean().item() > 0.5,
                background_right=background_right,
            )
        )
    return scores


def identities_kept(video: Float[Tensor, "f 3 h w"], targets: Sequence[Target]) -> list[float]:
    """Return, per object, the share of later frames in which it has the same identity as in frame 1.

    `find_objects` only uses positions, so two objects that swap places after frame 1 would seem to follow their tracks.
    They are distinguished by the main colour of the patch, compared to its colour in frame 1, whichever it is; objects
    of equal colour cannot be distinguished. Frames in which the target is not visible are ignored; in frames without
    the object the identity is lost. NaN if frame 1 has no object, or all later frames are ignored.
    """
    names, palette = nearest_colours(video), torch.tensor([NAMES.index(target.colour) for target in targets])
    shares = []
    for target, masks in zip(targets, find_objects(video, targets), strict=True):
        areas = torch.stack([((names == colour) & masks).flatten(1).sum(1) for colour in palette], dim=1)
        colours = areas.argmax(1).where(areas.any(1), -1)
        counted = target.centres.isfinite().all(-1)[1:]
        kept = (colours[1:] == colours[0])[counted].float().mean().item()
        shares.append(kept if colours[0] >= 0 else math.nan)
    return shares


def _background(
    names: Int[Tensor, "f h w"], objects: Sequence[Bool[Tensor, "f h w"]], targets: Sequence[Target], index: int
) -> float:
    """Return the share of pixels far from all objects and targets with colour `index`, averaged over the frames."""
    height, width = names.shape[1:]
    grid = torch.stack(torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy"), dim=-1)
    area = torch.ones_like(names, dtype=torch.bool)
    for target, masks in zip(targets, objects, strict=True):
        area &= (grid - target.centres[:, None, None]).norm(dim=-1).nan_to_num(torch.inf) > target.margin
        area &= F.max_pool2d(masks[:, None].float(), 5, stride=1, padding=2)[:, 0] == 0
    right = (names == index) & area
    return (right.sum((1, 2)) / area.sum((1, 2)).clamp(min=1)).mean().item()


def displacements(
    video: Float[Tensor, "f 3 h w"], away: Bool[Tensor, "f h w"], *, reach: float
) -> Float[Tensor, "g 2"]:
    """Estimate the displacement (x, y) of the background between consecutive frames, in pixels.

    The displacement is the shift of at most `reach` pixels that maximises the correlation of two frames' details
    (brightness minus its local background mean), refined to subpixels by a parabola.

    Args:
        video: in [0, 1].
        away: pixels of objects per frame, which are ignored.
        reach: largest shift to try; for a repeating texture, less than half a period.
    """
    grey, keep, edge = video.mean(1), ~away, math.ceil(reach) + 1
    inside, weight = (F.avg_pool2d(x, 13, stride=1, padding=6) for x in (grey * keep, keep.float()))
    detail = grey - inside / weight.clamp(min=1e-6)
    span = torch.arange(-edge, edge + 1)
    scores = torch.stack([torch.stack([_agreement(detail, keep, int(x), int(y), edge) for x in span]) for y in span])
    near = torch.hypot(span[:, None].float(), span.float()) <= reach
    return torch.stack([_peak(score, near) for score in scores.movedim(-1, 0)]) - edge


def _agreement(
    detail: Float[Tensor, "f h w"], keep: Bool[Tensor, "f h w"], x: int, y: int, edge: int
) -> Float[Tensor, " g"]:
    """Compute the correlation of each frame with the next one, shifted by (x, y)."""
    height, width = detail.shape[1:]
    rows, columns = slice(edge, height - edge), slice(edge, width - edge)
    moved_rows, moved_columns = slice(edge + y, height - edge + y), slice(edge + x, width - edge + x)
    a, b = detail[:-1, rows, columns], detail[1:, moved_rows, moved_columns]
    both = keep[:-1, rows, columns] & keep[1:, moved_rows, moved_columns]
    product, power = (a * b * both).sum((1, 2)), ((a * a * both).sum((1, 2)) * (b * b * both).sum((1, 2))).sqrt()
    return product / power.clamp(min=1e-12)


def _peak(score: Float[Tensor, "y x"], near: Bool[Tensor, "y x"]) -> Float[Tensor, "2"]:
    """Return (x, y) of the largest entry where `near` (never at the border), refined by a parabola along each axis."""
    y, x = divmod(int(score.where(near, -torch.inf).argmax()), score.shape[1])
    lines = ((score[y], x), (score[:, x], y))
    return torch.tensor([at + peak_offset(*line[at - 1 : at + 2].tolist()) for line, at in lines])
