"""Curves of a training record: `python -m benchmarks.training --run benchmarks/results/training`."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from anyi2v.files import atomic
from anyi2v.micro.training.objectives import STAGES


@dataclass(frozen=True)
class Args:
    """Options of the figure."""

    run: Path = Path("benchmarks/results/training")
    """Folder with the trainer's record.jsonl."""
    out: Path = Path("docs/training.png")
    """Output file for the figure."""


def continued(entries: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one stage's entries with `key`; steps continue where the stage was restarted."""
    done, before, steps = 0, 0, []
    for entry in entries:
        done += before if entry["step"] <= before else 0
        before = entry["step"]
        if key in entry:
            steps.append((done + before, entry[key]))
    return [step for step, _ in steps], [value for _, value in steps]


def minutes(entries: list[dict[str, Any]]) -> float:
    """Return the time of one stage over all its runs; the clock starts at zero in each run."""
    clock = [entry["seconds"] for entry in entries if "seconds" in entry]
    return sum(now for now, then in pairwise([*clock, 0.0]) if then < now) / 60


def main(args: Args) -> None:
    """Plot the training and validation loss of each stage."""
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in (args.run / "record.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(12, 3.2), dpi=100, layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(STAGES)), STAGES, strict=True):
        mine = [entry for entry in entries if entry["stage"] == stage]
        for key, label in (("loss", "training"), ("validation_loss", "validation, averaged weights")):
            axes.plot(*continued(mine, key), label=label, marker="." if key != "loss" else None)
        axes.set(title=f"{stage}: {minutes(mine):.0f} minutes", xlabel="step", yscale="log")
        axes.grid(color="0.9")
        _, validation = continued(mine, "validation_loss")
        print(f"{stage:8} {minutes(mine):4.0f} min, last validation loss {validation[-1]:.5f}")
    figure.axes[0].legend()
    with atomic(args.out) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args))
