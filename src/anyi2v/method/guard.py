"""Locates NaN or infinity in an alignment by layer, frame and object, for error messages."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.guard import frames_text
from anyi2v.method.crops import Crops, Maps


def bad_map(features: Mapping[str, Float[Tensor, "f h w _"]], crops: Crops) -> str:
    """Describe the first map that is not finite: its layer, frames, and the objects whose boxes read the bad cells."""
    name, x = next((name, x) for name, x in features.items() if not x.isfinite().all())
    bad = ~x.isfinite().all(-1)
    return f"layer {name}, {frames_text(bad.flatten(1).any(-1))}, {_objects_text(_touched(bad, crops), crops)}"


def bad_errors(errors: Float[Tensor, "l o f"], layers: Sequence[str], crops: Crops) -> str:
    """Describe the first term of the loss that is not finite: its layer, object and frame."""
    bad = (~errors.isfinite()).nonzero()
    if not len(bad):
        return "the features and every object's error are finite"
    layer, number, frame = bad[0].tolist()
    return f"layer {layers[layer]}, {_objects_text([number], crops)}, frame {frame + 1}"


def _touched(bad: Bool[Tensor, "f h w"], crops: Crops) -> list[int]:
    """Return the indices of the objects whose crops read a bad cell."""
    maps: Maps = crops.maps(*bad.shape[1:])
    rows, cols = (matrix.abs() for matrix in maps.now)
    read = torch.einsum("ofyh,ofxw,fhw->o", rows, cols, bad.to(rows.dtype))
    return (read > 0).nonzero().flatten().tolist()


def _objects_text(numbers: list[int], crops: Crops) -> str:
    named = [f"object {number + 1} ({crops.names[number]!r})" for number in numbers]
    return ", ".join(named) or "in no object's box"
