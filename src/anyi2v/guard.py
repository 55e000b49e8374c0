"""NaN and infinity: found in the step where they appear, and reported with their place.

A job synchronises with the device when it checks whether its results are finite: once in a guided step, twice in an
iteration of the optimisation, once in several passes of the inversion. Only when they are not is the pass
repeated with a tap that looks for the first layer, so that a healthy job pays nothing.

What a later layer swallows does not reach a result: PyTorch's fused attention on CPUs makes finite values of NaN
queries when there are fewer than 16 keys. Queries that are recorded or aligned are therefore checked themselves.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from anyi2v.errors import NumericsError
from anyi2v.hook_points import Point
from anyi2v.taps import Pass, Stop, Tap, chain, no_tap


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
        if Point(name).per_frame:
            self.found += ", " + frames_text(~x.isfinite().transpose(0, 1).flatten(1).all(-1))
        raise Stop


def bad_layer(features: Mapping[str, Tensor]) -> str:
    """The first layer whose tensor is not finite."""
    return "layer " + next(name for name, x in features.items() if not x.isfinite().all())


def frames_text(bad: Bool[Tensor, " f"]) -> str:
    """The marked frames, numbered from 1, as in "frame 2" or "frames 1, 2, 5"."""
    numbers = [str(number + 1) for number in bad.nonzero().flatten().tolist()]
    return f"frame{'s' * (len(numbers) != 1)} {', '.join(numbers)}"
