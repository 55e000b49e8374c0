"""Alignment of many or large objects in groups, to bound the memory of their features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyi2v.method.alignment import Alignment, Weights, all_similarities, clustered, compare, cut_all, weigh
from anyi2v.method.config import AlignmentOptions, Normalise
from anyi2v.method.crops import Crops, Maps
from anyi2v.method.masks import Cluster


def align_in_parts(
    features: Sequence[Float[Tensor, "f _ _ _"]],
    crops: Crops,
    options: AlignmentOptions | None = None,
    cluster: Cluster | None = None,
) -> Alignment:
    """Compute `alignment.align`, up to rounding, with the features of only one of `crops.parts` in memory.

    The backward pass cuts the crops of each part again. Masks have no channels and are kept for all objects at once.
    """
    options = options or AlignmentOptions()
    parts = [(numbers, part, [part.maps(*x.shape[1:3]) for x in features]) for numbers, part in crops.parts]
    objects = crops.valid.new_zeros(len(features), *crops.valid.shape)
    similarities = features[0].new_zeros(objects.shape)
    with torch.no_grad():
        for numbers, part, maps in parts:
            now, first = cut_all(features, maps)
            found = all_similarities(features, now, first, part, maps, options.anchors)
            _place(similarities, numbers, found)
            _place(objects, numbers, clustered(found, now, part, options, cluster))
            del now, first  # before the next part's are cut
        weights = weigh(similarities, objects, crops, options)
    loss, errors = features[0].new_zeros(()), features[0].new_zeros(objects.shape[:3])
    overlap = weights.products.sum()
    for numbers, part, maps in parts:
        mine = _of_part(weights, numbers, part)
        of_part, summands = checkpoint(
            _compare, maps, mine, options.normalise, part.loss_weights, *features, use_reentrant=False
        )
        if options.normalise == "all_objects":  # each part's is divided by the overlap of its own objects
            of_part = of_part * mine.products.sum() / torch.where(overlap > 0, overlap, 1.0)
        loss = loss + of_part
        _place(errors, numbers, summands)
    return Alignment(loss, weights.masks, weights.similarities, errors)


def _compare(
    maps: Sequence[Maps], weights: Weights, normalise: Normalise, objects: Float[Tensor, " o"] | None, *features: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, "l o f"]]:
    """Compute the loss and errors of the objects of one part."""
    made = compare(*cut_all(features, maps), weights, normalise=normalise, objects=objects)
    return made.loss, made.errors


def _of_part(weights: Weights, numbers: Sequence[int], part: Crops) -> Weights:
    y, x = part.valid.shape[2:]
    return Weights(*(torch.stack([values[:, o, :, :y, :x] for o in numbers], 1) for values in weights))


def _place(whole: Shaped[Tensor, "l o f *_"], numbers: Sequence[int], values: Shaped[Tensor, "l _ f *_"]) -> None:
    """Write the values of a part to the entries of its objects; `whole` may have more padding."""
    cells = tuple(slice(size) for size in values.shape[3:])
    for i, number in enumerate(numbers):
        whole[(slice(None), number, slice(None), *cells)] = values[:, i]
