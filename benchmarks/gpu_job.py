"""The complete method at full size on a GPU: `python -m benchmarks.gpu_job --out folder`.

AnimateDiff's architecture with random weights in bfloat16, one object, 16 frames of 512 x 512 pixels, recipe
`official`; the time does not depend on the values. Measures complete jobs after a warm-up job that compiles the
kernels, a job in low-memory mode, and each part of a job separately, by kind of kernel.
"""

import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn
from torch.profiler import ProfilerActivity, profile

from anyi2v.backbone.config import BackboneConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.execution.memory import predict
from anyi2v.latency.measure import flops, table, write
from anyi2v.latency.stages import boxes, counts, parts
from anyi2v.method.config import MethodConfig
from anyi2v.pipeline import animate
from anyi2v.tracks import Tracks

KINDS = (
    ("attention", re.compile(r"sdpa|flash|fmha|_attend")),
    ("eigenvectors", re.compile(r"sytrd|stedc|laed|syr2k|ormtr|larft|syevd")),
    ("products", re.compile(r"nvjet|gemm|cutlass|_xmma_|conv")),
)
"""Kinds of kernels by name patterns, of which the first match counts; all other kernels are "rest"."""
COLUMNS = ("products", "attention", "eigenvectors", "rest")


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    out: Path | None = None
    """Output folder for the figures."""
    recipe: Literal["official", "paper"] = "official"
    """Recipe of the method."""
    size: int = 512
    """Width and height in pixels."""
    frames: int = 16
    """Number of frames of the video."""
    repeats: int = 3
    """Number of repetitions of the job."""


def backbone(args: Args) -> Backbone:
    """Create a backbone with random weights of variance 1 / inputs, which preserve signal scale."""
    config = BackboneConfig(name="animatediff", height=args.size, width=args.size, frames=args.frames)
    with torch.device("cuda"):
        made = build(config)
        for network in made.networks.values():
            for parameter in network.eval().requires_grad_(False).parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=math.prod(parameter.shape[1:]) ** -0.5)
    return made.to("cuda", torch.bfloat16)


def job(made: Backbone, config: MethodConfig, low_memory: bool) -> dict[str, Any]:
    """Measure a job: seconds overall and per stage, and peak memory in bytes, allocated and reserved."""
    c = made.config
    image = torch.rand(3, c.height, c.width, generator=torch.Generator().manual_seed(0))
    tracks = Tracks(c.width, c.height, (boxes(0, (c.width, c.height)),))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = animate(made, image, "a thing", tracks, config=config, low_memory=low_memory)
    assert result.video.isfinite().all()
    return {
        "seconds": time.perf_counter() - start,
        "stages": result.timings,
        "memory": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def kernels(work: Callable[[], object], repeats: int = 3) -> dict[str, float]:
    """Measure the seconds of each kind of kernel in one call, and of the call itself from Python."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    found = {"call": (time.perf_counter() - start) / repeats, **dict.fromkeys(COLUMNS, 0.0)}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_device_time_total / 1e6
    return found


def kind_of(kernel: str) -> str:
    """Return the kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS if pattern.search(kernel)), "rest")


def matmul_peak() -> float:
    """Measure the FLOP/s of a large bfloat16 matrix multiplication, the best of several runs."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(20):
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / min(times)


def main(args: Args) -> None:
    """Run the measurements, print and write the results."""
    made, config = backbone(args), getattr(MethodConfig, args.recipe)()
    for low_memory in (False, True):
        video = (args.frames, args.size, args.size)
        needed = predict(made.config, config, video, dtype=torch.bfloat16, device="cuda", low_memory=low_memory)
        print(f"predicted{' in low-memory mode' if low_memory else ''}: {needed}")
    first, jobs = job(made, config, False), [job(made, config, False) for _ in range(args.repeats)]
    frugal = [job(made, config, True) for _ in range(2)][1]
    peak, rows = matmul_peak(), []
    for name, (piece, count) in parts(made, config, None, 1).items():
        if counts(name) or name.endswith("PCA"):
            rows.append({"part": name, "count": count, "flops": flops(piece)[0], "kernels": kernels(piece)})
    print(text := report(first, jobs, frugal, rows, peak))
    if args.out:
        figures = {"first": first, "jobs": jobs, "low_memory": frugal, "matmul_peak": peak, "parts": rows}
        write(args.out, "animatediff", {"video": [args.frames, args.size, args.size], "recipe": args.recipe, **figures})
        (args.out / "animatediff.md").write_text(text + "\n", encoding="utf-8")


def report(
    first: dict[str, Any], jobs: list[dict[str, Any]], frugal: dict[str, Any], rows: list[dict[str, Any]], peak: float
) -> str:
    """Format two tables: the job by stages, and the kernels of its parts."""
    head = ["stage", "s, median", "range", "low-memory, s", "first job, s"]
    lines = []
    for name in (*jobs[0]["stages"], "together"):
        values = [run["seconds"] if name == "together" else run["stages"][name] for run in (*jobs, frugal, first)]
        times = values[:-2]
        between = f"{min(times):.2f} to {max(times):.2f}"
        lines.append([name, f"{statistics.median(times):.2f}", between, *(f"{value:.2f}" for value in values[-2:])])
    for name, key in (("tensors, GiB", "memory"), ("with gaps, GiB", "reserved")):
        most = max(run[key] for run in jobs) / 2**30
        lines.append([name, f"{most:.1f}", "", f"{frugal[key] / 2**30:.1f}", f"{first[key] / 2**30:.1f}"])
    stages = table(head, lines)
    seconds_of = (f"{kind}, s" for kind in COLUMNS)
    head = ["part", "times", "TFLOP in a job", "s at the matmul peak", *seconds_of, "from Python, s"]
    lines = []
    sums: dict[str, float] = dict.fromkeys(("flops", *COLUMNS, "call"), 0.0)
    for row in rows:
        n = row["count"]
        values = {"flops": row["flops"] * n, **{name: value * n for name, value in row["kernels"].items()}}
        if counts(row["part"]):
            sums = {name: total + values[name] for name, total in sums.items()}
        lines.append([row["part"], str(n), *_cells(values, peak)])
    lines.append(["together", "", *_cells(sums, peak)])
    return f"{stages}\n\n{table(head, lines)}\n\nMatmul peak, bfloat16: {peak / 1e12:.0f} TFLOP/s."


def _cells(values: dict[str, float], peak: float) -> list[str]:
    times = [f"{values[name]:.2f}" for name in (*COLUMNS, "call")]
    return [f"{values['flops'] / 1e12:.0f}", f"{values['flops'] / peak:.2f}", *times]


if __name__ == "__main__":
    main(tyro.cli(Args))
