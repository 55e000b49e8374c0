"""Measuring a micro video against its ground truth: is the object there, where, and in which colour?

The world's colours are known, so an object is found without any network: the largest connected patch of pixels
whose nearest palette colour is the object's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.micro.world import BACKGROUND_COLOURS, OBJECT_COLOURS

NAMES = (*OBJECT_COLOURS, *BACKGROUND_COLOURS)
SMALLEST = 20 / 64**2
"""An object smaller than this share of the frame does not count as found."""


@dataclass(frozen=True)
class Scores:
    """How well one video follows its condition, prompt and track."""

    trajectory_error: float
    """Mean distance in pixels between the object's centroid and the target; a frame without object counts half
    the frame's width."""
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
    """Mean share, over frames, of the pixels far from object and target that have the prompted colour."""


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
    masks = largest_component(nearest_colours(video) == NAMES.index(colour))
    large = masks.flatten(1).float().mean(1) >= SMALLEST
    return masks & large[:, None, None]


def centroids(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 2"]:
    """(x, y) of each mask in pixels; NaN for an empty one."""
    height, width = masks.shape[1:]
    weights = masks.float()
    area = weights.sum((1, 2))
    x = (weights.sum(1) * (torch.arange(width) + 0.5)).sum(1) / area
    y = (weights.sum(2) * (torch.arange(height) + 0.5)).sum(1) / area
    return torch.stack([x, y], dim=-1)


def measure(
    video: Float[Tensor, "f 3 h w"],
    *,
    colour: str,
    background: str,
    targets: Float[Tensor, "f 2"],
    condition_mask: Bool[Tensor, "h w"],
    margin: float,
) -> Scores:
    """Scores of one video.

    Args:
        video: in [0, 1].
        colour: prompted colour of the object.
        background: prompted colour of the background.
        targets: where the object's centre shall be, (x, y) in pixels.
        condition_mask: the object in the condition image.
        margin: pixels nearer than this to the target or the object do not count as background.
    """
    masks = find_object(video, colour)
    found = masks.flatten(1).any(1)
    width = video.shape[-1]
    centres = centroids(masks)
    distance = (centres - targets).norm(dim=-1).nan_to_num(width / 2)
    way = (centres - centres[0] - (targets - targets[0])).norm(dim=-1).nan_to_num(width / 2)[1:]
    bends = (centres[2:] - 2 * centres[1:-1] + centres[:-2]).norm(dim=-1)
    union = (masks[0] | condition_mask).sum()
    names = nearest_colours(video)
    inside = names[0][condition_mask] == NAMES.index(colour)
    return Scores(
        trajectory_error=distance.mean().item(),
        relative_error=way.mean().item(),
        jerk=bends.nanmean().item(),
        found=found.float().mean().item(),
        first_frame_iou=((masks[0] & condition_mask).sum() / union).item(),
        colour_right=inside.float().mean().item() > 0.5,
        background_right=_background(names, masks, targets, margin, NAMES.index(background)),
    )


def _background(
    names: Int[Tensor, "f h w"],
    masks: Bool[Tensor, "f h w"],
    targets: Float[Tensor, "f 2"],
    margin: float,
    index: int,
) -> float:
    height, width = names.shape[1:]
    grid = torch.stack(torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy"), dim=-1)
    far = (grid - targets[:, None, None]).norm(dim=-1) > margin
    grown = F.max_pool2d(masks[:, None].float(), 5, stride=1, padding=2)[:, 0] > 0
    area = far & ~grown
    right = (names == index) & area
    return (right.sum((1, 2)) / area.sum((1, 2)).clamp(min=1)).mean().item()
