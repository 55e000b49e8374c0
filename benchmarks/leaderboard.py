"""How often each method fails, and how often it beats AnyI2V: `python -m benchmarks.leaderboard`.

Reads the scores of `anyi2v bench micro --methods all` and prints the table of docs/benchmark.md.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro

from anyi2v.files import read_json
from anyi2v.latency.measure import table
from anyi2v.micro.benchmark.variants import FULL

FAR = 4.0
"""Trajectory error in pixels above which a video counts as failed, about a fifth of an object's width."""


@dataclass(frozen=True)
class Args:
    """Options of the table."""

    scores: Path = Path(__file__).parent / "results" / "methods" / "scores.json"
    """Scores of a benchmark."""


def main(args: Args) -> None:
    """Print a row per variant, in the order of the errors."""
    data = read_json(args.scores)
    errors: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in data["rows"]:
        errors[row["variant"]][row["seed"], row["object"]] = row["trajectory_error"]
    full, lines = errors[FULL], []
    for name in sorted(errors, key=lambda name: data["summary"][name]["trajectory_error"]["mean"]):
        own, summary = errors[name], data["summary"][name]
        error = summary["trajectory_error"]
        lines.append(
            [
                name,
                f"{error['mean']:.2f} px [{error['low']:.2f}, {error['high']:.2f}]",
                f"{statistics.median(own.values()):.2f} px",
                f"{sum(value > FAR for value in own.values()) / len(own):.0%}",
                "" if name == FULL else f"{sum(own[key] < full[key] for key in own) / len(own):.0%}",
                f"{summary['first_frame_iou']['mean']:.2f}",
                f"{summary['background_right']['mean']:.0%}",
                f"{summary['seconds']['mean']:.1f}",
            ]
        )
    head = ["", "trajectory error", "median", f"more than {FAR:g} px", "better than full", "first-frame IoU"]
    print(table([*head, "background right", "seconds"], lines))


if __name__ == "__main__":
    main(tyro.cli(Args))
