"""The whole method on a medium network, in units of one diffusers forward: `python -m benchmarks.medium_job`.

One unit U is the CPU time of one forward of diffusers' UNetMotionModel with the same configuration (batch 2, 16
frames), measured in the same process. The published code needs 67 U: inversion 10, optimisation 27, guided steps 30.
Random weights, one thread; the time does not depend on their values. The FLOPs of each part, in those of the same
forward, say what it would take at diffusers' speed: what is below that is our network's.

Each repetition has a process of its own, in which the unit comes first. After the job it mostly takes a tenth less: the
job leaves the C library's allocator in a state in which memory is seldom asked for anew. The job in such units is shown
too. Memory is measured in one more process, in which nothing else runs.
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

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.unet import UNet
from anyi2v.config import MethodConfig
from anyi2v.diffusion import ddim_step, sampling_pairs
from anyi2v.machine import give_back
from anyi2v.method.crops import make_crops
from anyi2v.method.denoising import predict_noise
from anyi2v.method.injection import Injection
from anyi2v.method.inversion import invert
from anyi2v.method.optimisation import optimise_latents
from anyi2v.taps import no_tap
from anyi2v.tracks import Track, Tracks
from benchmarks.measure import flops, table, write

CONFIG = BackboneConfig(
    name="medium",
    unet=UNetConfig(channels=(64, 128, 256, 256), context_dim=64, temporal=MotionConfig()),
    vae=VAEConfig(),
    text=TextConfig(),
)
Measure = Callable[[Callable[[], Any]], tuple[float, Any]]
"""What a call costs, and what it returns."""

FRAMES, SIZE, TOKENS = 16, 16, 77
PUBLISHED = {"inversion": 10, "optimisation": 27, "guided steps": 30}


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of our network; diffusers' is always float32."""
    recipe: Literal["official", "paper"] = "official"
    """Of the method."""
    repeats: int = 4
    """Of the whole job; the table shows medians of the quotients, and their range."""
    out: Path | None = None
    """JSON file for all figures; the table and a plot are written beside it."""


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of one call, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def peer() -> Callable[[], Any]:
    """One forward of diffusers' network of the same configuration."""
    c = CONFIG.unet
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


def job(unet: UNet, config: MethodConfig, measure: Measure) -> dict[str, float]:
    """CPU seconds, or FLOPs, of the three parts of one job."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 1, 4, SIZE, SIZE, generator=generator)
    z = torch.randn(1, FRAMES, 4, SIZE, SIZE, generator=generator)
    negative, positive = torch.randn(2, TOKENS, CONFIG.unet.context_dim, generator=generator).split(1)
    pixels = SIZE * CONFIG.vae.factor
    boxes = ((16.0, 16.0, 64.0, 64.0), (64.0, 48.0, 112.0, 96.0))
    tracks = Tracks(pixels, pixels, (Track("object", boxes),)).resample(FRAMES)
    crops = make_crops(tracks, (2 * SIZE, 2 * SIZE), FRAMES, first_box=config.first_box)
    names = (*config.inject_hidden, *config.inject_query)
    schedule = CONFIG.schedule
    cost = dict.fromkeys(PUBLISHED, 0.0)
    cost["inversion"], features = measure(
        lambda: invert(unet, latent, positive, schedule, names, until=config.inversion_timestep)
    )
    injection = Injection(
        features,
        hiddens=config.inject_hidden,
        queries=config.inject_query,
        share_kv=config.share_kv,
        debias=config.debias,
        patch=config.patch,
    )
    for i, (t, at, to) in enumerate(sampling_pairs(schedule, config.steps)):
        if i < config.optimise_steps:
            give_back()  # as the pipeline does
            spent, result = measure(
                lambda z=z, t=t: optimise_latents(unet, z, t, positive, injection, crops, config, generator=generator)
            )
            cost["optimisation"] += spent
            z = result.latents
        tap = injection if i < config.inject_steps else no_tap
        spent, noise = measure(
            lambda z=z, t=t, tap=tap: predict_noise(unet, z, t, negative, positive, config.guidance_scale, tap)
        )
        cost["guided steps"] += spent
        z = ddim_step(z, noise, at, to)
    assert z.isfinite().all()
    return cost


def main(args: Args) -> None:
    """Measures, prints the parts in U, writes the file."""
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
    unet, config = network(args.dtype), getattr(MethodConfig, args.recipe)()
    parts_flops, whole = job(unet, config, flops), flops(peer())[0]
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
    """Median and range of some quotients."""
    return [f"{statistics.median(values):.1f} U", f"{min(values):.1f} to {max(values):.1f} U"]


def plot(bars: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A bar for each way to do the job, of its parts in U."""
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
    """What `work` returns in a process of its own, with one thread."""
    with get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as fresh:
        return fresh.apply(work, (dtype, recipe))


def measured(dtype: str, recipe: str) -> dict[str, Any]:
    """Seconds of the unit, of the parts of one job, and of the unit after it."""
    torch.manual_seed(0)
    forward = peer()
    unit = unit_seconds(forward)
    parts = job(network(dtype), getattr(MethodConfig, recipe)(), cpu_seconds)
    return {"job": parts, "unit": unit, "unit_after": unit_seconds(forward)}


def memory_of(dtype: str, recipe: str) -> int:
    """Bytes that one job takes above the imports."""
    torch.manual_seed(0)
    imports = peak_rss()
    job(network(dtype), getattr(MethodConfig, recipe)(), cpu_seconds)
    return peak_rss() - imports


def network(dtype: str) -> UNet:
    """Ours, with random weights."""
    unet = UNet(CONFIG.unet).eval().requires_grad_(False)
    return unet.to(getattr(torch, dtype)).to(memory_format=torch.channels_last)


def unit_seconds(forward: Callable[[], Any]) -> float:
    """CPU time of one forward of the peer, the median of nine."""
    forward()
    return statistics.median(cpu_seconds(forward)[0] for _ in range(9))


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(tyro.cli(Args))
