"""`anyi2v batch`: many jobs from a file. Free of torch until it runs."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from anyi2v.batch.jobs import JobFile, Problem, read_jobs
from anyi2v.cli.device import Dtype, WorkerCount, asked_of, machine_of, network_dtype, workers_of
from anyi2v.errors import InputError
from anyi2v.execution.cluster import Workers
from anyi2v.files import check_place
from anyi2v.latency.options import within

if TYPE_CHECKING:
    from anyi2v.batch.check import Task
    from anyi2v.batch.run import Maker, Outcome


@dataclass(frozen=True)
class BatchCommand:
    """Make the jobs of a file: one a line, or several by lists of seeds and settings.

    All lines are checked before any work. Each job has a folder with a run; those that are there are not made again,
    so a batch goes on where it was stopped. A job that fails leaves error.json in its folder and costs no other.
    index.html and jobs.csv show all of them.

    Examples:
    $ anyi2v batch jobs.jsonl --check
    $ anyi2v batch jobs.jsonl --out sweep --cache cache
    $ anyi2v batch jobs.csv --out sweep --overwrite
    $ anyi2v batch jobs.jsonl --out sweep --device cuda --workers auto
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Jobs as JSON Lines (.jsonl), a JSON list (.json), or CSV with a header (.csv); paths in it are relative to its
    folder."""
    out: Path = Path("batch")
    """Folder for the jobs' folders, index.html and jobs.csv."""
    check: bool = False
    """Only say what is wrong about which lines, and how many jobs there are to make."""
    cache: Path | None = None
    """Folder where inverted images are kept, in anyi2v-inversions, 4 GiB of them: jobs on the same image and prompt
    then share one inversion."""
    invert_together: int = 1
    """Condition images that are inverted as one batch, where lines after each other have the same size and settings;
    1: each by its own job. Faster, but the bytes of a video then depend on its neighbours, by rounding."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Of the networks; auto: 16 bits where the device is faster in them, which is measured once."""
    threads: int | None = None
    """CPU threads, of each worker; None: PyTorch's choice, one with workers."""
    workers: WorkerCount = None
    """Processes that make jobs beside each other, each with a GPU of its own (--device cuda) or its threads on the
    CPU; auto: as many as there is room for. None: this process, one job after the other. Needs the extra "cluster"."""
    address: str | None = None
    """Of a running ray cluster whose machines work too, all with these folders; "auto": the one of this machine.
    Implies --workers auto."""
    overwrite: bool = False
    """Make jobs again whose folder holds a run of other inputs; those that are there stay."""

    def run(self) -> int:
        """Makes what is missing; returns 1 if a job failed, else 0.

        Raises InputError, after all mistakes were printed, if a line is unusable.
        """
        workers = workers_of(self.workers, self.address, self.device, self.threads)
        within("--invert-together", self.invert_together, 1, 1024)
        if self.invert_together > 1 and (workers or self.cache):
            other = "--cache" if self.cache else "workers"
            raise InputError(f"--invert-together is not allowed with {other}; leave out one of both")
        jobs = read_jobs(self.file)
        tasks = self._checked(jobs)
        done = sum(task.done for task in tasks)
        print(f"{self.file}: {len(tasks)} jobs, {done} of them done", file=sys.stderr)
        return 0 if self.check else self._made(tasks, workers)

    def _checked(self, jobs: JobFile) -> "list[Task]":
        from anyi2v.batch.check import Checker, check_batch
        from anyi2v.batch.report import check_report

        check_batch(self.out)
        check_report(self.out)
        checker = Checker(self.out, asked_of(self.device, self.dtype, self.threads), overwrite=self.overwrite)
        found = [checker.task(job) for job in jobs.jobs]
        tasks = [task for task in found if task is not None]
        # jobs of one line share most mistakes
        problems: list[Problem] = list(dict.fromkeys([*jobs.problems, *checker.problems]))
        if problems:
            for problem in sorted(problems, key=lambda problem: problem.line):
                print(" ".join(jobs.where(problem).split()), file=sys.stderr)
            lines = len({problem.line for problem in problems})
            some = f"1 {jobs.unit} of {self.file} is" if lines == 1 else f"{lines} lines of {self.file} are"
            raise InputError(f"{some} unusable, for the reasons above; nothing was made")
        return tasks

    def _made(self, tasks: "list[Task]", workers: Workers | None) -> int:
        from anyi2v.batch.report import write_report
        from anyi2v.batch.run import run_tasks

        threads, dtype = self.threads, self.dtype
        if workers is not None:
            threads = workers.threads
            if dtype == "auto" and self.device == "cpu":  # what each worker measured could differ
                dtype = cast(Dtype, str(network_dtype(dtype, self.device)).removeprefix("torch."))
        if self.cache:
            check_place(self.cache)
        together = (tasks, self.invert_together) if self.invert_together > 1 else None
        make = partial(_maker, self.device, dtype, threads, self.cache, together, overwrite=self.overwrite)
        progress = Progress(len(tasks))
        try:
            outcomes = run_tasks(make, tasks, progress, workers)
        finally:
            progress.close()
            if self.out.expanduser().exists():  # else nothing was begun
                page = write_report(self.out, tasks, title=self.file.name)
                print(f"all jobs beside each other: {page}")
        counts = {status: sum(o.status == status for o in outcomes) for status in ("made", "there", "busy", "failed")}
        print(
            f"{counts['made']} made, {counts['there']} were there, {counts['failed']} failed"
            + f", {counts['busy']} are being made by another process" * bool(counts["busy"])
        )
        return 1 if counts["failed"] else 0


def _maker(
    device: str,
    dtype: Dtype,
    threads: int | None,
    cache: Path | None,
    together: "tuple[list[Task], int] | None",
    *,
    overwrite: bool,
) -> "Maker":
    """What makes the jobs, in whichever process; `together`: arguments of `Ahead`."""
    from anyi2v.batch.ahead import Ahead
    from anyi2v.batch.run import Maker
    from anyi2v.reports.writing import impossible_outputs

    machine = machine_of(device, dtype, threads, cache=cache)
    return Maker(machine, overwrite, impossible_outputs(), Ahead(*together) if together else None)


class Progress:
    """A line per job, or a bar where the output is a terminal; failures, and each warning once, are lines in both."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.total, self.done = total, 0
        self.warned: set[str] = set()
        self.bar = tqdm(total=total, unit="job", dynamic_ncols=True) if sys.stderr.isatty() else None

    def __call__(self, outcome: "Outcome") -> None:
        """Says what became of a job."""
        self.done += 1
        job = outcome.task.job
        said = {
            "made": f"made in {outcome.seconds:.1f} s",
            "there": "is there",
            "busy": "skipped: another process is making it",
            "failed": f"failed: {outcome.message}",
        }[outcome.status]
        lines = [f"[{self.done}/{self.total}] line {job.line}, {job.name}: {said}"]
        if self.bar is not None and outcome.status in ("made", "there"):
            lines = []
        for text in outcome.warnings:
            if text not in self.warned:  # jobs of a sweep have most of them in common
                self.warned.add(text)
                lines.append(f"line {job.line}, {job.name}: warning: {' '.join(text.split())}")
        for line in lines:
            if self.bar is None:
                print(line, file=sys.stderr, flush=True)
            else:
                self.bar.write(line, file=sys.stderr)
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
