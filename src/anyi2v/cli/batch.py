"""The command `anyi2v batch`, many jobs from a file; imports torch only when it runs."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from anyi2v.batch.jobs import JobFile, Problem, read_jobs
from anyi2v.cli.device import Dtype, WorkerCount, asked_of, machine_of, network_dtype, workers_of
from anyi2v.cli.messages import LOGGER, bars, remark, result
from anyi2v.errors import InputError
from anyi2v.execution.cluster import Workers
from anyi2v.files import check_place
from anyi2v.latency.options import within

if TYPE_CHECKING:
    from anyi2v.batch.check import Task
    from anyi2v.batch.run import Maker, Outcome


@dataclass(frozen=True)
class BatchCommand:
    """Run the jobs of a file, one per line, or several per line through lists of seeds and settings.

    All lines are checked before any work. Each job writes a run to its own folder; existing runs are skipped, so an
    interrupted batch can be resumed. A job that fails leaves error.json in its folder and does not affect the others.
    index.html and jobs.csv summarise all jobs.

    Examples:
    $ anyi2v batch jobs.jsonl --check
    $ anyi2v batch jobs.jsonl --out sweep --cache cache
    $ anyi2v batch jobs.csv --out sweep --overwrite
    $ anyi2v batch jobs.jsonl --out sweep --device cuda --workers auto
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Jobs as JSON Lines (.jsonl), a JSON list (.json), or CSV with a header (.csv); paths are relative to its
    folder."""
    out: Path = Path("batch")
    """Output folder for the jobs' folders, index.html and jobs.csv."""
    check: bool = False
    """Only report invalid lines and the number of jobs to run."""
    cache: Path | None = None
    """Folder for a cache of inverted images (subfolder anyi2v-inversions, at most 4 GiB): jobs on the same image and
    prompt then share one inversion."""
    invert_together: int = 1
    """Number of condition images to invert as one batch, for consecutive lines with the same size and settings; 1: one
    by one. Faster, but through rounding the bytes of a video then depend on the other jobs in its batch."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps."""
    dtype: Dtype = "auto"
    """Dtype of the networks; auto: a 16-bit type if it is faster on the device, decided once."""
    threads: int | None = None
    """Number of CPU threads per process; None: PyTorch's default, or 1 with workers."""
    workers: WorkerCount = None
    """Number of parallel worker processes, each with its own GPU (--device cuda) or CPU threads; auto: as many as the
    resources allow. None: run the jobs one by one in this process. Requires the extra "cluster"."""
    address: str | None = None
    """Address of a running ray cluster to use, whose machines must share these folders; "auto": the one on this
    machine. Implies --workers auto."""
    overwrite: bool = False
    """Rerun jobs whose folder has a run with other inputs; matching runs are kept."""

    def run(self) -> int:
        """Run the missing jobs; return 1 if a job failed, else 0.

        Raises InputError, after printing all problems, if a line is unusable.
        """
        workers = workers_of(self.workers, self.address, self.device, self.threads)
        within("--invert-together", self.invert_together, 1, 1024)
        if self.invert_together > 1 and (workers or self.cache):
            other = "--cache" if self.cache else "workers"
            raise InputError(f"--invert-together cannot be combined with {other}; remove one of them")
        jobs = read_jobs(self.file)
        tasks = self._checked(jobs)
        done = sum(task.done for task in tasks)
        LOGGER.info("%s: %d jobs, %d of them done", self.file, len(tasks), done)
        return 0 if self.check else self._made(tasks, workers)

    def _checked(self, jobs: JobFile) -> "list[Task]":
        from anyi2v.batch.check import Checker, check_batch
        from anyi2v.batch.report import check_report

        check_batch(self.out)
        check_report(self.out)
        checker = Checker(self.out, asked_of(self.device, self.dtype, self.threads), overwrite=self.overwrite)
        found = [checker.task(job) for job in jobs.jobs]
        tasks = [task for task in found if task is not None]
        # jobs of one line share most problems
        problems: list[Problem] = list(dict.fromkeys([*jobs.problems, *checker.problems]))
        if problems:
            for problem in sorted(problems, key=lambda problem: problem.line):
                LOGGER.error(jobs.where(problem))
            lines = len({problem.line for problem in problems})
            some = f"1 {jobs.unit} of {self.file} is" if lines == 1 else f"{lines} lines of {self.file} are"
            raise InputError(f"{some} unusable, for the reasons above; nothing was run")
        return tasks

    def _made(self, tasks: "list[Task]", workers: Workers | None) -> int:
        from anyi2v.batch.report import write_report
        from anyi2v.batch.run import run_tasks

        threads, dtype = self.threads, self.dtype
        if workers is not None:
            threads = workers.threads
            if dtype == "auto" and self.device == "cpu":  # measurements of the workers could differ
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
            if self.out.expanduser().exists():  # otherwise nothing was started
                page = write_report(self.out, tasks, title=self.file.name)
                result(page, f"all jobs side by side: {page}")
        counts = {status: sum(o.status == status for o in outcomes) for status in ("made", "there", "busy", "failed")}
        remark(
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
    """Create the `Maker` that runs the jobs, in any process; `together` are arguments of `Ahead`."""
    from anyi2v.batch.ahead import Ahead
    from anyi2v.batch.run import Maker
    from anyi2v.reports.writing import impossible_outputs

    machine = machine_of(device, dtype, threads, cache=cache)
    return Maker(machine, overwrite, impossible_outputs(), Ahead(*together) if together else None)


class Progress:
    """Logs a line per job, or draws a bar on a terminal; failures, and each distinct warning once, are always lines."""

    def __init__(self, total: int):
        from tqdm import tqdm

        self.total, self.done = total, 0
        self.warned: set[str] = set()
        self.bar = tqdm(total=total, unit="job", dynamic_ncols=True) if bars() else None

    def __call__(self, outcome: "Outcome") -> None:
        """Report the outcome of a job."""
        self.done += 1
        job = outcome.task.job
        said = {
            "made": f"made in {outcome.seconds:.1f} s",
            "there": "is there",
            "busy": "skipped: another process is making it",
            "failed": f"failed: {outcome.message}",
        }[outcome.status]
        if self.bar is None or outcome.status in ("busy", "failed"):
            level = logging.ERROR if outcome.status == "failed" else logging.INFO
            LOGGER.log(level, "[%d/%d] line %d, %s: %s", self.done, self.total, job.line, job.name, said)
        for text in outcome.warnings:
            if text not in self.warned:  # jobs of a sweep share most warnings
                self.warned.add(text)
                LOGGER.warning("line %d, %s: %s", job.line, job.name, text)
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """Close the bar, leaving it on screen."""
        if self.bar is not None:
            self.bar.close()
