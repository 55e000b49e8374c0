"""Peak memory of each method on one case of the micro backbone: `python -m benchmarks.methods_memory`.

Every method runs in its own process, with one thread, in float32. The measure is the resident memory that the job adds
to a process that has loaded the backbone and run one plain denoising step, which loads the libraries' kernels.
"""

from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import tyro

import anyi2v
from anyi2v.latency.measure import table, write
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.methods import Variant, leaderboard
from anyi2v.micro.benchmark.variants import FULL
from benchmarks.full_size import peak_memory


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    seed: int = 1000
    """Seed of the case, of kind plain."""
    out: Path = Path(__file__).parent / "results" / "methods"
    """Output folder for figures and table."""


def measured(variant: Variant, seed: int) -> float:
    """Return the MiB that a job adds to the process."""
    torch.set_num_threads(1)
    backbone, case = anyi2v.load("micro"), make_case(seed, "edge")
    warm = MethodConfig(steps=1, inject_steps=0, optimise_steps=0, inversion="noise")
    anyi2v.animate(backbone, case.image, case.prompt, case.tracks, config=warm, seed=seed)
    before = peak_memory()
    anyi2v.animate(
        backbone, case.image, case.prompt, case.tracks, method=variant.method(case), config=variant.config, seed=seed
    )
    return (peak_memory() - before) / 2**20


def main(args: Args) -> None:
    """Measure each method in turn, print and write the results."""
    config = recipe("paper", anyi2v.load("micro").config.method)
    plain = Variant(replace(config, inject_steps=0, optimise_steps=0))
    variants = {"no method": plain, FULL: Variant(config), **leaderboard(config, ["all"], "plain")}
    mib: dict[str, float] = {}
    for name, variant in variants.items():
        with get_context("spawn").Pool(1) as pool:
            mib[name] = pool.apply(measured, (variant, args.seed))
        print(f"{name}: {mib[name]:.0f} MiB", flush=True)
    write(args.out, "memory", {"backbone": "micro", "seed": args.seed, "mib": mib})
    rows = [[name, f"{value:.0f}"] for name, value in mib.items()]
    (args.out / "memory.md").write_text(table(["method", "peak memory of a job, MiB"], rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
