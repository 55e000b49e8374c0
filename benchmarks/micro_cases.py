"""The method on generated cases with ground truth: `python -m benchmarks.micro_cases --cases 48`.

Every case is run by the full method, without optimisation and without injection, from the same noise. Prints a
table with 95 % bootstrap intervals over the cases and writes all scores to a JSON file.
"""

import dataclasses
import json
import multiprocessing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from anyi2v.backbone.checkpoint import Backbone, load
from anyi2v.config import MethodConfig, recipe
from anyi2v.micro.cases import make_case
from anyi2v.micro.variants import variants
from anyi2v.micro.world import Modality
from anyi2v.pipeline import animate

from .machine import describe

MODALITIES: tuple[Modality, ...] = ("edge", "depth", "segmentation", "photo")


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    cases: int = 48
    """Modalities in turn: edge, depth, segmentation, photo."""
    first_seed: int = 1000
    """Of the cases; the noise has the same seed as its case."""
    backbone: str = "micro"
    recipe: str = "paper"
    """Or "official"; with the backbone's own settings on top."""
    set: tuple[str, ...] = ()
    """Method settings as name=value in JSON, e.g. lr=0.02."""
    variants: tuple[str, ...] = ("full", "no optimisation", "no injection")
    processes: int = 2
    """One thread each."""
    out: Path | None = None
    """JSON file for the scores."""


Job = tuple[str, int, Modality, str, MethodConfig]


@cache
def _backbone(name: str) -> Backbone:
    torch.set_num_threads(1)
    return load(name)


def run(job: Job) -> dict[str, object]:
    """One case by one variant."""
    backbone, seed, modality, name, config = job
    case = make_case(seed, modality)
    result = animate(_backbone(backbone), case.image, case.prompt, case.tracks, config=config, seed=seed)
    scores = dataclasses.asdict(case.scores(result.video))
    return {"seed": seed, "modality": modality, "variant": name, **scores, "seconds": sum(result.timings.values())}


def interval(values: torch.Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (2000, len(values)), generator=generator)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


METRICS = ("trajectory_error", "found", "first_frame_iou", "colour_right", "background_right", "seconds")


def table(rows: list[dict[str, object]], names: tuple[str, ...]) -> str:
    """Mean and interval of each metric per variant, as Markdown."""
    lines = ["| variant | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name in names:
        cells = []
        for metric in METRICS:
            values = torch.tensor([float(r[metric]) for r in rows if r["variant"] == name])  # type: ignore[arg-type]
            low, high = interval(values)
            cells.append(f"{values.mean():.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: Args) -> list[dict[str, object]]:
    """Runs all cases, prints the table, writes the file."""
    from anyi2v.backbone.header import read_config

    changes = {**read_config(args.backbone).method}
    changes |= {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    chosen = {k: v for k, v in variants(recipe(args.recipe, changes)).items() if k in args.variants}
    jobs: list[Job] = [
        (args.backbone, args.first_seed + i, MODALITIES[i % len(MODALITIES)], name, config)
        for i in range(args.cases)
        for name, config in chosen.items()
    ]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        rows = list(tqdm(pool.imap(run, jobs), total=len(jobs), desc="cases"))
    print(table(rows, tuple(chosen)))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        method = {name: config.to_dict() for name, config in chosen.items()}
        data = {"machine": describe(), "backbone": args.backbone, "method": method, "rows": rows}
        args.out.write_text(json.dumps(data, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Args))
