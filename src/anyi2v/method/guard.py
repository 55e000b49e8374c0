"""NaN and infinity: found in the step where they appear, and reported with their place.

A job waits for the device when it asks whether its results are finite: once in a guided step, twice in an
iteration of the optimisation, once in several passes of the inversion. Only when they are not is the pass
repeated with a tap that looks for the first layer, so that a healthy job pays nothing.

What a later layer swallows does not reach a result: PyTorch's fused attention on CPUs makes finite values of NaN
queries when there are fewer than 16 keys. Queries that are recorded or aligned are therefore asked themselves.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import NumericsError
from anyi2v.method.crops import Crops, Maps
from anyi2v.taps import Pass, Stop, Tap, chain, is_layer, no_tap


def all_finite(*tensors: Tensor) -> bool:
    """Whether every value is finite; asks the device once, however many tensors there are."""
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def failure(what: str, at: Pass | str, *, culprit: str = "", dtype: torch.dtype = torch.float32) -> NumericsError:
    """The error that says what became NaN or infinite, where, through what, and what to try.

    Args:
        what: the value, for example "the latents".
        at: the pass, or the name of a stage without passes.
        culprit: layer, object, frames, as far as they are known.
        dtype: of the networks; decides the advice.
    """
    advice = "lower lr or guidance_scale, and check the weights file"
    if dtype != torch.float32:
        advice = f"compute in float32 instead of {str(dtype).removeprefix('torch.')}"
    place = f"stage {at}" if isinstance(at, str) else str(at)
    found = f": {culprit}" if culprit else ""
    return NumericsError(f"{what} became NaN or infinite in {place}{found}; {advice}")


def first_bad_layer(again: Callable[..., object], edit: Tap = no_tap) -> str:
    """Repeats a pass by `again(tap=...)`, under the edits it had; the first hook point not finite, as text."""
    finder = _Finder()
    try:
        with torch.no_grad():
            again(tap=chain(edit, finder))
    except Stop:
        return f"first in layer {finder.found}"
    return "every layer is finite, the values overflowed after the network"


class _Finder:
    """A tap that stops the pass at the first tensor that is not finite."""

    found = ""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if x.isfinite().all():
            return x
        self.found = name
        # inside of temporal layers and of the attention to the text, axis 1 is not the frames
        if is_layer(name) or not ("temporal" in name or ".cross." in name):
            self.found += ", " + frames_text(~x.isfinite().transpose(0, 1).flatten(1).all(-1))
        raise Stop


def bad_layer(features: Mapping[str, Tensor]) -> str:
    """The first layer whose tensor is not finite."""
    return "layer " + next(name for name, x in features.items() if not x.isfinite().all())


def bad_map(features: Mapping[str, Float[Tensor, "f h w _"]], crops: Crops) -> str:
    """Layer and frames of the first map that is not finite, and the objects whose boxes read the bad cells."""
    name, x = next((name, x) for name, x in features.items() if not x.isfinite().all())
    bad = ~x.isfinite().all(-1)
    return f"layer {name}, {frames_text(bad.flatten(1).any(-1))}, {_objects_text(_touched(bad, crops), crops)}"


def bad_errors(errors: Float[Tensor, "l o f"], layers: tuple[str, ...], crops: Crops) -> str:
    """Layer, object and frame of the first summand of the loss that is not finite."""
    bad = (~errors.isfinite()).nonzero()
    if not len(bad):
        return "the features and every object's error are finite"
    layer, number, frame = bad[0].tolist()
    return f"layer {layers[layer]}, {_objects_text([number], crops)}, frame {frame + 1}"


def _touched(bad: Bool[Tensor, "f h w"], crops: Crops) -> list[int]:
    """Numbers of the objects whose crops read a bad cell in its frame."""
    maps: Maps = crops.maps(*bad.shape[1:])
    rows, cols = (matrix.abs() for matrix in maps.now)
    read = torch.einsum("ofyh,ofxw,fhw->o", rows, cols, bad.to(rows.dtype))
    return (read > 0).nonzero().flatten().tolist()


def _objects_text(numbers: list[int], crops: Crops) -> str:
    named = [f"object {number + 1} ({crops.names[number]!r})" for number in numbers]
    return ", ".join(named) or "in no object's box"


def frames_text(bad: Bool[Tensor, " f"]) -> str:
    """The marked frames, numbered from 1, as in "frame 2" or "frames 1, 2, 5"."""
    numbers = [str(number + 1) for number in bad.nonzero().flatten().tolist()]
    return f"frame{'s' * (len(numbers) != 1)} {', '.join(numbers)}"
