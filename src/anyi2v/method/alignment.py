"""Cross-frame alignment (Section 3.3, Eq. 3, 4 and 8), from feature maps to the loss and its masks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import HookError
from anyi2v.hook_points import TOKENS, Point
from anyi2v.method.config import AlignmentOptions, Anchors, Normalise, PcaSolver
from anyi2v.method.crops import Crops, Maps
from anyi2v.method.masks import (
    Cluster,
    dilated,
    first_frame_masks,
    foreground,
    shared_first_mask,
    similarity,
    with_given,
)
from anyi2v.numerics.pca import fit, project


class Alignment(NamedTuple):
    """The loss of one optimisation iteration, with the masks behind it."""

    loss: Float[Tensor, ""]
    masks: Float[Tensor, "l o f y x"]
    """M_j of every layer, object and frame, as crops."""
    similarities: Float[Tensor, "l o f y x"]
    """S_j of every layer, object and frame, as crops; the masks are computed from these."""
    errors: Float[Tensor, "l o f"]
    """Contribution of each layer, object and frame to the loss, before the objects' weights and the division by the
    overlap; no gradient."""


def without_masks(loss: Float[Tensor, ""]) -> Alignment:
    """Wrap a bare loss in an `Alignment` with empty masks."""
    empty = loss.detach().new_zeros(0, 0, 0, 0, 0)
    return Alignment(loss, empty, empty, empty.flatten(2))


class Weights(NamedTuple):
    """Masks, similarities and cell weights of the crops; no gradient."""

    masks: Float[Tensor, "l o f y x"]
    """M_j of every layer, object and frame."""
    similarities: Float[Tensor, "l o f y x"]
    """S_j of every layer, object and frame."""
    products: Float[Tensor, "l o f y x"]
    """M_1 M_j, the weights of the cells; zero in frame 1, which is the reference."""


def feature_map(name: str, x: Tensor) -> Float[Tensor, "f h w c"]:
    """Convert a recorded tensor of a single clip to a float32 map with channels last.

    Raises:
        HookError: the point is not a spatial feature map (text or temporal attention, attention maps).
    """
    point = Point(name)
    if not point.is_map:
        raise HookError(f"{name} is not a spatial feature map; align a query, key, value, hidden or layer output")
    x = x[0] if point.axes == TOKENS else x[0].movedim(1, -1)
    return x.float()


def reduce(
    x: Float[Tensor, "f h w c"],
    components: int | None,
    *,
    solver: PcaSolver = "exact",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "f h w m"]:
    """Project features onto the principal components of all frames' vectors (Eq. 4).

    No gradient flows through the basis. With `components=None` the features are returned unchanged.
    """
    if components is None:
        return x
    basis = fit(x.detach().flatten(0, 2), min(components, x.shape[-1]), solver=solver, generator=generator)
    return project(x, basis)


def cut(x: Float[Tensor, "f h w m"], matrices: tuple[Tensor, Tensor]) -> Float[Tensor, "o f y x m"]:
    """Cut the crops of all objects out of each frame's map."""
    rows, cols = matrices
    return torch.einsum("ofxw,ofywm->ofyxm", cols, torch.einsum("ofyh,fhwm->ofywm", rows, x))


def align(
    features: Sequence[Float[Tensor, "f _ _ _"]],
    crops: Crops,
    maps: Sequence[Maps],
    options: AlignmentOptions | None = None,
    cluster: Cluster | None = None,
) -> Alignment:
    """Compute the masked squared difference between each frame's crop and frame 1's (Eq. 3 and 8).

    No gradient flows through frame 1's features. The squared difference of a cell is averaged over the components, and
    the sum over cells is divided by the sum of the mask products (the overlap), so that the loss depends neither on the
    size of the boxes nor on the number of components.

    Args:
        features: reduced features, one map per aligned layer.
        crops: the boxes.
        maps: `crops.maps(h, w)` for the size of each feature map.
        options: by default the paper's settings.
        cluster: separates the object from the background in a box; by default `masks.foreground` with `options`.
    """
    options = options or AlignmentOptions()
    now, first = cut_all(features, maps)
    with torch.no_grad():
        similar = all_similarities(features, now, first, crops, maps, options.anchors)
        weights = weigh(similar, clustered(similar, now, crops, options, cluster), crops, options)
    return compare(now, first, weights, normalise=options.normalise, objects=crops.loss_weights)


def cut_all(
    features: Sequence[Float[Tensor, "f _ _ _"]], maps: Sequence[Maps]
) -> tuple[list[Float[Tensor, "o f y x _"]], list[Float[Tensor, "o f y x _"]]]:
    """Cut the crops of every layer, and frame 1's crops resized to each of them, without gradient, as reference."""
    now = [cut(x, m.now) for x, m in zip(features, maps, strict=True)]
    first = [cut(x[:1].detach().expand_as(x), m.first) for x, m in zip(features, maps, strict=True)]
    return now, first


def all_similarities(
    features: Sequence[Float[Tensor, "f _ _ _"]],
    now: Sequence[Float[Tensor, "o f y x _"]],
    first: Sequence[Float[Tensor, "o f y x _"]],
    crops: Crops,
    maps: Sequence[Maps],
    anchors: Anchors,
) -> Float[Tensor, "l o f y x"]:
    """Compute S_j of every layer, object and frame for the crops from `cut_all`."""
    points = [
        _anchors(anchors, x[0], reference, m, crops) for x, reference, m in zip(features, first, maps, strict=True)
    ]
    return torch.stack([similarity(n, p) for n, p in zip(now, points, strict=True)])


def clustered(
    similarities: Float[Tensor, "l o f y x"],
    now: Sequence[Float[Tensor, "o f y x _"]],
    crops: Crops,
    options: AlignmentOptions,
    cluster: Cluster | None = None,
) -> Bool[Tensor, "l o f y x"]:
    """Compute each frame's own mask by clustering; with `mask="none"` it is the whole box."""
    if options.mask == "none":
        return crops.valid.expand_as(similarities)
    features = [x.detach() for x in now]
    if cluster is not None:
        return cluster(similarities, features, crops.valid) & crops.valid
    return foreground(similarities, features, crops.valid, options)


def weigh(
    similarities: Float[Tensor, "l o f y x"],
    masks: Bool[Tensor, "l o f y x"],
    crops: Crops,
    options: AlignmentOptions,
) -> Weights:
    """Compute the weights of the cells of all crops (Section 3.4).

    Args:
        similarities: S_j, kept in the result.
        masks: the masks from `clustered`.
        crops: the boxes, and the users' masks.
        options: only `mask`, `mask_margin` and `first_frame_mask` are used.
    """
    found = dilated(with_given(masks, crops), crops, options.mask_margin)
    carried = first_frame_masks(found, crops)
    if options.mask == "none":  # but a mask given by the user applies to all frames
        found = torch.where(crops.has_given[:, None, None, None], carried, masks)
    elif options.mask == "static":
        found = carried
    if options.first_frame_mask == "shared":
        carried = shared_first_mask(found, crops)
        # the published loop skips frame 1 of the first object only; the others add to the overlap
        kept = torch.ones_like(carried)
        kept[:, 0, 0] = 0
    else:
        kept = torch.ones_like(carried, dtype=torch.float32)
        kept[:, :, 0] = 0
    return Weights(found.float(), similarities, found.float() * carried * kept)


def compare(
    now: Sequence[Float[Tensor, "o f y x _"]],
    first: Sequence[Float[Tensor, "o f y x _"]],
    weights: Weights,
    *,
    normalise: Normalise = "per_object",
    objects: Float[Tensor, " o"] | None = None,
) -> Alignment:
    """Compute Eq. 3 and 8 from the crops of `cut_all` and the weights of `weigh`.

    `objects` holds a factor for each object's error (`Track.weight`, not in the paper); None: 1.
    """
    squares = [(((n - r) * w[..., None]) ** 2).mean(-1) for n, r, w in zip(now, first, weights.products, strict=True)]
    difference = torch.stack(squares)
    error = difference.sum(dim=(0, 2, 3, 4))
    if objects is not None:
        error = error * objects
    overlap = weights.products.sum(dim=(0, 2, 3, 4))
    if normalise == "all_objects":
        error, overlap = error.sum(), overlap.sum()
    # without overlap an object has no error either: its loss is zero, not 0/0
    loss = (error / torch.where(overlap > 0, overlap, 1.0)).sum()
    return Alignment(loss, weights.masks, weights.similarities, difference.detach().sum(dim=(3, 4)))


def _anchors(
    kind: Anchors,
    first: Float[Tensor, "h w m"],
    reference: Float[Tensor, "o f y x m"],
    maps: Maps,
    crops: Crops,
) -> Float[Tensor, "o f k m"]:
    """Look up the features of the salient points, F_1[P_k].

    "attached" reads them in frame 1 itself, regardless of the later boxes. "box_index" (published code) uses a point's
    offset from the corner of the first box as an index into the resized and clipped crop of frame f.
    """
    if kind == "attached":
        rows, cols = maps.points
        points = torch.einsum("okh,okw,hwm->okm", rows, cols, first)
        return points[:, None].expand(-1, reference.shape[1], -1, -1)
    sizes = (crops.valid.any(axis).sum(-1, keepdim=True) for axis in (-1, -2))
    y, x = (
        torch.minimum(offset[:, None], (size - 1).clamp(min=0))
        for offset, size in zip(crops.offsets, sizes, strict=True)
    )
    o = torch.arange(y.shape[0], device=first.device)[:, None, None]
    f = torch.arange(y.shape[1], device=first.device)[None, :, None]
    return reference[o, f, y, x]
