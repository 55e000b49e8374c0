"""What the docs say of the leaderboard."""

import re
from pathlib import Path

import pytest

from benchmarks import leaderboard

ROOT = Path(__file__).parents[1]


def test_the_docs_show_the_committed_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of each method's row, in order, up to the docs' rounding."""
    leaderboard.main(leaderboard.Args())
    printed = [line for line in capsys.readouterr().out.splitlines() if "px [" in line and "exact PCA" not in line]
    section = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").partition("## Other methods")[2]
    shown = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|") and "px [" in line]
    assert len(printed) == len(shown) == 6
    for ours, theirs in zip(printed, shown, strict=True):
        exact, rounded = (re.findall(r"\d+\.?\d*", line.split("|", 2)[2]) for line in (ours, theirs))
        for a, b in zip(exact, rounded, strict=True):
            half_a_digit = 0.5 * 10.0 ** -len(b.partition(".")[2])
            assert float(b) == pytest.approx(float(a), rel=0, abs=half_a_digit + 1e-9), (ours, theirs)
