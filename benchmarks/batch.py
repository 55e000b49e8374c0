"""Check, throughput and memory of a batch: `python -m benchmarks.batch`.

Check: the time that `anyi2v batch --check` takes for many jobs, with imports.

Throughput: the same jobs of micro on one thread, as one `anyi2v batch` and as one `anyi2v animate` each, alternating.
Memory: the resident set of a batch of many short jobs with different seeds, settings and tracks, after each job.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import matplotlib
import psutil
import tyro

from anyi2v.images.media import write_image
from anyi2v.latency.measure import table, write
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.tracks import save_tracks

OUT = Path(__file__).parent / "results" / "batch"
FLAGS = ("--threads", "1", "--dtype", "float32")
SHORT = {"steps": 2, "inject_steps": 1, "optimise_steps": 1, "iterations": 1, "inversion_stride": 100}
"""Settings of the jobs of the memory measurement."""


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    parts: tuple[Literal["check", "jobs"], ...] = ("check", "jobs")
    """What to measure: the check of a job file, or throughput and memory."""
    jobs: int = 8
    """Number of jobs in the throughput measurement."""
    rounds: int = 2
    """Number of repetitions of each variant."""
    many: int = 100
    """Number of jobs in the memory measurement."""
    lines: int = 1000
    """Number of lines in the file that is checked."""
    out: Path = OUT
    """Output folder for figures, table and plot."""


def prepare(folder: Path, jobs: int) -> list[dict[str, object]]:
    """Write the files of generated cases to the folder; return the lines of their jobs."""
    lines = []
    for seed in range(1000, 1000 + jobs):
        case = make_case(seed, "edge")
        write_image(folder / f"{seed}.png", case.image)
        save_tracks(folder / f"{seed}.json", case.tracks)
        lines.append({"image": f"{seed}.png", "tracks": f"{seed}.json", "prompt": case.prompt, "seed": seed})
    return lines


def anyi2v(*flags: str) -> subprocess.Popen[str]:
    """Start the command."""
    code = "import sys; from anyi2v.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *flags, *FLAGS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    """Wait for the process; raises RuntimeError if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)


def check(lines: int, rounds: int) -> list[float]:
    """Measure the seconds of a check; every line differs from all others in seed and learning rate."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        jobs = prepare(folder, 8)
        texts = [json.dumps(jobs[k % 8] | {"seed": k, "method.lr": 0.01 + k / 1e5}) for k in range(lines)]
        (folder / "jobs.jsonl").write_text("\n".join(texts))
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            ended(anyi2v("batch", str(folder / "jobs.jsonl"), "--out", str(folder / "batch"), "--check"))
            seconds.append(time.perf_counter() - start)
    return seconds


def throughput(jobs: int, rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of both variants."""
    seconds: dict[str, list[float]] = {"one batch": [], "single commands": []}
    for _ in range(rounds):
        with TemporaryDirectory() as name:
            folder = Path(name)
            lines = prepare(folder, jobs)
            (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
            start = time.perf_counter()
            ended(anyi2v("batch", str(folder / "jobs.jsonl"), "--out", str(folder / "batch")))
            seconds["one batch"].append(time.perf_counter() - start)
            start = time.perf_counter()
            for number, line in enumerate(lines):
                flags = [f"--{key}={line[key]}" for key in ("prompt", "seed")]
                flags += [f"--{key}={folder / str(line[key])}" for key in ("image", "tracks")]
                ended(anyi2v("animate", *flags, f"--out={folder / str(number)}"))
            seconds["single commands"].append(time.perf_counter() - start)
    return seconds


def memory(jobs: int) -> list[float]:
    """Measure the resident set in MiB after each job."""
    found = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            line | {"method": SHORT | {"lr": 0.01 + 0.0001 * number}}
            for number, line in enumerate(prepare(folder, jobs))
        ]
        (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        process = anyi2v("batch", str(folder / "jobs.jsonl"), "--out", str(folder / "batch"))
        assert process.stderr is not None
        for text in process.stderr:
            if re.match(r"\[\d+/\d+\] .*: made in", text):
                found.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        if process.wait() or len(found) != jobs:
            raise RuntimeError(f"the batch ended with {process.returncode} after {len(found)} of {jobs} jobs")
    return found


def main(args: Args) -> None:
    """Run the measurements, print and write the results."""
    if "check" in args.parts:
        checks = {lines: check(lines, args.rounds) for lines in (1, args.lines)}
        rows = [[f"check of {lines} lines", f"{statistics.median(times):.1f} s"] for lines, times in checks.items()]
        report(args.out, "check", {"seconds": checks}, rows)
    if "jobs" in args.parts:
        jobs(args)


def jobs(args: Args) -> None:
    """Measure throughput and memory."""
    seconds = throughput(args.jobs, args.rounds)
    ratios = [single / batch for batch, single in zip(*seconds.values(), strict=True)]
    mib = memory(args.many)
    later = statistics.linear_regression(range(len(mib) // 2, len(mib)), mib[len(mib) // 2 :]).slope
    rows = [
        [f"{args.jobs} jobs in one batch", f"{statistics.median(seconds['one batch']):.1f} s"],
        [f"{args.jobs} single commands", f"{statistics.median(seconds['single commands']):.1f} s"],
        ["ratio", f"{statistics.median(ratios):.2f}"],
        *[[f"resident set after {i} jobs", f"{mib[i - 1]:.0f} MiB"] for i in (10, args.many // 2, args.many)],
        ["growth per job in the second half", f"{later:+.2f} MiB"],
    ]
    figures = {"seconds": seconds, "ratios": ratios, "resident_mib": mib, "mib_per_job": later}
    report(args.out, "batch", figures, rows)
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 2.5), layout="constrained")
    axes.plot(range(1, len(mib) + 1), mib)
    axes.set(xlabel="jobs made", ylabel="resident set, MiB", ylim=(0, None))
    figure.savefig(args.out / "memory.png", dpi=120)


def report(out: Path, name: str, figures: dict[str, object], rows: list[list[str]]) -> None:
    """Print the rows as a table; write it and the figures."""
    print(text := table(["", "micro, float32, one thread"], rows))
    write(out, name, figures)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
