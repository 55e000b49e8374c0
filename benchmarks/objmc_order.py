"""Does ObjMC order methods as ground truth does? `python -m benchmarks.objmc_order --bench runs/methods`.

Reads the frames of `anyi2v bench micro --methods all`, evaluates every method's videos with `anyi2v eval videos` (ObjMC
in both modes and followed boxes, by Lucas-Kanade), and compares with the benchmark's trajectory errors: Spearman's rank
correlation over the methods, and over all videos.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import spearmanr

from anyi2v.evaluation.evaluate import Evaluation, evaluate
from anyi2v.evaluation.request import Request
from anyi2v.files import read_json
from anyi2v.images.video import write_video
from anyi2v.latency.measure import table, write
from anyi2v.micro.benchmark import bench
from anyi2v.micro.benchmark.methods import Variant
from anyi2v.micro.benchmark.variants import FULL
from anyi2v.tracks import save_tracks

MEASURES = {
    "objmc_strict": "ObjMC (strict), of the diagonal",
    "objmc_draganything": "ObjMC (draganything), px",
    "trajectory_mean": "followed boxes, px",
}
"""Keys of the numbers of single videos, with titles."""


@dataclass(frozen=True)
class Args:
    """Options of the comparison."""

    bench: Path
    """Folder of a benchmark with several methods."""
    cases: int = 50
    """Number of cases, from the first."""
    out: Path = Path(__file__).parent / "results" / "methods"
    """Output folder for figures and table."""


def work_of(folder: Path, cases: int) -> list[bench.Job]:
    """Return the benchmark's first cases, with AnyI2V and the other methods if all cases have them."""
    data = read_json(folder / "bench.json")
    methods = {name: Variant.from_dict(values) for name, values in data["methods"].items()}
    dtype = getattr(torch, data["dtype"])
    work = bench.jobs(folder, data["cases"], data["seed"], data["kind"], data["backbone"], dtype, methods)
    made = bench.finished(work).items()
    variants = {name: variant for name, variant in made if name == FULL or variant.comparator is not None}
    return bench.jobs(folder, cases, data["seed"], data["kind"], data["backbone"], dtype, variants)


def evaluated(work: Sequence[bench.Job], variant: str) -> Evaluation:
    """Evaluate a variant's videos as files, as those of any other program."""
    with tempfile.TemporaryDirectory() as root:
        videos, tracks = Path(root, "videos"), Path(root, "tracks")
        for job in work:
            write_video(videos / f"{job.folder.name}.npz", bench.frames(job.path(variant)), fps=8)
            save_tracks(tracks / f"{job.folder.name}.json", job.case.tracks)
        return evaluate(Request(videos, tracks=tracks, metrics=("objmc", "trajectory")), progress=True)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    found: Any = spearmanr(a, b)
    return float(found[0])


def compared(errors: Mapping[tuple[str, str], float], found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return means and correlations; videos without a number in a measure are left out of its correlation."""
    variants = list(found)
    true = {name: float(np.mean([errors[key] for key in errors if key[0] == name])) for name in variants}
    data: dict[str, Any] = {"trajectory_error": true, "measures": {}}
    for key in MEASURES:
        means = {name: score.value for name in variants for score in found[name].scores if score.key == key}
        pairs = [(errors[n, video], own[key]) for n in variants for video, own in found[n].videos.items() if key in own]
        exact, measured = (list(values) for values in zip(*pairs, strict=True))
        data["measures"][key] = {
            "means": means,
            "over_methods": rank_correlation(list(true.values()), list(means.values())),
            "over_videos": rank_correlation(exact, measured),
            "videos": len(pairs),
        }
    return data


def main(args: Args) -> None:
    """Evaluate, print and write the results."""
    work = work_of(args.bench, args.cases)
    rows = list(bench.rows(work))
    errors: dict[tuple[str, str], float] = {}
    for name in work[0].methods:
        for job in work:
            own = [row["trajectory_error"] for row in rows if (row["variant"], row["seed"]) == (name, job.seed)]
            errors[name, job.folder.name] = float(np.mean(own))
    data = compared(errors, {name: evaluated(work, name) for name in work[0].methods})
    write(args.out, "objmc_order", {"cases": args.cases, **data})
    measures = data["measures"]
    lines = [
        [name, f"{error:.2f}", *(f"{measures[key]['means'][name]:.3g}" for key in MEASURES)]
        for name, error in sorted(data["trajectory_error"].items(), key=lambda item: item[1])
    ]
    for title, key in (("rank correlation over methods", "over_methods"), ("over videos", "over_videos")):
        lines.append([title, "", *(f"{measures[measure][key]:.2f}" for measure in MEASURES)])
    text = table(["method", "trajectory error, px", *MEASURES.values()], lines)
    (args.out / "objmc_order.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args))
