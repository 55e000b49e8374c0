"""The commands `anyi2v eval ...`, metrics over folders of videos; import torch only when they run."""

from dataclasses import dataclass
from pathlib import Path

from anyi2v.evaluation.request import Request


@dataclass(frozen=True)
class EvalVideos(Request):
    """Evaluate video files of any method by FID, KID, FVD, KVD and ObjMC, each with its convention and interval.

    Videos, real videos and tracks are paired by name.

    Examples:
    $ anyi2v eval videos --generated runs --tracks runs --metrics objmc
    $ anyi2v eval videos --generated ours --real vipseg --metrics fid kid --extractor net.pt --frame-convention as-is
    $ anyi2v eval videos --generated ours --real vipseg --metrics fvd --video-extractor i3d.pt --video-convention google
    """

    out: Path = Path("eval.json")
    """Output JSON file with all scores, overall and per video."""

    def run(self) -> None:
        """Evaluate, write the file, print a table."""
        from anyi2v.errors import InputError
        from anyi2v.evaluation.evaluate import evaluate, table, write
        from anyi2v.files import check_place
        from anyi2v.reports.folder import check_file

        if self.out.suffix.lower() != ".json":
            raise InputError(f"cannot write {self.out}: the suffix must be .json")
        check_file(self.out, self.extractor, self.video_extractor)
        check_place(self.out.parent)
        evaluation = evaluate(self)
        write(self.out, self, evaluation)
        print(table(evaluation.scores))
        print(f"{self.out}: the same with all details")
