"""Scaling of the time with frames, objects, pixels, steps and images, for `anyi2v bench scaling`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anyi2v.latency.measure import Spread, ratio, seconds, spread, table, threads, write
from anyi2v.latency.options import ScalingOptions
from anyi2v.latency.stages import inversion, job, parts, prepare
from anyi2v.timing import counted

FRAMES = (8, 16, 32)
OBJECTS = (1, 2, 4, 8)
SIZES = (1.0, 1.5, 2.0)
"""Factors on the backbone's width and height."""
STEPS = (8, 16, 32)
"""Numbers of denoising steps; inversion and optimisation are unchanged."""
IMAGES = (1, 2, 4, 8)
"""Numbers of images inverted as one batch."""

AXES = ("frames", "objects", "pixels", "steps", "images")
"""What is varied, in this order."""

ITERATION, STEP, JOB, CALL = "optimisation: one whole iteration", "guided step", "job", "inversion, one call"


def main(args: ScalingOptions) -> None:
    """Measure each axis separately, with its values interleaved."""
    with threads(args.threads):
        axes = counted(AXES, len(AXES), "axes", bar=False)
        found = {axis: axis_seconds(args, axis) for axis in axes}
    print(text := report(found))
    write(args.out, "scaling", {"backbone": args.backbone, "dtype": args.dtype, "axes": found})
    (args.out / "scaling.md").write_text(text + "\n", encoding="utf-8")
    plot(found, args.out / "scaling.png")


def axis_seconds(args: ScalingOptions, axis: str) -> dict[str, dict[str, list[float]]]:
    """Measure seconds by part and by value along one axis."""
    backbone = prepare(args.backbone, getattr(torch, args.dtype))
    config = backbone.method()
    c = backbone.config
    values: dict[str, dict[str, Any]] = {}
    match axis:
        case "steps":
            jobs = {str(n): job(backbone, replace(config, steps=n), None, 1) for n in STEPS}
            return {JOB: seconds(jobs, budget=args.budget)}
        case "images":
            return {CALL: seconds({str(n): inversion(backbone, n) for n in IMAGES}, budget=args.budget)}
        case "frames":
            limit = backbone.unet.design.max_frames or max(FRAMES)
            values = {str(n): {"frames": n, "objects": 1} for n in FRAMES if n <= limit}
        case "objects":
            values = {str(n): {"frames": c.frames, "objects": n} for n in OBJECTS}
        case "pixels":
            unit = c.vae.factor * c.unet.downscale
            for factor in SIZES:
                edges = [round(edge * factor / unit) * unit for edge in (c.width, c.height)]
                values[f"{edges[0]}x{edges[1]}"] = {"frames": c.frames, "objects": 1, "size": edges}
    out: dict[str, dict[str, list[float]]] = {}
    for part in (ITERATION, STEP):
        work = {}
        for label, options in values.items():
            size = options.get("size", (c.width, c.height))
            resized = replace(backbone, config=replace(c, width=size[0], height=size[1]))
            work[label] = parts(resized, config, options["frames"], options["objects"])[part][0]
        out[part] = seconds(work, budget=args.budget)
    return out


def report(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Format times and their ratios to the first value of each axis, also per frame, pixel, step or image."""
    lines = []
    for axis, by_part in found.items():
        for part, times in by_part.items():
            first = next(iter(times))
            for label in times:
                grown = ratio(times, label, first)
                share = amount(axis, label) / amount(axis, first)
                per = Spread(*(value / share for value in grown))
                once = str(spread([1000 * s for s in times[label]]))
                lines.append(
                    [axis, part.split(": ")[-1], label, once, str(grown), "" if axis == "objects" else str(per)]
                )
    head = ["axis", "part", "value", "ms", "times the first", "times the first, per frame, pixel, step or image"]
    return table(head, lines)


def amount(axis: str, label: str) -> float:
    """Return the amount of work that a value of an axis represents."""
    if axis == "pixels":
        width, height = label.split("x")
        return float(width) * float(height)
    return 1.0 if axis == "objects" else float(label)


def plot(found: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Plot one panel per axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 3.2), dpi=100, layout="constrained")
    for axes, (axis, by_part) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for part, times in by_part.items():
            at = [float(label) if axis != "pixels" else amount(axis, label) for label in times]
            axes.plot(at, [spread(t).median for t in times.values()], marker="o", label=part.split(": ")[-1])
        axes.set(xlabel=axis, ylabel="seconds", ylim=(0, 1.3 * axes.get_ylim()[1]))
        axes.grid(color="0.9")
        axes.legend()
    figure.savefig(path, format="png", metadata={"Software": None})
