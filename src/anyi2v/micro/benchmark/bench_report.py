"""Report of a benchmark: scores, a table with intervals and paired differences, plots and a contact sheet."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyi2v.files import atomic
from anyi2v.images.media import write_image
from anyi2v.micro.benchmark.bench import Job, frames
from anyi2v.micro.benchmark.statistics import Estimate, difference, estimate
from anyi2v.micro.benchmark.variants import FULL
from anyi2v.reports.plots import contact_sheet, overlay_boxes

Rows = Sequence[Mapping[str, Any]]

METRICS = {
    "trajectory_error": "trajectory error, px",
    "relative_error": "relative to frame 1, px",
    "first_frame_iou": "first-frame IoU",
    "found": "object found",
    "colour_right": "object colour right",
    "background_right": "background right",
    "jerk": "jerk, px",
    "pan_error": "error of the pan",
    "area_error": "error of the box's area",
    "identity_kept": "identity kept",
    "seconds": "seconds",
}
"""Headings of the metrics by column; errors of pan and area, and identity, only exist for the kinds of cases about
them."""


MEANINGS = {
    "trajectory_error": "mean distance of the object's centroid to its target; half the frame's width if missing",
    "relative_error": "the same for the displacement since frame 1, regardless of the start; from frame 2 on",
    "first_frame_iou": "intersection over union of the object in frame 1 and the condition's mask",
    "found": "share of frames with a patch of the object's colour (of several objects: any of theirs) of 0.5 % of the "
    "frame or more",
    "colour_right": "share of cases in which most of the condition's mask has the prompted colour in frame 1",
    "background_right": "mean share of far-away pixels whose nearest palette colour is the prompted one",
    "jerk": "mean length in pixels of the centroid's second difference over time",
    "pan_error": "distance between the background's displacement and the requested one, relative to the latter",
    "area_error": "error of the area of the box around the object, relative to the ground truth",
    "identity_kept": "share of frames from 2 on in which the object has its colour of frame 1, among the "
    "colours of the case's objects; frames without it do not count as kept",
    "seconds": "wall time of one job on one thread, including the inversion, which variants of a case may share",
}
"""Meanings of `METRICS`, see `anyi2v.micro.benchmark.measure`. An object is the largest patch of pixels nearest to its
palette colour; with several objects, each pixel of any of their colours belongs to the object whose target is
nearest."""


def write_report(out: Path, work: Sequence[Job], rows: Rows, machine: Mapping[str, Any]) -> str:
    """Write scores.json, table.md, differences.png, cases.png and, with other methods, methods.png; return the table."""
    conventions = describe_conventions(work, rows)
    text = table(rows) + (
        f"\n{conventions['cases']} cases of {conventions['frames']} frames of {conventions['width']}x"
        f"{conventions['height']} px, the unit of distances; the columns are explained in scores.json.\n"
    )
    summary = {
        name: {metric: estimate(values(rows, name, metric))._asdict() for metric in metrics(rows)}
        for name in names(rows)
    }
    head = {
        "machine": dict(machine),
        "backbone": work[0].backbone,
        "dtype": str(work[0].dtype).removeprefix("torch."),
        "conventions": conventions,
        "summary": summary,
    }
    # one line per row, because there may be thousands
    lines = ",\n".join(json.dumps(row) for row in rows)
    scores = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n]\n}}\n'
    for name, content in (("table.md", text), ("scores.json", scores)):
        with atomic(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    if len(names(rows)) > 1:
        plot(rows, out / "differences.png")
    write_image(out / "cases.png", sheet(work, rows, names(rows)[:1], cell=128))
    if others := [name for name, variant in work[0].methods.items() if variant.comparator is not None]:
        write_image(out / "methods.png", sheet(work, rows, [names(rows)[0], *others], cell=64))
    return text


def describe_conventions(work: Sequence[Job], rows: Rows) -> dict[str, Any]:
    """Describe the conventions of the figures, which are needed to compare them with others."""
    frames, _, height, width = work[0].case.truth.shape
    return {
        "cases": len(values(rows, names(rows)[0], "seed")),
        "frames": frames,
        "width": width,
        "height": height,
        "kind": work[0].kind,
        "intervals": "95 % bootstrap over the cases; several objects of a case are averaged first",
        "metrics": {metric: MEANINGS[metric] for metric in metrics(rows)},
    }


def names(rows: Rows) -> list[str]:
    """Return the variants in order."""
    return list(dict.fromkeys(row["variant"] for row in rows))


def metrics(rows: Rows) -> list[str]:
    """Return those of `METRICS` that the rows have."""
    return [metric for metric in METRICS if metric in rows[0]]


def values(rows: Rows, variant: str, metric: str) -> Tensor:
    """Return one number per case in the order of seeds, averaged over objects."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["variant"] == variant:
            found.setdefault(row["seed"], []).append(float(row[metric]))
    return torch.tensor([sum(found[seed]) / len(found[seed]) for seed in sorted(found)])


def table(rows: Rows) -> str:
    """Format mean and interval per variant and metric, and the paired difference of the trajectory error to "full"."""
    head = ["variant", *(METRICS[metric] for metric in metrics(rows)), "difference of trajectory error to full"]
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    for name in names(rows):
        cells = [str(estimate(values(rows, name, metric))) for metric in metrics(rows)]
        lines.append(" | ".join([name, *cells, compared(rows, name)]))
    count = len(values(rows, names(rows)[0], "seed"))
    note = f"\n{count} cases; brackets are 95 % bootstrap intervals over the cases (differences: of the same cases).\n"
    return "\n".join(f"| {line} |" for line in lines) + "\n" + note


def compared(rows: Rows, variant: str) -> str:
    """Format the paired difference to the full method, with a note if it is not significant."""
    if variant == FULL or FULL not in names(rows):
        return ""
    gap = paired(rows, variant, "trajectory_error")
    return f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]" + ("" if gap.significant else " (not significant)")


def paired(rows: Rows, variant: str, metric: str) -> Estimate:
    """Estimate the paired difference of a variant to the full method."""
    return difference(values(rows, variant, metric), values(rows, FULL, metric))


def plot(rows: Rows, path: Path) -> None:
    """Plot paired differences of four metrics to the full method with intervals; grey if not significant."""
    # Figure instead of pyplot: no global state, no display, and matplotlib is imported only here
    from matplotlib.figure import Figure

    others = [name for name in names(rows) if name != FULL]
    shown = ("trajectory_error", "first_frame_iou", "background_right", "colour_right")
    figure = Figure(figsize=(14, 1.5 + 0.27 * len(others)), dpi=100, layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        for y, name in enumerate(others):
            gap = paired(rows, name, metric)
            colour = "tab:blue" if gap.significant else "0.6"
            if math.isfinite(gap.mean):
                axes.errorbar(
                    gap.mean, y, xerr=[[gap.mean - gap.low], [gap.high - gap.mean]], fmt="o", color=colour, markersize=4
                )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(yticks=range(len(others)), yticklabels=others, title=METRICS[metric], xlabel="difference to full")
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
        axes.set_ylim(len(others) - 0.5, -0.5)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def sheet(work: Sequence[Job], rows: Rows, variants: Sequence[str], *, cell: int) -> Any:
    """Draw a contact sheet of variants and ground truth, with frames of `cell` px.

    Shows the best, median and worst case by the first variant's trajectory error.
    """
    errors = {name: values(rows, name, "trajectory_error") for name in variants}
    ranked = errors[variants[0]].argsort().tolist()
    in_order = sorted(work, key=lambda job: job.seed)
    shown = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    pictures: dict[str, Tensor] = {}
    for rank, index in shown.items():
        job = in_order[index]
        case = job.case
        label = f"{rank}: {job.modality} {job.seed}"
        pictures[f"{label} condition"] = case.image[None]
        pictures[f"{label} truth"] = case.truth
        for name in variants:
            video = overlay_boxes(frames(job.path(name)), case.tracks)
            pictures[f"{label} {name}, {errors[name][index].item():.1f} px"] = video
    return contact_sheet(pictures, cell=cell)
