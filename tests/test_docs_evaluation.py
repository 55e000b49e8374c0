"""docs/evaluation.md: its commands parse, its tables and figures are ours."""

import re
import shlex
from pathlib import Path

from anyi2v import cli
from anyi2v.cli.evaluate import EvalVBench, EvalVideos
from anyi2v.cli.vipseg import EvalVIPSeg
from anyi2v.evaluation.conventions import FRAME_CONVENTIONS, VIDEO_CONVENTIONS
from anyi2v.evaluation.distances import SUBSET_SIZE, SUBSETS
from anyi2v.evaluation.following import BoxFollower
from anyi2v.evaluation.inputs import conventions
from anyi2v.evaluation.likeness import LONGEST, PATCH, SIDE
from anyi2v.evaluation.objmc import GRID
from anyi2v.evaluation.packaged import LAYER
from anyi2v.evaluation.page import WORST
from anyi2v.evaluation.request import METRICS
from anyi2v.evaluation.trackers import LucasKanade
from anyi2v.evaluation.videos import SUFFIXES
from anyi2v.evaluation.vipseg_protocol import LEAST_AREA

TEXT = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
COMMANDS = re.findall(r"^anyi2v (eval .*)$", TEXT, flags=re.MULTILINE)
ONE_LINE = " ".join(TEXT.split())


def test_its_commands_are_understood() -> None:
    parsed = [cli.parse(shlex.split(command)) for command in COMMANDS]
    asked = [request for request in parsed if isinstance(request, EvalVideos)]
    assert len(asked) == 5
    assert [type(request) for request in parsed if request not in asked] == [EvalVIPSeg, EvalVIPSeg, EvalVBench]
    # every convention is a known one, and every metric is shown
    assert {metric for request in asked for metric in request.metrics} == set(METRICS)
    assert all(len(conventions(request)) == len(request.metrics) for request in asked[1:3])


def test_its_tables_name_all_conventions() -> None:
    for flag, known in (("frame", FRAME_CONVENTIONS), ("video", VIDEO_CONVENTIONS)):
        table = TEXT.split(f"| `--{flag}-convention` |")[1].split("\n\n")[0]
        assert re.findall(r"^\| ([a-z-]+) \|", table, flags=re.MULTILINE) == list(known)
        for name, convention in known.items():
            (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
            assert all(f"{key}={value}" in row for key, value in convention.options.items())
            assert convention.least_frames == 1 or str(convention.least_frames) in row
            assert convention.size is None or convention.name == "videogpt" or str(convention.size) in row


def test_its_figures_are_ours() -> None:
    tracker = LucasKanade()
    assert f"windows of {tracker.window} px, {tracker.levels} levels" in ONE_LINE
    assert f"within {tracker.most_return_error:g} px" in ONE_LINE
    assert f"correlate by {tracker.least_correlation:g}" in ONE_LINE
    assert f"fewer than {BoxFollower().least_share:.0%} are left".replace("%", " %") in ONE_LINE
    assert f"{SUBSETS} subsets of up to {SUBSET_SIZE} frames" in ONE_LINE
    assert f"keys of layer {LAYER}, counted from 0" in ONE_LINE
    assert f"multiples of {PATCH['packaged']} px, or of {PATCH['file']} for your file" in ONE_LINE
    assert f"shorter side of {SIDE}, at most {LONGEST}" in ONE_LINE
    assert f"at least {LEAST_AREA:.0%} of the frame".replace("%", " %") in ONE_LINE
    assert f"grid of {GRID} x {GRID} points" in ONE_LINE
    assert WORST == 3 and "frames of the worst three of each" in ONE_LINE
    assert all(f"`{suffix}`" in TEXT for suffix in SUFFIXES)
