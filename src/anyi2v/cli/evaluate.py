"""The commands `anyi2v eval ...`: metrics over folders of videos. Imports torch only when they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from anyi2v.cli.messages import bars, remark, result
from anyi2v.errors import plural
from anyi2v.evaluation.request import Request

if TYPE_CHECKING:
    from anyi2v.evaluation.following import Follower


@dataclass(frozen=True)
class EvalVideos(Request):
    """Evaluate video files of any method; every score is reported with its convention and interval.

    Videos, real videos and tracks are paired by name.

    Examples:
    $ anyi2v eval videos --generated runs --tracks runs --metrics objmc
    $ anyi2v eval videos --generated runs --tracks runs --metrics trajectory --follower micro
    $ anyi2v eval videos --generated ours --real vipseg --metrics fid kid --extractor net.pt --frame-convention as-is
    $ anyi2v eval videos --generated ours --real vipseg --metrics fvd --video-extractor i3d.pt --video-convention google
    """

    follower: Literal["points", "micro"] = "points"
    """How trajectory follows objects: by points, tracked by Lucas-Kanade or --tracker, or by the colours of micro's
    synthetic world, where objects in the track file have names like "red circle"."""
    out: Path = Path("eval.json")
    """Output JSON file with all scores, overall and per video. A page with plots and the worst videos is written next
    to it, with the suffix .html."""

    def run(self) -> None:
        """Evaluate, write the file and the page, print a table."""
        from anyi2v.errors import InputError
        from anyi2v.evaluation.evaluate import evaluate, write
        from anyi2v.evaluation.page import check_page, write_page
        from anyi2v.evaluation.scores import table
        from anyi2v.files import check_place
        from anyi2v.reports.folder import check_file

        if self.out.suffix.lower() != ".json":
            raise InputError(f"cannot write {self.out}: the suffix must be .json")
        page = self.out.with_suffix(".html")
        check_file(self.out, self.tracker, self.extractor, self.video_extractor, self.structure_network, self.clip)
        check_page(page)
        check_place(self.out.parent)
        evaluation = evaluate(self, follower=self._follower(), progress=bars())
        write(self.out, self, evaluation)
        remark(table(evaluation.scores))
        result(self.out, f"{self.out}: the same with all details")
        write_page(page, self, evaluation)
        result(page, f"{page}: the same with plots and the worst videos")

    def _follower(self) -> "Follower | None":
        from anyi2v.micro.benchmark.colours import ColourFollower

        return ColourFollower() if self.follower == "micro" else None


@dataclass(frozen=True)
class EvalVBench:
    """Copy the videos of runs under the names that VBench reads: PROMPT-INDEX.mp4.

    Examples:
    $ anyi2v eval vbench-export runs --out vbench/overall_consistency
    """

    runs: Annotated[Path, tyro.conf.Positional]
    """Folder of runs, such as that of a batch."""
    out: Path
    """Folder to copy to."""

    def run(self) -> None:
        """Copy the videos and print how many."""
        from anyi2v.evaluation.vbench import export, plan

        names = plan(self.runs, self.out)
        export(names)
        prompts = {path.stem.rpartition("-")[0] for path in names.values()}
        result(self.out, f"{self.out}: {plural(len(names), 'video')} of {plural(len(prompts), 'prompt')}")
