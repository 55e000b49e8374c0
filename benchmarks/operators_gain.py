"""Time saved by each operator implementation in a typical job: `python -m benchmarks.operators_gain`.

CPU seconds of one thread with all implementations and without one of them, measured alternately so that changes in the
machine's speed have little effect. The gain is the fraction of the time without the implementation that it saves.
"job": micro animates a generated case of 8 frames; "medium": the short job of `benchmarks.medium_profile` on the
network of `benchmarks.medium_job`, recipe "official".
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro

import anyi2v
from anyi2v import denoiser
from anyi2v.latency.measure import table, write
from anyi2v.latency.stages import prepare
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.operators.cpu import attention, convolution, feed_forward, linear, norm
from benchmarks.medium_job import job
from benchmarks.medium_profile import SHORT

OUT = Path(__file__).parent / "results" / "operators"


def _never(*_: Any) -> bool:
    return False


WITHOUT: Mapping[str, tuple[Any, str, Any]] = {
    "linear: oneDNN": (linear, "on_cpu", _never),
    "convolution: oneDNN or matrix multiplication": (convolution, "on_cpu", _never),
    "norm: vectors over all channels": (norm, "applies", _never),
    "norm: with SiLU, recomputed": (norm, "on_cpu", _never),
    "feed_forward: in a core's cache": (feed_forward, "on_cpu", _never),
    "attention: in parts": (attention, "_narrow", _never),
    "execution: packed weights": (denoiser, "packed", lambda network: network),
}
"""Replacement for each implementation while it is left out."""
NAMES = (*WITHOUT, "reference")
Round = dict[str, dict[str, dict[str, float]]]
"""CPU seconds of the parts of a job, by implementation left out, and "with" or "without" it."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    network: Literal["micro", "medium"] = "micro"
    """Network of the job."""
    rounds: int = 3
    """Number of repetitions of each variant."""
    out: Path = OUT
    """Output folder for figures and table."""


@contextmanager
def without(name: str) -> Iterator[None]:
    """Disable an implementation inside the block; "reference" disables all."""
    if name in WITHOUT:
        with patch.object(*WITHOUT[name]):
            yield
    else:
        yield


def micro_job() -> Callable[[str], dict[str, float]]:
    """Create a function that returns the CPU seconds of micro's job."""
    backbone, case = anyi2v.load("micro"), make_case(1003, "photo")

    def run(name: str) -> dict[str, float]:
        backbone.operators = "reference" if name == "reference" else "fast"
        start = time.process_time()
        anyi2v.animate(backbone, case.image, case.prompt, case.tracks, seed=3, frames=8)
        return {"job": time.process_time() - start}

    return run


def medium_job() -> Callable[[str], dict[str, float]]:
    """Create a function that returns the CPU seconds of the parts of the medium network's job."""
    backbone, config = prepare("medium", torch.float32), replace(MethodConfig.official(), **SHORT)

    def run(name: str) -> dict[str, float]:
        backbone.operators = "reference" if name == "reference" else "fast"
        parts = job(backbone, config, time.process_time)
        return {**parts, "job": sum(parts.values())}

    return run


def main(args: Args) -> None:
    """Measure the variants alternately; write the results after every round."""
    torch.set_num_threads(1)
    run = {"micro": micro_job, "medium": medium_job}[args.network]()
    run("all")
    rounds: list[Round] = []
    for number in range(args.rounds):
        found: Round = {}
        for name in NAMES:
            found[name] = {}
            for way in ("with", "without")[:: 1 if number % 2 else -1]:
                with without(name if way == "without" else "all"):
                    found[name][way] = run(name if way == "without" else "all")
        rounds.append(found)
        write(args.out, args.network, {"network": args.network, "rounds": rounds})
        text = report(rounds)
        (args.out / f"{args.network}.md").write_text(text + "\n", encoding="utf-8")
        print(f"round {number + 1} of {args.rounds}\n{text}", flush=True)


def report(rounds: list[Round]) -> str:
    """Format a row per implementation: the median gain of each part of the job, and the range for the whole job."""
    parts = [*rounds[0]["reference"]["with"]]
    rows = []
    for name in NAMES:
        gains = {part: [1 - r[name]["with"][part] / r[name]["without"][part] for r in rounds] for part in parts}
        spread = f"{min(gains['job']):.1%} to {max(gains['job']):.1%}"
        rows.append([name, *(f"{statistics.median(gains[part]):.1%}" for part in parts), spread])
    seconds = statistics.median(r[name]["with"]["job"] for r in rounds for name in NAMES)
    head = ["left out", *parts, "range of the job"]
    return f"{table(head, rows)}\n\nThe job with all implementations takes {seconds:.1f} CPU seconds."


if __name__ == "__main__":
    main(tyro.cli(Args))
