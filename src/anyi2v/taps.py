"""Hook points: one function, passed as an argument, sees and may replace every named tensor of a network.

A tap is any `f(name, tensor) -> tensor`. The network calls it at each named place and goes on with what it
returns. Nothing is stored on modules, so there is nothing to clean up, two threads do not meet, and gradient
checkpointing replays exactly the same edits. Edits must be out of place: autograd may hold the tensor. A tap that
returns the tensors it was given changes no bit of the result.

A tap may say in `names` which points it handles, as `Recorder`, `Replace` and `At` do. Then a name that the network
does not have is a HookError before the pass begins, and the tap is also offered the costly points among them: attention
maps, `*.logits` and `*.probs`, which the fast kernels never hold and which a plain function is not offered.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anyi2v.errors import HookError
from anyi2v.hook_points import Point

Tap = Callable[[str, Tensor], Tensor]
StopAt = Literal["point", "layer"]


def no_tap(name: str, tensor: Tensor) -> Tensor:
    """The default: the network does not even name its tensors, and a compiler sees nothing."""
    return tensor


class Stop(Exception):
    """Control flow, not an error: nothing after this point is wanted.

    It ends a call of a UNet, whose caller catches it, or of `record`. A job needs whole passes: see `whole`.
    """


@dataclass(frozen=True)
class Pass:
    """Which pass of the UNet within a job."""

    stage: Literal["inversion", "optimisation", "denoising"]
    timestep: int
    step: int | None = None
    """Denoising step, from 0; the optimisation before a step has its number."""
    iteration: int | None = None
    """Of the optimisation, from 0."""

    def __str__(self) -> str:
        step = f"timestep {self.timestep}" if self.step is None else f"step {self.step} (timestep {self.timestep})"
        return f"stage {self.stage}, {step}" + ("" if self.iteration is None else f", iteration {self.iteration}")


Taps = Callable[[Pass], Tap]
"""Gives the tap for each pass of a job; it acts after the method's own edits."""


def no_taps(at: Pass) -> Tap:
    """The default: no pass is watched."""
    return no_tap


def chain(*taps: Tap) -> Tap:
    """Applies taps from left to right: put edits first and readers after them."""
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
        """Each tap sees what the one before returned."""
        for tap in self.taps:
            tensor = tap(name, tensor)
        return tensor

    @property
    def names(self) -> frozenset[str]:
        """What those of the taps handle that say so."""
        return frozenset().union(*map(handled, self.taps))

    def wants(self, name: str) -> bool:
        """Whether any of the taps wants the costly point `name`."""
        return any(wants(tap, name) for tap in self.taps)


class At:
    """Calls a function at the named points only, costly ones included.

    Args:
        names: points, see `anyi2v.points`.
        function: any tap, called there; what it returns replaces the tensor.
    """

    def __init__(self, names: Iterable[str], function: Tap):
        self.names, self.function = frozenset(names), function

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What the function returns at its points; other tensors are returned unchanged."""
        return self.function(name, tensor) if name in self.names else tensor


class Recorder:
    """Keeps the tensors of the wished names, alive for autograd, in `seen`.

    Args:
        names: points to keep.
        stop: raise `Stop` as soon as all are there: "point" exactly there (eager mode), "layer" at the next
            layer output, which lies between compiled regions. None runs to the end.

    The first value of a name is kept and `Stop` is raised once, so that the recomputation of checkpointed
    layers during the backward pass neither overwrites values nor stops early. Make a new one for each pass.
    """

    def __init__(self, names: Iterable[str], *, stop: StopAt | None = None):
        self.names = frozenset(names)
        self.stop = stop
        self.seen: dict[str, Tensor] = {}
        self._stopped = False

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Returns `tensor` itself; raises Stop where asked."""
        if name in self.names and name not in self.seen:
            self.seen[name] = tensor
        complete = len(self.seen) == len(self.names)
        if self.stop and complete and not self._stopped and (self.stop == "point" or Point(name).kind == "layer"):
            self._stopped = True
            raise Stop
        return tensor


class Replace:
    """Replaces the named tensors by `edits[name](tensor)`; other tensors pass.

    Raises HookError if an edit changes shape or dtype.
    """

    def __init__(self, edits: Mapping[str, Callable[[Tensor], Tensor]]):
        self.edits = dict(edits)
        self.names = frozenset(self.edits)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The edited tensor, or `tensor` itself if its name has no edit."""
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
    """Whether `tap` asks for the costly point `name`: by its `names`, or by a method `wants` of its own."""
    asks = getattr(tap, "wants", None)
    return bool(asks(name)) if asks else name in handled(tap)


def handled(tap: Tap) -> frozenset[str]:
    """The points that `tap` says it handles; none for a plain function, which may handle any."""
    return frozenset(getattr(tap, "names", ()))


def whole(taps: Taps) -> Taps:
    """The same taps for a job, whose passes none may end early: Stop becomes a HookError that says so."""
    if taps is no_taps:
        return no_taps

    def guarded(at: Pass) -> Tap:
        tap = taps(at)
        return tap if tap is no_tap else _Whole(tap, at)

    return guarded


class _Whole:
    """A tap that may not stop its pass; see `whole`."""

    def __init__(self, tap: Tap, at: Pass):
        self.tap, self.at, self.names = tap, at, handled(tap)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        try:
            return self.tap(name, tensor)
        except Stop as stop:
            raise HookError(
                f"a tap raised Stop at {name} in {self.at}, but a job needs its passes whole; Stop is for calls of "
                "backbone.unet and anyi2v.record, here a Recorder without stop= serves"
            ) from stop

    def wants(self, name: str) -> bool:
        return wants(self.tap, name)
