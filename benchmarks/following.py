"""Accuracy of the trajectory errors in the records of runs: `python -m benchmarks.following`.

Measures rendered videos, whose objects follow their tracks exactly: every error is one of the measurement. Then it
measures the same objects standing still, to count those that would pass as following.
"""

import time
from dataclasses import dataclass

import torch
import tyro

from anyi2v.micro.benchmark.cases import conditions, make_case
from anyi2v.micro.benchmark.kinds import Kind
from anyi2v.reports.following import Following, measure_following

KINDS: tuple[Kind, ...] = ("plain", "two objects", "three objects", "resize", "leaving")


@dataclass(frozen=True)
class Args:
    """Options of the measurement."""

    cases: int = 40
    """Number of cases per kind, on the ground truth of `anyi2v bench micro`."""
    kinds: tuple[Kind, ...] = KINDS
    """Kinds of cases."""


def measured(kind: Kind, count: int) -> tuple[list[Following], list[Following], float]:
    """Measure the rendered videos of some cases, and their first frames repeated; also return seconds per object."""
    true: list[Following] = []
    still: list[Following] = []
    seconds = 0.0
    for seed in range(1000, 1000 + count):
        options = conditions(kind)
        case = make_case(seed, options[seed % len(options)], kind)
        begin = time.process_time()
        true += measure_following(case.truth, case.tracks)
        seconds += time.process_time() - begin
        still += measure_following(case.truth[:1].expand_as(case.truth), case.tracks)
    return true, still, seconds / len(true)


def row(kind: str, true: list[Following], still: list[Following], seconds: float) -> str:
    """Format a line of the table."""
    errors = torch.tensor([found.error for found in true if found.error is not None])
    lost = sum(found.lost is not None for found in true)
    passed = sum(found.follows for found in still)
    mean, high = errors.mean().item(), errors.quantile(0.95).item()
    return (
        f"| {kind} | {len(true)} | {mean:.2f} px | {high:.2f} px | {errors.max().item():.2f} px | {lost} "
        f"| {passed} | {1000 * seconds:.0f} ms |"
    )


def main(args: Args) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("| kind | objects | mean error | 95th percentile | maximum | lost | static, accepted | time per object |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in args.kinds:
        print(row(kind, *measured(kind, args.cases)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
