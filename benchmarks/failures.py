"""Which cases of the difficult kinds have the largest errors: `python -m benchmarks.failures --leaving DIR ...`.

Reads finished folders of `anyi2v bench micro --kind`; runs no jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from anyi2v.files import atomic, read_json
from anyi2v.micro.benchmark import bench
from anyi2v.micro.benchmark.bench_report import Rows
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.measure import centroids, find_object
from anyi2v.micro.benchmark.statistics import estimate
from anyi2v.micro.benchmark.variants import FULL

ASTRAY = 8.0
"""Distance in pixels, an eighth of the frame, beyond which a detection is not the requested object."""
VISIBLE = {"whole": (0.95, torch.inf), "half or more": (0.5, 0.95), "less than half": (0.0, 0.5)}
"""Visible fractions of the object in frame 1."""


@dataclass(frozen=True)
class Args:
    """Folders of finished benchmarks; the one of `leaving` with its frames."""

    leaving: Path
    """Folder of kind "leaving"."""
    resize: Path
    """Folder of kind "resize"."""
    three_objects: Path
    """Folder of kind "three objects"."""
    mesh: Path
    """Folder of kind "mesh"."""
    points: Path
    """Folder of kind "points"."""
    out: Path = Path("docs/claims/failures.md")
    """Output file for the tables."""


def by_share(cases: Sequence[tuple[Case, Tensor]]) -> dict[str, Tensor]:
    """Group the distances between object and target by the visible fraction of the object.

    Distances are in pixels, over all frames of the videos (`f 3 h w`); NaN where no object is found.
    """
    found: dict[str, list[Tensor]] = {label: [] for label in VISIBLE}
    for case, video in cases:
        (target,) = case.targets
        there = find_object(case.truth, target.colour).flatten(1).sum(1)
        share = there / there[0]
        distance = (centroids(find_object(video, target.colour)) - target.centres).norm(dim=-1)
        seen = target.centres.isfinite().all(-1)
        for label, (low, high) in VISIBLE.items():
            found[label].append(distance[seen & (share >= low) & (share < high)])
    return {label: torch.cat(parts) for label, parts in found.items()}


def leaving_table(distances: Mapping[str, Tensor], width: int) -> str:
    """Format a row per visible fraction; frames without an object count as half the width, as in the benchmark."""
    lines = ["| of the object is seen | frames | error, px | object elsewhere |", "| --- | --- | --- | --- |"]
    for label, values in distances.items():
        error, astray = values.nan_to_num(width / 2).mean(), (values > ASTRAY).float().mean()
        lines.append(f"| {label} | {len(values)} | {error:.2f} | {astray:.0%} of the frames |")
    return "\n".join(lines)


def resize_table(rows: Rows) -> str:
    """Compare growing and shrinking objects."""
    lines = ["| | cases | trajectory error, px | error of the box's area |", "| --- | --- | --- | --- |"]
    split: dict[str, list[Mapping[str, Any]]] = {"grows": [], "shrinks": []}
    for row in rows:
        radii = make_case(row["seed"], row["modality"], "resize").scene.sprites[0].radii
        split["grows" if radii[-1] > radii[0] else "shrinks"].append(row)
    for label, mine in split.items():
        error, area = (torch.tensor([row[m] for row in mine]) for m in ("trajectory_error", "area_error"))
        lines.append(f"| {label} | {len(mine)} | {estimate(error)} | {estimate(area)} |")
    return "\n".join(lines)


def three_table(rows: Rows) -> str:
    """Compare all objects with those that reach their targets."""
    errors = torch.tensor([row["trajectory_error"] for row in rows])
    lines = ["| | objects | trajectory error, px |", "| --- | --- | --- |"]
    for label, values in (("all", errors), (f"within {ASTRAY:.0f} px", errors[errors <= ASTRAY])):
        lines.append(f"| {label} | {len(values)} | {estimate(values)}, median {values.median():.2f} |")
    return "\n".join(lines)


def style_table(kinds: Mapping[str, Rows]) -> str:
    """Group errors by how the drawings of meshes and point clouds are rendered."""
    lines = ["| drawing | cases | trajectory error, px | first-frame IoU |", "| --- | --- | --- | --- |"]
    for kind, rows in kinds.items():
        for style in sorted({row["modality"] for row in rows}):
            mine = [row for row in rows if row["modality"] == style]
            error, iou = (torch.tensor([row[m] for row in mine]) for m in ("trajectory_error", "first_frame_iou"))
            lines.append(f"| {kind}, {style} | {len(mine)} | {estimate(error)} | {estimate(iou)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Write and print the tables."""
    cases = []
    folders = (args.leaving, args.resize, args.three_objects, args.mesh, args.points)
    left, resized, three, mesh, points = (read_json(path / "scores.json")["rows"] for path in folders)
    for row in left:
        folder = args.leaving / "cases" / f"{row['seed']}-{row['modality']}"
        cases.append((make_case(row["seed"], row["modality"], "leaving"), bench.frames(folder / f"{FULL}.npz")))
    tables = {
        "Objects that leave": leaving_table(by_share(cases), cases[0][0].scene.size),
        "Objects that are resized": resize_table(resized),
        "Three objects": three_table(three),
        "Drawings of meshes and point clouds": style_table({"mesh": mesh, "points": points}),
    }
    text = "\n\n".join(f"### {title}\n\n{table}" for title, table in tables.items()) + "\n"
    with atomic(args.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args))
