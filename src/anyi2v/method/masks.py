"""Section 3.4: semantic masks, Eq. 5 to 7. All objects and frames at once."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.method.crops import Crops
from anyi2v.numerics.kmeans import two_means_1d


def similarity(crops: Float[Tensor, "o f y x m"], anchors: Float[Tensor, "o f k m"]) -> Float[Tensor, "o f y x"]:
    """Eq. 5 and 6: the largest cosine between each cell and the features of the object's salient points."""
    cosine = torch.einsum("ofyxm,ofkm->ofyxk", F.normalize(crops, dim=-1), F.normalize(anchors, dim=-1))
    return cosine.amax(-1)


def foreground(
    similarities: Float[Tensor, "l o f y x"],
    valid: Bool[Tensor, "o f y x"],
    clustering: Literal["per_frame", "joint"],
) -> Bool[Tensor, "l o f y x"]:
    """Eq. 7: per object and frame, 2-means of the similarities; the upper cluster is the object.

    "per_frame" clusters the mean of the layers' maps and gives all layers the same mask; "joint" (published
    code) clusters the cells of all layers' maps together, which gives one mask per layer.
    """
    if clustering == "per_frame":
        mask = two_means_1d(similarities.mean(0).flatten(-2), valid.flatten(-2))[0]
        return (mask.view_as(valid) & valid).expand_as(similarities)
    layers = similarities.shape[0]
    cells = similarities.movedim(0, -1).flatten(-3)
    mask = two_means_1d(cells, valid[..., None].expand(*valid.shape, layers).flatten(-3))[0]
    return mask.unflatten(-1, (*valid.shape[-2:], layers)).movedim(-1, 0) & valid


def with_given(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Bool[Tensor, "l o f y x"]:
    """The masks, with the users' own in frame 1 of the objects that have one."""
    first = torch.where(crops.has_given[:, None, None], crops.given, masks[:, :, 0])
    return torch.cat([first[:, :, None], masks[:, :, 1:]], dim=2)


def dilated(masks: Bool[Tensor, "l o f y x"], crops: Crops, margin: int) -> Bool[Tensor, "l o f y x"]:
    """The masks with those of frame 1, M_1, grown by `margin` cells in all eight directions, within their boxes.

    Cells are the working lattice's. The part of a box that lies outside the image stays background.
    """
    if margin == 0:
        return masks
    reach = min(margin, max(masks.shape[-2:]))
    first = F.max_pool2d(masks[:, :, 0].float(), 2 * reach + 1, stride=1, padding=reach).bool() & crops.valid[:, 0]
    return torch.cat([first[:, :, None], masks[:, :, 1:]], dim=2)


def first_frame_masks(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Bool[Tensor, "l o f y x"]:
    """M_1 of each object, carried from frame 1's box to the cells of its box in every frame.

    A cell takes the value of the nearest cell of frame 1's crop; one whose counterpart lay outside the image
    in frame 1 is background.
    """
    rows, cols = crops.first_cell
    o = torch.arange(masks.shape[1], device=masks.device)[:, None, None, None]
    first = masks[:, :, 0]
    carried = first[:, o, rows.clamp(min=0)[..., None], cols.clamp(min=0)[..., None, :]]
    return carried & (rows >= 0)[..., None] & (cols >= 0)[..., None, :]


def shared_first_mask(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Float[Tensor, "l o f y x"]:
    """The published code's M_1: the first object's mask serves all objects, resized in place (`Crops.shared_maps`).

    Resampled bilinearly again and again, its values become soft.
    """
    rows, cols = crops.shared_maps
    return torch.einsum("ofys,lst,ofxt->lofyx", rows, masks[:, 0, 0].float(), cols)
