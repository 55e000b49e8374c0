"""Time of each part of a job and of the whole, for `anyi2v bench stages`.

FLOPs are those of matrix multiplications and convolutions; their share of the machine's measured matmul peak shows how
compute-bound a part is.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import Backbone, build
from anyi2v.backbone.unet import record
from anyi2v.checkpoints.checkpoint import load
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import sampling_pairs
from anyi2v.latency.measure import flops, matmul_peak, seconds, spread, table, threads, write
from anyi2v.latency.options import StagesOptions
from anyi2v.method.alignment import (
    Weights,
    all_similarities,
    clustered,
    compare,
    cut_all,
    feature_map,
    reduce,
    weigh,
)
from anyi2v.method.anyi2v import injection
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import AlignmentOptions, MethodConfig
from anyi2v.method.crops import Crops
from anyi2v.method.objective import FeatureAlignment
from anyi2v.pipeline import animate
from anyi2v.taps import Tap
from anyi2v.tracks import Track, Tracks

LOGGER = logging.getLogger(__name__)

MEDIUM = BackboneConfig(
    name="medium",
    unet=UNetConfig(channels=(64, 128, 256, 256), context_dim=64, temporal=MotionConfig()),
    vae=VAEConfig(channels=(32, 64, 128, 128)),
    text=TextConfig(width=64, layers=4, heads=4, length=77, vocab_size=6, words=("<pad>", "<bos>", "<eos>", "a", "b")),
    height=128,
    width=128,
    frames=16,
)
"""A fifth of Stable Diffusion's UNet width, at the size of `benchmarks.medium_job`."""

TITLES = {
    "inversion, one call": "inversion",
    "guided step with injection": "guided steps with injection",
    "guided step": "guided steps",
    "optimisation: one whole iteration": "optimisation",
}
"""Labels of the plot, whose bars are totals of a job."""

PROMPT = "a a a a"
"""Prompt of words that all backbones support."""

Parts = Mapping[str, tuple[Callable[[], object], int]]
"""Parts of a job, with how often each runs in a job."""


def main(args: StagesOptions) -> None:
    """Measure part by part, then the whole job."""
    dtype, rows = getattr(torch, args.dtype), []
    backbone = prepare(args.backbone, dtype)
    config = backbone.method()
    with threads(args.threads):
        peak = matmul_peak(dtype)
        for name, (piece, count) in parts(backbone, config, args.frames, args.objects).items():
            (found,) = seconds({name: piece}, budget=args.budget).values()
            LOGGER.info("%s: %.3f s, %d times in a job", name, min(found), count)
            rows.append({"part": name, "count": count, "seconds": found, "flops": flops(piece)[0]})
        (whole,) = seconds({"job": job(backbone, config, args.frames, args.objects)}, budget=args.budget).values()
    print(text := report(rows, peak, whole))
    figures = {"backbone": args.backbone, "dtype": args.dtype, "matmul_peak": peak, "rows": rows, "job": whole}
    write(args.out, "stages", figures)
    (args.out / "stages.md").write_text(text + "\n", encoding="utf-8")
    plot(rows, args.out / "stages.png")


def prepare(name: str, dtype: torch.dtype) -> Backbone:
    """Load the backbone by name, or create "medium" with random weights."""
    if name != "medium":
        return load(name, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build(MEDIUM).to("cpu", dtype)
    for network in backbone.networks.values():
        network.eval().requires_grad_(False)
    return backbone


def boxes(number: int, size: tuple[int, int]) -> Track:
    """Return object `number` of up to nine, a box of a fifth of the frame that moves right by a third."""
    width, height = size
    x, y = 0.05 + 0.25 * (number % 3), 0.05 + 0.3 * (number // 3)
    first = (x * width, y * height, (x + 0.2) * width, (y + 0.2) * height)
    return Track(f"object {number + 1}", (first, (first[0] + width / 3, first[1], first[2] + width / 3, first[3])))


def job(backbone: Backbone, config: MethodConfig, frames: int | None, objects: int) -> Callable[[], object]:
    """Return a function that runs one job from image to video, with a prompt of four words."""
    c = backbone.config
    image = torch.rand(3, c.height, c.width, generator=torch.Generator().manual_seed(0))
    tracks = Tracks(c.width, c.height, tuple(boxes(i, (c.width, c.height)) for i in range(objects)))
    return lambda: animate(backbone, image, PROMPT, tracks, config=config, frames=frames)


def parts(backbone: Backbone, config: MethodConfig, frames: int | None, objects: int) -> Parts:
    """Return functions that run each part of a job once, by default with the backbone's number of frames."""
    c, unet, generator = backbone.config, backbone.unet, torch.Generator().manual_seed(0)
    frames = c.frames if frames is None else frames
    height, width = c.height // c.vae.factor, c.width // c.vae.factor
    image = torch.rand(1, 3, c.height, c.width, generator=generator).to(backbone.device)
    z = torch.randn(1, frames, c.vae.latent_channels, height, width, generator=generator).to(backbone.device)
    text = torch.randn(2, c.text.length, c.unet.context_dim, generator=generator).to(backbone.device)
    negative, positive = text.split(1)
    tracks = Tracks(c.width, c.height, tuple(boxes(i, (c.width, c.height)) for i in range(objects))).resample(frames)
    crops = make_crops(tracks, (2 * height, 2 * width), frames, first_box=config.first_box).to(backbone.device)
    names = (*config.inject_hidden, *config.inject_query)
    seen = record(unet, names, z[:, :1], 201, positive, fps=c.fps, temporal=False)
    tap = injection({name: tensor.detach() for name, tensor in seen.items()}, config)
    denoiser = Denoiser(unet, positive, negative, config, schedule=c.schedule, fps=c.fps)
    steps = sampling_pairs(c.schedule, config.steps)
    step, plain = steps[len(steps) // 2], max(config.steps - config.inject_steps, 0)

    passes = (config.inversion_timestep - 1) // config.inversion_stride + 1
    found: dict[str, tuple[Callable[[], object], int]] = {
        "VAE encode": (torch.no_grad()(lambda: backbone.vae.encode(2 * image - 1)), 1),
        "text": (lambda: backbone.encode_text([PROMPT] * 2), 1),
        "inversion, one call": (inversion(backbone, 1), passes),
        "guided step with injection": (lambda: denoiser(z, step, tap=tap), min(config.inject_steps, config.steps)),
        "guided step": (lambda: denoiser(z, step), plain),
        "VAE decode": (torch.no_grad()(lambda: backbone.vae.decode(z[0])), 1),
    }
    iterations = min(config.optimise_steps, config.steps) * config.iterations
    for name, piece in optimisation(backbone, config, z, positive, tap, crops).items():
        found[f"optimisation: {name}"] = (piece, iterations)
    return found


def inversion(backbone: Backbone, images: int) -> Callable[[], object]:
    """Return a function that runs one inversion pass of a batch of images."""
    c, generator = backbone.config, torch.Generator().manual_seed(0)
    size = (c.vae.latent_channels, c.height // c.vae.factor, c.width // c.vae.factor)
    z = torch.randn(images, 1, *size, generator=generator).to(backbone.device)
    text = torch.randn(images, c.text.length, c.unet.context_dim, generator=generator).to(backbone.device)
    return torch.no_grad()(lambda: backbone.unet(z, 101, text, fps=c.fps, temporal=False))


def optimisation(
    backbone: Backbone, config: MethodConfig, z: Tensor, text: Tensor, tap: Tap, crops: Crops
) -> dict[str, Callable[[], object]]:
    """Return functions that run the parts of one iteration, and the whole."""
    unet, fps, generator = backbone.unet, backbone.config.fps, torch.Generator().manual_seed(0)
    objective = FeatureAlignment(config, generator)

    def forward(start: Tensor) -> dict[str, Tensor]:
        seen = record(unet, config.align, start, 501, text, fps=fps, edit=tap)
        return {name: feature_map(name, seen[name]) for name in config.align}

    def leaf() -> Tensor:
        return z.detach().requires_grad_().clone()  # the FLOP counter does not support leaves

    def loss_of_leaf() -> tuple[Tensor, Tensor]:
        return objective(forward(start := leaf()), crops).loss, start

    kept = cache(loss_of_leaf)
    features = [x.detach() for x in forward(leaf()).values()]
    reduced = [reduce(x, config.pca_dim, solver=config.pca_solver, generator=generator) for x in features]
    maps = [crops.maps(*x.shape[1:3]) for x in reduced]
    now, first = cut_all(reduced, maps)
    options = AlignmentOptions.of(config)

    def masks() -> Weights:
        with torch.no_grad():
            similar = all_similarities(reduced, now, first, crops, maps, options.anchors)
            return weigh(similar, clustered(similar, now, crops, options), crops, options)

    weights = masks()
    return {
        "forward": lambda: forward(leaf()),
        "PCA": lambda: [reduce(x, config.pca_dim, solver=config.pca_solver, generator=generator) for x in features],
        "masks": masks,
        "loss": lambda: compare(*cut_all(reduced, maps), weights, normalise=config.normalise),
        "backward": lambda: torch.autograd.grad(*kept(), retain_graph=True)[0],
        "one whole iteration": lambda: torch.autograd.grad(*loss_of_leaf())[0],
    }


def report(rows: list[dict[str, Any]], peak: float, job: list[float]) -> str:
    """Format a line per part; the sum excludes the parts of an iteration, which are contained in its whole."""
    whole = sum(spread(row["seconds"]).median * row["count"] for row in rows if counts(row["part"]))
    lines = []
    for row in rows:
        once = spread(row["seconds"])
        total = once.median * row["count"]
        share = f"{row['flops'] / once.median / peak:.0%}" if row["flops"] else ""
        part_of_job = f"{total / whole:.0%}" if counts(row["part"]) else ""
        milliseconds = str(spread([1000 * s for s in row["seconds"]]))
        lines.append([row["part"], milliseconds, str(row["count"]), f"{total:.2f}", part_of_job, share])
    head = ["part", "ms, once", "times", "s in a job", "share of the job", "share of matmul peak"]
    note = (
        f"One job: {whole:.1f} s by its parts, {spread(job)} s from end to end; matmul peak {peak / 1e9:.0f} GFLOP/s."
    )
    return f"{table(head, lines)}\n\n{note}"


def counts(part: str) -> bool:
    """Return whether a part counts towards the sum."""
    return not part.startswith("optimisation") or part.endswith("iteration")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the seconds in a job by part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(rows) + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    totals = [spread(row["seconds"]).median * row["count"] for row in rows]
    axes.barh(
        [str(TITLES.get(row["part"], row["part"])) for row in rows],
        totals,
        color=["tab:blue" if counts(r["part"]) else "0.7" for r in rows],
    )
    axes.invert_yaxis()
    axes.set(xlabel="seconds in a job (grey: part of an iteration)")
    figure.savefig(path, format="png", metadata={"Software": None})
