"""How often each method fails, and how often it beats AnyI2V: `python -m benchmarks.leaderboard`.

Reads the scores of `anyi2v bench micro --methods all` and prints the tables of docs/benchmark.md.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from anyi2v.files import read_json
from anyi2v.latency.measure import table
from anyi2v.micro.benchmark.variants import FULL

FAR = 4.0
"""Trajectory error in pixels above which a video counts as failed, about a fifth of an object's width."""
RESULTS = Path(__file__).parent / "results" / "methods"


@dataclass(frozen=True)
class Args:
    """Options of the tables."""

    scores: Path = RESULTS / "scores.json"
    """Scores of a benchmark, for the first table."""
    kinds: tuple[Path, ...] = tuple(RESULTS / kind / "scores.json" for kind in ("two_objects", "resize", "leaving"))
    """Scores for other kinds of cases, for the second table."""


class Scores:
    """Scores of the variants of a benchmark."""

    def __init__(self, path: Path):
        data = read_json(path)
        self.kind: str = read_json(path.with_name("bench.json"))["kind"]
        self.summary: dict[str, dict[str, dict[str, float]]] = data["summary"]
        self.errors: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
        for row in data["rows"]:
            self.errors[row["variant"]][row["seed"], row["object"]] = row["trajectory_error"]

    @property
    def variants(self) -> list[str]:
        """The variants, in the order of their mean errors."""
        return sorted(self.errors, key=lambda name: self.summary[name]["trajectory_error"]["mean"])

    def error(self, name: str) -> str:
        """Format a variant's mean error and its interval."""
        error = self.summary[name]["trajectory_error"]
        return f"{error['mean']:.2f} px [{error['low']:.2f}, {error['high']:.2f}]"

    def far(self, name: str) -> str:
        """Format the share of objects that a variant misses by more than `FAR`."""
        own = self.errors[name].values()
        return f"{sum(value > FAR for value in own) / len(own):.0%}"

    def better(self, name: str) -> str:
        """Format the share of objects for which a variant has a smaller error than the full method."""
        own, full = self.errors[name], self.errors[FULL]
        return "" if name == FULL else f"{sum(own[key] < full[key] for key in own) / len(own):.0%}"


def details(scores: Scores) -> str:
    """Format the table of one kind of cases, a row per variant."""
    lines = []
    for name in scores.variants:
        summary = scores.summary[name]
        lines.append(
            [
                name,
                scores.error(name),
                f"{statistics.median(scores.errors[name].values()):.2f} px",
                scores.far(name),
                scores.better(name),
                f"{summary['first_frame_iou']['mean']:.2f}",
                f"{summary['background_right']['mean']:.0%}",
                f"{summary['seconds']['mean']:.1f}",
            ]
        )
    head = ["", "trajectory error", "median", f"more than {FAR:g} px", "better than full", "first-frame IoU"]
    return table([*head, "background right", "seconds"], lines)


def overview(kinds: Sequence[Scores]) -> str:
    """Format the table of several kinds of cases, a row per method in the order of the first kind."""
    head = [column for scores in kinds for column in (scores.kind, f"more than {FAR:g} px", "better than full")]
    lines = [
        [name, *(cell for scores in kinds for cell in (scores.error(name), scores.far(name), scores.better(name)))]
        for name in kinds[0].variants
    ]
    return table(["", *head], lines)


def main(args: Args) -> None:
    """Print both tables."""
    print(details(Scores(args.scores)), overview([Scores(path) for path in args.kinds]), sep="\n\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
