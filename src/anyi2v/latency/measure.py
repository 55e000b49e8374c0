"""Interleaved time measurements, so that slowdowns of the machine affect all measured functions alike."""

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
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in self)
        return f"{median} [{low}, {high}]"


def spread(values: Sequence[float]) -> Spread:
    """Compute the spread of at least one value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


MOST = 300
"""Maximum number of rounds of a measurement, to limit the size of files."""


def seconds(work: Mapping[str, Work], *, budget: float = 2.0, least: int = 3) -> dict[str, list[float]]:
    """Measure the seconds of each function, round by round, after one warm-up call of each.

    On one thread CPU time is measured, which is hardly affected by other processes; on several threads, wall time.

    Args:
        work: functions by name.
        budget: approximate seconds for all rounds together; `MOST` rounds may take less.
        least: minimum number of rounds.
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
    """Compute the ratio of the times of `over` and `under`, round by round."""
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
"""FLOP formulas by operation: torch's own, and those for oneDNN's operations, which it lacks."""


class Flops(TorchDispatchMode):
    """Counts FLOPs like torch's FlopCounterMode, but without module hooks, which break `autograd.grad`."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := FORMULAS.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(work: Callable[[], R]) -> tuple[float, R]:
    """Count the FLOPs of matrix multiplications and convolutions in one call, and return them with its result."""
    with Flops() as counter:
        result = work()
    return float(counter.total), result


def matmul_peak(dtype: torch.dtype = torch.float32) -> float:
    """Measure the peak FLOP/s as the best of several large matrix multiplications by the faster library."""
    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    times = seconds({"MKL": lambda: a @ b, "oneDNN": lambda: linear(a, b)}, budget=1.0, least=8)
    return 2 * 1536**3 / min(map(min, times.values()))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads within the block."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def write(out: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Write `name`.json with the machine's description into folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
