"""Taps: functions passed as arguments that see, and may replace, every named tensor of a network.

A tap is any `f(name, tensor) -> tensor`. The network calls it at each hook point and continues with the returned
tensor. Nothing is stored on modules, so there is nothing to clean up, threads do not interfere, and gradient
checkpointing replays exactly the same edits. Edits must be out of place, because autograd may hold the tensor. A tap
that returns its tensors unchanged leaves the result bit-identical.

A tap may list the points it handles in an attribute `names`, as `Recorder`, `Replace` and `At` do. A name that the
network does not have then raises HookError before the pass starts, and the tap is also called at the costly points
among them: the attention maps `*.logits` and `*.probs`, which fused kernels never materialise and for which a plain
function is not called.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anyi2v.errors import HookError
from anyi2v.hook_points import Point

Tap = Callable[[str, Tensor], Tensor]
"""Function that receives the name of a hook point and its tensor, and returns the tensor to continue with."""
StopAt = Literal["point", "layer"]


def no_tap(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor`. The default tap, for which the network skips naming its tensors."""
    return tensor


class Stop(Exception):
    """Raised by a tap to end a pass early; control flow, not an error.

    It ends a call of a UNet, where the caller catches it, or of `record`. A job needs complete passes, see `whole`.
    """


@dataclass(frozen=True)
class Pass:
    """Identifies one pass of the UNet within a job."""

    stage: Literal["inversion", "optimisation", "denoising"]
    timestep: int
    step: int | None = None
    """Denoising step, from 0; the optimisation has the number of the step that follows it."""
    iteration: int | None = None
    """Iteration of the optimisation, from 0."""

    def __str__(self) -> str:
        step = f"timestep {self.timestep}" if self.step is None else f"step {self.step} (timestep {self.timestep})"
        return f"stage {self.stage}, {step}" + ("" if self.iteration is None else f", iteration {self.iteration}")


Taps = Callable[[Pass], Tap]
"""Function that returns the tap for each pass of a job; the tap runs after the method's own edits."""


def no_taps(at: Pass) -> Tap:
    """Return `no_tap`. The default, which taps no pass."""
    return no_tap


def chain(*taps: Tap) -> Tap:
    """Combine taps, applied from left to right: put edits first and readers after them."""
    active = [tap for tap in taps if tap is not no_tap]
    if not active:
        return no_tap
    if len(active) == 1:
        return active[0]
    return Chain(active)


class Chain:
    """Several taps as one; see `chain`."""

    def __init__(self, taps: Iterable[Tap]):
        self.taps = tuple(taps)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Apply each tap to the tensor returned by the previous one."""
        for tap in self.taps:
            tensor = tap(name, tensor)
        return tensor

    @property
    def names(self) -> frozenset[str]:
        """The points handled by those taps that declare them."""
        return frozenset().union(*map(handled, self.taps))

    def wants(self, name: str) -> bool:
        """Return whether any of the taps wants the costly point `name`."""
        return any(wants(tap, name) for tap in self.taps)


class At:
    """A tap that calls a function at the named points only, costly ones included.

    Args:
        names: points, see `anyi2v.points`.
        function: any tap, called at these points; its result replaces the tensor.
    """

    def __init__(self, names: Iterable[str], function: Tap):
        self.names, self.function = frozenset(names), function

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the function's result at its points; other tensors are returned unchanged."""
        return self.function(name, tensor) if name in self.names else tensor


class Recorder:
    """A tap that keeps the tensors at the given points in `seen`, attached to the autograd graph.

    Args:
        names: points to keep.
        stop: raise `Stop` once all points are recorded: "point" immediately (eager mode), "layer" at the next layer
            output, which lies between compiled regions. None runs to the end.

    Only the first value of each name is kept and `Stop` is raised only once, so that the recomputation of checkpointed
    layers in the backward pass neither overwrites values nor stops early. Create a new one for each pass.
    """

    def __init__(self, names: Iterable[str], *, stop: StopAt | None = None):
        self.names = frozenset(names)
        self.stop = stop
        self.seen: dict[str, Tensor] = {}
        self._stopped = False

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` unchanged; raise Stop as set by `stop`."""
        if name in self.names and name not in self.seen:
            self.seen[name] = tensor
        complete = len(self.seen) == len(self.names)
        if self.stop and complete and not self._stopped and (self.stop == "point" or Point(name).kind == "layer"):
            self._stopped = True
            raise Stop
        return tensor


class Replace:
    """A tap that replaces the named tensors by `edits[name](tensor)`; other tensors are unchanged.

    Raises HookError if an edit changes shape or dtype.
    """

    def __init__(self, edits: Mapping[str, Callable[[Tensor], Tensor]]):
        self.edits = dict(edits)
        self.names = frozenset(self.edits)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the edited tensor, or `tensor` itself if its name has no edit; raise HookError as the class says."""
        edit = self.edits.get(name)
        if edit is None:
            return tensor
        new = edit(tensor)
        if new.shape != tensor.shape or new.dtype != tensor.dtype:
            raise HookError(
                f"the edit of {name} returned {tuple(new.shape)} {new.dtype}, "
                f"but the point holds {tuple(tensor.shape)} {tensor.dtype}"
            )
        return new


def wants(tap: Tap, name: str) -> bool:
    """Return whether `tap` requests the costly point `name`, by its method `wants` or its attribute `names`."""
    asks = getattr(tap, "wants", None)
    return bool(asks(name)) if asks else name in handled(tap)


def handled(tap: Tap) -> frozenset[str]:
    """Return the points that `tap` declares in `names`; empty for a plain function, which may handle any."""
    return frozenset(getattr(tap, "names", ()))


def whole(taps: Taps) -> Taps:
    """Wrap taps for a job, whose passes must not end early: Stop becomes a HookError."""
    if taps is no_taps:
        return no_taps

    def guarded(at: Pass) -> Tap:
        tap = taps(at)
        return tap if tap is no_tap else _Whole(tap, at)

    return guarded


class _Whole:
    """A tap that must not stop its pass; see `whole`."""

    def __init__(self, tap: Tap, at: Pass):
        self.tap, self.at, self.names = tap, at, handled(tap)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        try:
            return self.tap(name, tensor)
        except Stop as stop:
            raise HookError(
                f"a tap raised Stop at {name} in {self.at}, but a job needs complete passes; Stop is for calls of "
                "backbone.unet and anyi2v.record; in a job, use a Recorder without stop="
            ) from stop

    def wants(self, name: str) -> bool:
        return wants(self.tap, name)
