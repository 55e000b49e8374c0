"""Pieces of work measured in turns, so that a machine that slows down slows all of them down."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.operators import linear, private

Work = Callable[[], object]
R = TypeVar("R")


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in self)
        return f"{median} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


MOST = 300
"""Rounds of a measurement: more would tell nothing new and fill the files."""


def seconds(work: Mapping[str, Work], *, budget: float = 2.0, least: int = 3) -> dict[str, list[float]]:
    """Seconds of each piece, round by round, after one call of each that does not count.

    CPU time on one thread, which other processes disturb little; wall time on several.

    Args:
        work: pieces by name.
        budget: seconds for all rounds together, about; `MOST` rounds may take less.
        least: rounds at least.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for piece in work.values():
        piece()
    found: dict[str, list[float]] = {name: [] for name in work}
    start = time.perf_counter()
    for done in range(MOST):
        if done >= least and time.perf_counter() - start >= budget:
            break
        for name, piece in work.items():
            before = clock()
            piece()
            found[name].append(clock() - before)
    return found


def ratio(found: Mapping[str, Any], over: str, under: str) -> Spread:
    """How many times as long `over` takes as `under`, from round to round."""
    return spread([a / b for a, b in zip(found[over], found[under], strict=True)])


def _linear_flops(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * x.numel() * out_val.shape[-1]


def _convolution_flops(x: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * weight.numel() // weight.shape[0]


FORMULAS = {
    **flop_registry,
    private.linear_pointwise: _linear_flops,
    private.convolution_pointwise: _convolution_flops,
    private.mkldnn_convolution_op: _convolution_flops,
}
"""FLOPs of an operation; torch's own, and those of oneDNN, which it does not know."""


class Flops(TorchDispatchMode):
    """Adds up as torch's FlopCounterMode does, but without its hooks on modules, which `autograd.grad` trips over."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := FORMULAS.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(work: Callable[[], R]) -> tuple[float, R]:
    """FLOPs of the matrix products and convolutions of one call, backward passes included; and what it returns."""
    with Flops() as counter:
        result = work()
    return float(counter.total), result


def matmul_peak(dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a large matrix product here, the best of some rounds by the faster library: what one could reach."""
    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    times = seconds({"MKL": lambda: a @ b, "oneDNN": lambda: linear(a, b)}, budget=1.0, least=8)
    return 2 * 1536**3 / min(map(min, times.values()))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many CPU threads within the block."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def write(out: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Writes `name`.json with the machine's description into folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
