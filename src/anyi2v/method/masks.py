"""Semantic masks of all objects and frames (Section 3.4, Eq. 5 to 7)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.method.config import AlignmentOptions
from anyi2v.method.crops import Crops
from anyi2v.numerics.kmeans import kmeans, two_means_1d

POINTS = 64
"""Number of salient points compared with all cells at a time, to bound the memory."""


def similarity(crops: Float[Tensor, "o f y x m"], anchors: Float[Tensor, "o f k m"]) -> Float[Tensor, "o f y x"]:
    """Return the largest cosine similarity between each cell and the object's salient points (Eq. 5 and 6)."""
    cells = F.normalize(crops, dim=-1)
    some = F.normalize(anchors, dim=-1).split(POINTS, dim=-2)
    return torch.stack([torch.einsum("ofyxm,ofkm->ofyxk", cells, points).amax(-1) for points in some]).amax(0)


def foreground(
    similarities: Float[Tensor, "l o f y x"],
    features: Sequence[Float[Tensor, "o f y x _"]],
    valid: Bool[Tensor, "o f y x"],
    options: AlignmentOptions,
) -> Bool[Tensor, "l o f y x"]:
    """Segment each object from its box by K-Means, per frame (Eq. 7); the cluster most similar to its points is kept.

    Two clusters of similarities are split exactly. With clustering="per_frame" the layers are clustered together and
    share a mask: by the mean of their similarities, or by their concatenated features, each normalised to unit length.
    "joint" (published code) gives one mask per layer: by the similarities of all layers' cells, or by its own features.

    Args:
        similarities: S_j of every layer, object and frame.
        features: the reduced features of the same crops, per layer.
        valid: which cells of a crop are not padding.
        options: only `clustering`, `clusters` and `cluster_by` are used.
    """
    together = options.clustering == "per_frame"
    if options.cluster_by == "features":
        unit = [F.normalize(x, dim=-1) for x in features]
        stacks = [torch.cat(unit, -1)] if together else unit
        similar = [similarities.mean(0)] if together else list(similarities)
        masks = [
            _most_similar(x.flatten(2, 3), s.flatten(2), valid.flatten(2), options.clusters).view_as(valid)
            for x, s in zip(stacks, similar, strict=True)
        ]
        return torch.stack(masks * (len(similarities) if together else 1))
    if together:
        mask = _upper_cluster(similarities.mean(0).flatten(-2), valid.flatten(-2), options.clusters)
        return (mask.view_as(valid) & valid).expand_as(similarities)
    layers = similarities.shape[0]
    cells = similarities.movedim(0, -1).flatten(-3)
    mask = _upper_cluster(cells, valid[..., None].expand(*valid.shape, layers).flatten(-3), options.clusters)
    return mask.unflatten(-1, (*valid.shape[-2:], layers)).movedim(-1, 0) & valid


Cluster = Callable[
    [Float[Tensor, "l o f y x"], Sequence[Float[Tensor, "o f y x _"]], Bool[Tensor, "o f y x"]],
    Bool[Tensor, "l o f y x"],
]
"""Function that maps similarities, reduced features per layer and valid cells to object masks; see `foreground`."""


def _upper_cluster(x: Float[Tensor, "*b n"], valid: Bool[Tensor, "*b n"], clusters: int) -> Bool[Tensor, "*b n"]:
    """Return the members of the cluster with the largest values."""
    return two_means_1d(x, valid)[0] if clusters == 2 else _most_similar(x[..., None], x, valid, clusters)


def _most_similar(
    x: Float[Tensor, "*b n d"], similarities: Float[Tensor, "*b n"], valid: Bool[Tensor, "*b n"], clusters: int
) -> Bool[Tensor, "*b n"]:
    """Return the members of the cluster of the vectors `x` with the largest mean similarity."""
    labels = kmeans(x, min(clusters, x.shape[-2]), valid=valid).labels
    member = (labels[..., None] == torch.arange(clusters, device=x.device)).to(x.dtype)
    mean = torch.einsum("...nk,...n->...k", member, similarities) / member.sum(-2).clamp(min=1)
    best = mean.masked_fill(member.sum(-2) == 0, -torch.inf).argmax(-1, keepdim=True)
    return (labels == best) & valid


def with_given(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Bool[Tensor, "l o f y x"]:
    """Replace the masks of frame 1 by the users' masks, for objects that have one."""
    first = torch.where(crops.has_given[:, None, None], crops.given, masks[:, :, 0])
    return torch.cat([first[:, :, None], masks[:, :, 1:]], dim=2)


def dilated(masks: Bool[Tensor, "l o f y x"], crops: Crops, margin: int) -> Bool[Tensor, "l o f y x"]:
    """Dilate the masks of frame 1, M_1, by `margin` cells in all eight directions, within their boxes.

    Cells are those of the working lattice. The part of a box outside the image stays background.
    """
    if margin == 0:
        return masks
    reach = min(margin, max(masks.shape[-2:]))
    first = F.max_pool2d(masks[:, :, 0].float(), 2 * reach + 1, stride=1, padding=reach).bool() & crops.valid[:, 0]
    return torch.cat([first[:, :, None], masks[:, :, 1:]], dim=2)


def first_frame_masks(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Bool[Tensor, "l o f y x"]:
    """Carry M_1 of each object from frame 1's box to its box in every frame.

    A cell takes the value of the nearest cell of frame 1's crop; a cell whose counterpart is outside the image in frame
    1 is background.
    """
    rows, cols = crops.first_cell
    o = torch.arange(masks.shape[1], device=masks.device)[:, None, None, None]
    first = masks[:, :, 0]
    carried = first[:, o, rows.clamp(min=0)[..., None], cols.clamp(min=0)[..., None, :]]
    return carried & (rows >= 0)[..., None] & (cols >= 0)[..., None, :]


def shared_first_mask(masks: Bool[Tensor, "l o f y x"], crops: Crops) -> Float[Tensor, "l o f y x"]:
    """Return the published code's M_1: the first object's mask for all objects, resized in place (`Crops.shared_maps`).

    Repeated bilinear resampling makes its values soft.
    """
    rows, cols = crops.shared_maps
    return torch.einsum("ofys,lst,ofxt->lofyx", rows, masks[:, 0, 0].float(), cols)
