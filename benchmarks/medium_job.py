"""The complete method on a medium network, in units of one diffusers forward: `python -m benchmarks.medium_job`.

One unit U is the CPU time of one forward pass of diffusers' UNetMotionModel with the same configuration (batch 2, 16
frames), measured in the same process. The published code needs 67 U: inversion 10, optimisation 27, guided steps 30.
Random weights, one thread; the time does not depend on their values. The FLOPs of each part, relative to those of the
same forward pass, give the time at diffusers' speed; anything below is due to our network.

Each repetition runs in its own process and measures the unit first. After the job the unit is usually a tenth smaller,
because the C library's allocator then rarely requests new memory; the job in these units is shown too. Memory is
measured in another process that runs nothing else.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers.models.unets.unet_motion_model import UNetMotionModel

from anyi2v.backbone.networks import Backbone
from anyi2v.latency.measure import Flops, flops, table, write
from anyi2v.latency.stages import MEDIUM, PROMPT, prepare
from anyi2v.method.config import MethodConfig
from anyi2v.pipeline import animate
from anyi2v.tracks import Track, Tracks

FRAMES, SIZE, TOKENS = 16, 16, 77
PUBLISHED = {"inversion": 10, "optimisation": 27, "guided steps": 30}
STAGES: dict[str, str] = dict(zip(("inversion", "optimisation", "denoising"), PUBLISHED, strict=True))
"""Our names of a job's stages."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of our network; diffusers' is always float32."""
    recipe: Literal["official", "paper"] = "official"
    """Recipe of the method."""
    repeats: int = 4
    """Number of repetitions of the whole job; the table shows medians and ranges of the ratios."""
    out: Path | None = None
    """Output JSON file for all figures; the table and a plot are written next to it."""


class Costs:
    """Cost of a job's stages, measured by a clock; a `Progress`."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.last = clock, 0.0
        self.spent = dict.fromkeys(PUBLISHED, 0.0)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Add the cost since the previous call; decoding is not counted, as in the published code's figures."""
        now = self.clock()
        if done and stage in STAGES:
            self.spent[STAGES[stage]] += now - self.last
        self.last = now


def peer() -> Callable[[], Any]:
    """Create a function that runs one forward pass of diffusers' network with the same configuration."""
    c = MEDIUM.unet
    kinds = ["CrossAttnDownBlockMotion"] * 3 + ["DownBlockMotion"]
    network = UNetMotionModel(
        block_out_channels=c.channels,
        down_block_types=tuple(kinds),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        layers_per_block=c.layers,
        cross_attention_dim=c.context_dim,
        num_attention_heads=c.heads,
        norm_num_groups=c.groups,
        motion_num_attention_heads=8,
        motion_max_seq_length=32,
        use_motion_mid_block=False,
        sample_size=SIZE,
    ).eval()
    z = torch.randn(2, 4, FRAMES, SIZE, SIZE)
    text = torch.randn(2 * FRAMES, TOKENS, c.context_dim)

    @torch.no_grad()
    def forward() -> Any:
        return network(z, 500, text)

    return forward


def job(backbone: Backbone, config: MethodConfig, clock: Callable[[], float]) -> dict[str, float]:
    """Return the CPU seconds, or FLOPs, of the three parts of one job."""
    pixels = SIZE * MEDIUM.vae.factor
    image = torch.rand(3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    boxes = ((16.0, 16.0, 64.0, 64.0), (64.0, 48.0, 112.0, 96.0))
    costs = Costs(clock)
    animate(backbone, image, PROMPT, Tracks(pixels, pixels, (Track("object", boxes),)), config=config, progress=costs)
    return costs.spent


def main(args: Args) -> None:
    """Run the measurements, print the parts in U, write the file."""
    memory, runs = in_a_process(memory_of, args.dtype, args.recipe), []
    for i in range(args.repeats):
        runs.append(run := in_a_process(measured, args.dtype, args.recipe))
        total = sum(run["job"].values())
        units = f"U {run['unit']:.2f} s, after the job {run['unit_after']:.2f} s"
        print(f"run {i + 1} of {args.repeats}: {total:.1f} s, {units}", flush=True)
    quotients = {name: [run["job"][name] / run["unit"] for run in runs] for name in PUBLISHED}
    quotients["together"], late = (
        [sum(run["job"].values()) / run[unit] for run in runs] for unit in ("unit", "unit_after")
    )
    backbone, config = prepare("medium", getattr(torch, args.dtype)), getattr(MethodConfig, args.recipe)()
    with Flops() as counter:
        parts_flops = job(backbone, config, lambda: float(counter.total))
    whole = flops(peer())[0]
    counts = {name: parts_flops[name] / whole for name in PUBLISHED}
    counts["together"] = sum(counts.values())
    published = {**PUBLISHED, "together": sum(PUBLISHED.values())}
    lines = [
        [name, f"{counts[name]:.1f} U", *in_units(values), f"{published[name]} U"] for name, values in quotients.items()
    ]
    lines.append(["together, in units after the job", "", *in_units(late), ""])
    lines.append(["memory above the imports", "", f"{memory / 1e9:.3f} GB", "", "0.97 GB"])
    head = ["", "FLOPs", f"ours, {args.dtype}", "range", "published code"]
    text = f"{table(head, lines)}\n\n1 U of FLOPs = {whole / 1e9:.1f} GFLOP; recipe {args.recipe}."
    print(text)
    if args.out:
        quotients["together, in units after the job"] = late
        figures = {"runs": runs, "quotients": quotients, "flops": counts, "memory_bytes": memory}
        write(args.out.parent, args.out.stem, {"dtype": args.dtype, "recipe": args.recipe, **figures})
        args.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        ours = {name: statistics.median(quotients[name]) for name in PUBLISHED}
        bars = {"published code": PUBLISHED, "FLOPs at diffusers' speed": counts, f"ours, {args.dtype}": ours}
        plot(bars, args.out.with_suffix(".png"))


def in_units(values: list[float]) -> list[str]:
    """Format the median and the range of ratios."""
    return [f"{statistics.median(values):.1f} U", f"{min(values):.1f} to {max(values):.1f} U"]


def plot(bars: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Plot one bar per implementation of the job, divided into its parts in U."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(bars) + 1.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for name in PUBLISHED:
        widths = [parts[name] for parts in bars.values()]
        drawn = axes.barh(list(bars), widths, left=left, label=name)
        axes.bar_label(drawn, fmt="%.1f", label_type="center", color="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="U, forwards of diffusers' network")
    figure.legend(loc="outside upper center", ncols=len(PUBLISHED))
    figure.savefig(path, format="png", metadata={"Software": None})


def in_a_process(work: Callable[..., Any], dtype: str, recipe: str) -> Any:
    """Return the result of `work` from its own process with one thread."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as fresh:
        return fresh.apply(work, (dtype, recipe))


def measured(dtype: str, recipe: str) -> dict[str, Any]:
    """Measure the seconds of the unit, of the parts of one job, and of the unit after it."""
    torch.manual_seed(0)
    forward = peer()
    unit = unit_seconds(forward)
    parts = job(prepare("medium", getattr(torch, dtype)), getattr(MethodConfig, recipe)(), time.process_time)
    return {"job": parts, "unit": unit, "unit_after": unit_seconds(forward)}


def memory_of(dtype: str, recipe: str) -> int:
    """Return the bytes that one job needs in addition to the imports."""
    import open_clip  # noqa: F401  (by `prepare`, and large)

    torch.manual_seed(0)
    imports = peak_rss()
    job(prepare("medium", getattr(torch, dtype)), getattr(MethodConfig, recipe)(), time.process_time)
    return peak_rss() - imports


def unit_seconds(forward: Callable[[], Any]) -> float:
    """Return the CPU time of one forward pass of the peer, the median of nine."""
    forward()
    found = []
    for _ in range(9):
        start = time.process_time()
        forward()
        found.append(time.process_time() - start)
    return statistics.median(found)


def peak_rss() -> int:
    """Return this process's peak resident memory in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(tyro.cli(Args))
