"""`anyi2v eval vipseg`: the paper's evaluation on VIPSeg, up to its Table 1. Imports torch only when it runs."""

from dataclasses import dataclass

from anyi2v.cli.messages import LOGGER, bars, remark, result
from anyi2v.evaluation.vipseg_request import VIPSegRequest


@dataclass(frozen=True)
class EvalVIPSeg(VIPSegRequest):
    """Evaluate as in the paper: make conditions, tracks and batch jobs from VIPSeg's videos, then print its Table 1.

    Run this command, then the batch that it prints, then this command again. Existing results are kept.

    Examples:
    $ anyi2v eval vipseg --data VIPSeg --backbone v3.safetensors --out vipseg
    $ anyi2v batch vipseg/jobs.jsonl --out vipseg/runs --device cuda --workers auto
    $ anyi2v eval vipseg --data VIPSeg --backbone v3.safetensors --out vipseg --extractor inception.pt
    """

    def run(self) -> None:
        """Prepare the jobs; once all runs exist, measure them, write the file and the page, and print the tables."""
        from anyi2v.evaluation.evaluate import write
        from anyi2v.evaluation.page import check_page, write_page
        from anyi2v.evaluation.scores import table
        from anyi2v.evaluation.vipseg_protocol import JOBS, RUNS, measure, missing, paper_table, prepare

        progress = bars()
        for name, reason in prepare(self, progress=progress).items():
            LOGGER.info("left out: %s, since %s", name, reason)
        if names := missing(self.out):
            jobs = self.out / JOBS
            result(jobs, f"{len(names)} runs are to be made: anyi2v batch {jobs} --out {self.out / RUNS}")
            return
        page = self.out / "eval.html"
        check_page(page)
        request, evaluation = measure(self, progress=progress)
        write(self.out / "eval.json", request, evaluation)
        remark(f"{table(evaluation.scores)}\n\n{paper_table(evaluation)}\n")
        write_page(page, request, evaluation)
        scores = self.out / "eval.json"
        result(scores, f"{scores}: the same with all details; {page}: with plots and the worst videos")
