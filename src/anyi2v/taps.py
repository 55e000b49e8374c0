"""Hook points: one function, passed as an argument, sees and may replace every named tensor of a network.

A tap is any `f(name, tensor) -> tensor`. The network calls it at each named place and goes on with what it
returns. Nothing is stored on modules, so there is nothing to clean up, two threads do not meet, and gradient
checkpointing replays exactly the same edits. Edits must be out of place: autograd may hold the tensor.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anyi2v.errors import HookError, closest

Tap = Callable[[str, Tensor], Tensor]
StopAt = Literal["point", "layer"]


def no_tap(name: str, tensor: Tensor) -> Tensor:
    """The default: the network does not even name its tensors, and a compiler sees nothing."""
    return tensor


class Stop(Exception):
    """Control flow, not an error: nothing after this point is wanted."""


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

    def wants(self, name: str) -> bool:
        """Whether any of the taps wants the costly point `name`."""
        return any(wants(tap, name) for tap in self.taps)


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
        if self.stop and complete and not self._stopped and (self.stop == "point" or is_layer(name)):
            self._stopped = True
            raise Stop
        return tensor

    def wants(self, name: str) -> bool:
        """Whether `name` is wished."""
        return name in self.names


class Replace:
    """Replaces the named tensors by `edits[name](tensor)`; other tensors pass.

    Raises HookError if an edit changes shape or dtype.
    """

    def __init__(self, edits: Mapping[str, Callable[[Tensor], Tensor]]):
        self.edits = dict(edits)

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

    def wants(self, name: str) -> bool:
        """Whether `name` is edited."""
        return name in self.edits


def wants(tap: Tap, name: str) -> bool:
    """Whether `tap` asks for `name`, a point that costs something to compute (attention probabilities).

    Plain functions have no `wants` and are not asked.
    """
    asks = getattr(tap, "wants", None)
    return bool(asks and asks(name))


PARTS = ("hidden", "query", "key", "value", "context", "probs")


def is_layer(name: str) -> bool:
    """Whether `name` is the output of a whole layer rather than a place inside one."""
    return name.rsplit(".", 1)[-1] not in PARTS


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises HookError for the first of `names` that is not in `known`, with the three closest names."""
    known = set(known)
    for name in names:
        if name not in known:
            raise HookError(f"unknown hook point {name!r}; the closest are {closest(name, sorted(known))}")
