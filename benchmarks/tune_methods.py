"""A small search of each method's settings on the micro backbone: `python -m benchmarks.tune_methods`.

The same number of trials for each method, on cases that no leaderboard has, all with injection. Written are all trials
and, of each method, that of least trajectory error; the settings in use are in `anyi2v.micro.benchmark.methods`.
Can be interrupted and started again.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from anyi2v.checkpoints.header import read_config
from anyi2v.cli.device import Dtype, network_dtype
from anyi2v.comparators.settings import ComparatorName, Settings
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark import bench
from anyi2v.micro.benchmark.bench_report import Rows, values
from anyi2v.micro.benchmark.methods import TUNED, Variant
from anyi2v.micro.benchmark.statistics import estimate
from anyi2v.micro.benchmark.variants import FULL

LR = (0.04, 0.08, 0.12, 0.16)
TRIALS: Mapping[ComparatorName, tuple[Mapping[str, Any], ...]] = {
    "freetraj": tuple({"edit_steps": n} for n in (1, 2, 4, 6)),
    "trailblazer": tuple({"spatial_steps": n, "strengthen": c} for n in (2, 4) for c in (0.125, 0.5)),
    "sg-i2v": tuple({"lr": lr} for lr in LR),
    "time-to-move": tuple({"strong_step": n} for n in (4, 5, 6, 7)),
}
"""What is tried of each method; all else is as in `TUNED`. Of AnyI2V, `LR`."""
MEASURES = ("trajectory_error", "first_frame_iou", "colour_right", "background_right")


@dataclass(frozen=True)
class Args:
    """What is tried on."""

    cases: int = 4
    """Of kind plain."""
    seed: int = 3000
    """Of the first case."""
    backbone: str = "micro"
    """Name of a shipped backbone trained on the synthetic world, or a file of one."""
    dtype: Dtype = "auto"
    """As for `anyi2v animate`."""
    scratch: Path = Path("runs/tuning")
    """Folder for the frames."""
    out: Path = Path("benchmarks/results/methods/tuning.json")
    """All trials, and the best of each method."""


def trials(backbone: str) -> dict[str, dict[str, Variant]]:
    """The trials of each method, AnyI2V first, by their names: "sg-i2v lr=0.08"."""
    config = recipe("paper", read_config(backbone).method)
    found = {FULL: {_label(FULL, {"lr": lr}): Variant(replace(config, lr=lr)) for lr in LR}}
    for name, tried in TRIALS.items():
        settings: Settings = TUNED[name]
        found[name] = {_label(name, changes): Variant(config, replace(settings, **changes)) for changes in tried}
    return found


def _label(name: str, changes: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in changes.items())])


def summary(rows: Rows, tried: Mapping[str, Mapping[str, Variant]]) -> dict[str, Any]:
    """By method: the best trial, and all with their measures; the best has the least mean trajectory error."""
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
    """Runs the trials that are missing, writes the file, prints a line per trial."""
    dtype, tried = network_dtype(args.dtype, "cpu"), trials(args.backbone)
    variants = {label: variant for some in tried.values() for label, variant in some.items()}
    bench.prepare(args.scratch, args.backbone, dtype, variants, cases=args.cases, seed=args.seed, kind="plain")
    work = bench.jobs(args.scratch, args.cases, args.seed, "plain", args.backbone, dtype, variants)
    bench.run(work, None, progress=sys.stderr.isatty())
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
