"""Measuring a micro video against its ground truth: is the object there, where, and in which colour?

The world's colours are known, so an object is found without any network: the largest connected patch of pixels
whose nearest palette colour is the object's, or one of the objects'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.micro.world.world import BACKGROUND_COLOURS, OBJECT_COLOURS

NAMES = (*OBJECT_COLOURS, *BACKGROUND_COLOURS)
SMALLEST = 20 / 64**2
"""An object smaller than this share of the frame does not count as found."""


@dataclass(frozen=True)
class Scores:
    """How well one object of a video follows condition, prompt and track."""

    trajectory_error: float
    """Mean distance in pixels between the object's centroid and the target; a frame without object counts half
    the frame's width. As for all scores, frames in which the target is not to be seen do not count."""
    relative_error: float
    """The same for the way from the object's own place in frame 1: how well the motion is followed, wherever it
    begins. Frames 2 and on; half the frame's width where the object, or its place in frame 1, is missing."""
    jerk: float
    """Mean length in pixels of the centroid's second difference over time, over the frames that allow it: 0 for
    steady motion; NaN if the object is nowhere found in three frames in a row."""
    found: float
    """Share of the frames with an object."""
    first_frame_iou: float
    """Intersection over union of the object found in frame 1 and the condition's mask."""
    colour_right: bool
    """Most of the condition's mask has the prompted object colour in frame 1."""
    background_right: float
    """Mean share, over frames, of the pixels far from objects and targets that have the prompted colour; the same for
    all objects of a video."""


@dataclass(frozen=True)
class Target:
    """What an object must look like and where it must go."""

    colour: str
    centres: Float[Tensor, "f 2"]
    """Of its mask, (x, y) in pixels; NaN in a frame in which it cannot be seen."""
    mask: Bool[Tensor, "h w"]
    """In the condition image."""
    margin: float
    """Pixels nearer than this to the target do not count as background."""


def nearest_colours(video: Float[Tensor, "f 3 h w"]) -> Int[Tensor, "f h w"]:
    """Index into `NAMES` of the palette colour nearest to each pixel."""
    palette = torch.tensor([*OBJECT_COLOURS.values(), *BACKGROUND_COLOURS.values()])
    pixels = video.movedim(1, -1).flatten(0, 2)
    return torch.cdist(pixels, palette).argmin(-1).view(video.shape[0], *video.shape[2:])


def largest_component(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """The largest 4-connected patch of each mask; empty masks stay empty.

    Each pixel begins with a label of its own and takes its neighbourhood's largest until nothing changes.
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
    """Per frame, the mask of the object of that colour; empty where there is none of notable size."""
    return notable(largest_component(nearest_colours(video) == NAMES.index(colour)))


def notable(masks: Bool[Tensor, "f h w"]) -> Bool[Tensor, "f h w"]:
    """The masks of the smallest size that counts or more; others become empty."""
    return masks & (masks.flatten(1).float().mean(1) >= SMALLEST)[:, None, None]


def find_objects(video: Float[Tensor, "f 3 h w"], targets: Sequence[Target]) -> list[Bool[Tensor, "f h w"]]:
    """Per object and frame, its mask; empty where there is none of notable size.

    A pixel with the colour of any object counts for the one whose target is nearest, so that objects which touch are
    two; of those the largest patch, across gaps of up to two pixels, which lie between colours. Whether an object has
    the right one of the prompt's colours is another question than whether it follows its track.
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
    """The masks with gaps of up to two pixels filled."""
    wider = F.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)
    return (-F.max_pool2d(-wider, 3, stride=1, padding=1))[:, 0] > 0


def centroids(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 2"]:
    """(x, y) of each mask in pixels; NaN for an empty one."""
    height, width = masks.shape[1:]
    weights = masks.float()
    area = weights.sum((1, 2))
    x = (weights.sum(1) * (torch.arange(width) + 0.5)).sum(1) / area
    y = (weights.sum(2) * (torch.arange(height) + 0.5)).sum(1) / area
    return torch.stack([x, y], dim=-1)


def bounding_areas(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, " f"]:
    """Pixels in the box around each mask; 0 for an empty one."""
    return masks.any(1).sum(1) * masks.any(2).sum(1) * 1.0


def measure(video: Float[Tensor, "f 3 h w"], targets: Sequence[Target], background: str) -> list[Scores]:
    """Scores of one video, in [0, 1], one per object; `background` is the colour that is prompted for it."""
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
    """Per object of several: in which share of the later frames it is still the object that it was in frame 1.

    `find_objects` asks only where objects are, so that two which exchange their places after frame 1 seem to follow
    their tracks. They are told apart by the colour of most of the patch, whichever of the objects' colours the object
    has in frame 1; two of one colour cannot be. Frames in which the target is not to be seen do not count; in those
    without object none is kept. NaN if frame 1 has no object, or no later frame counts.
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
    """Share of the pixels far from all objects and targets that have colour `index`, mean over the frames."""
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
    """How far the background moves between neighbouring frames, (x, y) in pixels.

    The shift of at most `reach` pixels by which two frames' details (brightness minus its mean over the
    background around) agree best; between whole pixels by the parabola through the neighbours.

    Args:
        video: in [0, 1].
        away: the pixels that belong to an object, per frame; they are left out.
        reach: length of the largest shift that is tried; of a texture that repeats itself, less than half a period.
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
    """Correlation of each frame with the next one, which has moved by (x, y)."""
    height, width = detail.shape[1:]
    rows, columns = slice(edge, height - edge), slice(edge, width - edge)
    moved_rows, moved_columns = slice(edge + y, height - edge + y), slice(edge + x, width - edge + x)
    a, b = detail[:-1, rows, columns], detail[1:, moved_rows, moved_columns]
    both = keep[:-1, rows, columns] & keep[1:, moved_rows, moved_columns]
    product, power = (a * b * both).sum((1, 2)), ((a * a * both).sum((1, 2)) * (b * b * both).sum((1, 2))).sqrt()
    return product / power.clamp(min=1e-12)


def _peak(score: Float[Tensor, "y x"], near: Bool[Tensor, "y x"]) -> Float[Tensor, "2"]:
    """(x, y) of the largest entry where `near` (never at the border), refined by a parabola along each axis."""
    y, x = divmod(int(score.where(near, -torch.inf).argmax()), score.shape[1])
    refined = []
    for line, at in ((score[y], x), (score[:, x], y)):
        before, peak, after = line[at - 1 : at + 2].tolist()
        curve = before - 2 * peak + after
        shift = 0.5 * (before - after) / curve if curve < 0 else 0.0
        refined.append(at + max(-0.5, min(shift, 0.5)))
    return torch.tensor(refined)
