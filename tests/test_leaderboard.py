"""What the docs say of the leaderboards."""

import re
from pathlib import Path

import pytest

from benchmarks import leaderboard

ROOT = Path(__file__).parents[1]


def cells(table: list[str]) -> list[list[str]]:
    """The numbers of each row that has intervals, in order, without the row's name."""
    rows = [line for line in table if line.startswith("|") and "px [" in line and "exact PCA" not in line]
    return [re.findall(r"\d+\.?\d*", line.split("|", 2)[2]) for line in rows]


def test_the_docs_show_the_committed_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """Both tables, up to the docs' rounding."""
    leaderboard.main(leaderboard.Args())
    printed = cells(capsys.readouterr().out.splitlines())
    section = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").partition("## Other methods")[2]
    shown = cells(section.partition("\n## ")[0].splitlines())
    assert len(printed) == len(shown) == 12
    for exact, rounded in zip(printed, shown, strict=True):
        for a, b in zip(exact, rounded, strict=True):
            half_a_digit = 0.5 * 10.0 ** -len(b.partition(".")[2])
            assert float(b) == pytest.approx(float(a), rel=0, abs=half_a_digit + 1e-9), (exact, rounded)
