"""Detection of NaN and infinity, reported with the step and layer where they first appear.

Checking whether results are finite synchronises with the device: once per guided step, twice per optimisation
iteration, once per several inversion passes. Only after a failed check is the pass repeated with a tap that finds the
first bad layer, so a healthy job pays nothing for it.

A NaN may be masked by a later layer: PyTorch's fused CPU attention returns finite values for NaN queries if there are
fewer than 16 keys. Recorded or aligned queries are therefore checked directly.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from anyi2v.errors import NumericsError
from anyi2v.hook_points import Point
from anyi2v.taps import Pass, Stop, Tap, chain, no_tap


def all_finite(*tensors: Tensor) -> bool:
    """Return whether all values of all tensors are finite; synchronises with the device once."""
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def failure(what: str, at: Pass | str, *, culprit: str = "", dtype: torch.dtype = torch.float32) -> NumericsError:
    """Build the error for a value that became NaN or infinite, with its place, its cause and advice.

    Args:
        what: the value, for example "the latents".
        at: the pass, or the name of a stage that has no passes.
        culprit: layer, object and frames, as far as known.
        dtype: dtype of the networks; determines the advice.
    """
    advice = "lower lr or guidance_scale, and check the weights file"
    if dtype != torch.float32:
        advice = f"compute in float32 instead of {str(dtype).removeprefix('torch.')}"
    place = f"stage {at}" if isinstance(at, str) else str(at)
    found = f": {culprit}" if culprit else ""
    return NumericsError(f"{what} became NaN or infinite in {place}{found}; {advice}")


def first_bad_layer(again: Callable[..., object], edit: Tap = no_tap) -> str:
    """Repeat a pass through `again(tap=...)` with its edits and describe the first hook point that is not finite."""
    finder = _Finder()
    try:
        with torch.no_grad():
            again(tap=chain(edit, finder))
    except Stop:
        return f"first in layer {finder.found}"
    return "every layer is finite; the values overflowed after the network"


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
    """Name the first layer whose tensor is not finite."""
    return "layer " + next(name for name, x in features.items() if not x.isfinite().all())


def frames_text(bad: Bool[Tensor, " f"]) -> str:
    """Format the marked frames, numbered from 1, as in "frame 2" or "frames 1, 2, 5"."""
    numbers = [str(number + 1) for number in bad.nonzero().flatten().tolist()]
    return f"frame{'s' * (len(numbers) != 1)} {', '.join(numbers)}"
