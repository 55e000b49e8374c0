"""A small search of each method's settings on the micro backbone: `python -m benchmarks.tune_methods`.

Every method has the same number of trials, on cases that are in no leaderboard. The output contains all trials and, for
each method, the one with the lowest trajectory error; the settings in use are in `anyi2v.micro.benchmark.methods`. Can
be interrupted and resumed.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.device import Dtype, WorkerCount, network_dtype, workers_of
from anyi2v.comparators.settings import ComparatorName, Settings
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark import bench
from anyi2v.micro.benchmark.bench_report import Rows, values
from anyi2v.micro.benchmark.methods import TUNED, Variant
from anyi2v.micro.benchmark.statistics import estimate
from anyi2v.micro.benchmark.variants import FULL


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return every combination of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


ANYI2V = grid(lr=(0.04, 0.06, 0.08, 0.12), optimise_steps=(3, 4))
TRIALS: Mapping[ComparatorName, Sequence[Mapping[str, Any]]] = {
    "freetraj": grid(edit_steps=(1, 2, 3, 4), d_t=(0.1, 0.3)),
    "trailblazer": grid(spatial_steps=(2, 3), strengthen=(0.5, 1.0, 2.0, 4.0)),
    "sg-i2v": grid(lr=(0.04, 0.06, 0.08, 0.1), last_step=(3, 5)),
    "sparsectrl": grid(scale=(0.5, 0.75, 1.0, 1.5), injection=(False, True)),
    "time-to-move": grid(weak_step=(1, 2), strong_step=(2, 3, 4, 5)),
}
"""Eight trials per method; settings that are not listed are as in `TUNED`."""
MEASURES = ("trajectory_error", "first_frame_iou", "colour_right", "background_right")


@dataclass(frozen=True)
class Args:
    """Options of the search."""

    cases: int = 6
    """Number of cases, of kind plain."""
    seed: int = 3000
    """Seed of the first case."""
    backbone: str = "micro"
    """Name of a shipped backbone trained on the synthetic world, or a file of one."""
    dtype: Dtype = "auto"
    """Precision, as for `anyi2v animate`."""
    workers: WorkerCount = None
    """Number of single-threaded processes that run trials in parallel, which needs the extra "cluster"; auto: one per
    core. None: no workers."""
    scratch: Path = Path("runs/tuning")
    """Folder for the frames."""
    out: Path = Path("benchmarks/results/methods/tuning.json")
    """Output file with all trials and the best of each method."""


def trials(backbone: str) -> dict[str, dict[str, Variant]]:
    """Return the trials of each method, AnyI2V first, by names such as "sg-i2v lr=0.08"."""
    config = recipe("paper", read_config(backbone).method)
    found = {FULL: {_label(FULL, changes): Variant(replace(config, **changes)) for changes in ANYI2V}}
    for name, tried in TRIALS.items():
        settings: Settings = TUNED[name]
        found[name] = {_label(name, changes): Variant(config, replace(settings, **changes)) for changes in tried}
    return found


def _label(name: str, changes: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in changes.items())])


def summary(rows: Rows, tried: Mapping[str, Mapping[str, Variant]]) -> dict[str, Any]:
    """Return all trials of each method with their measures, and the best: the lowest mean trajectory error."""
    found = {}
    for name, variants in tried.items():
        figures = {
            label: {metric: estimate(values(rows, label, metric))._asdict() for metric in MEASURES}
            for label in variants
        }
        best = min(figures, key=lambda label: figures[label]["trajectory_error"]["mean"])
        found[name] = {"best": best, "settings": variants[best].to_dict(), "trials": figures}
    return found


def main(args: Args) -> None:
    """Run the missing trials, write the file, print a line per trial."""
    dtype, tried = network_dtype(args.dtype, "cpu"), trials(args.backbone)
    variants = {label: variant for some in tried.values() for label, variant in some.items()}
    bench.prepare(args.scratch, args.backbone, dtype, variants, cases=args.cases, seed=args.seed, kind="plain")
    work = bench.jobs(args.scratch, args.cases, args.seed, "plain", args.backbone, dtype, variants)
    bench.run(work, workers_of(args.workers), progress=sys.stderr.isatty())
    found = summary(list(bench.rows(work)), tried)
    head = {"machine": describe(), "backbone": args.backbone, "dtype": str(dtype).removeprefix("torch.")}
    data = {**head, "cases": args.cases, "seed": args.seed, "kind": "plain", "methods": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(args.out) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for method in found.values():
        for label, figures in method["trials"].items():
            cells = [f"{metric} {figures[metric]['mean']:.2f}" for metric in MEASURES]
            print(f"{'*' if label == method['best'] else ' '} {label:45} {', '.join(cells)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
