"""What is said of the leaderboard: ranks, their correlation, and the committed table."""

import re
from pathlib import Path

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import leaderboard, objmc_order

ROOT = Path(__file__).parents[1]
whole = st.integers(-3, 3).map(float)


@given(pairs=st.lists(st.tuples(whole, whole), min_size=2, max_size=12))
def test_the_rank_correlation_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    if min(len(set(a)), len(set(b))) > 1:  # else it is not defined
        assert objmc_order.correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0], abs=1e-12)


def test_the_docs_show_the_committed_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of each method's row, in order, up to the docs' rounding."""
    leaderboard.main(leaderboard.Args())
    printed = [line for line in capsys.readouterr().out.splitlines() if "px [" in line and "exact PCA" not in line]
    section = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").partition("## Other methods")[2]
    shown = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|") and "px [" in line]
    assert len(printed) == len(shown) == 6
    for ours, theirs in zip(printed, shown, strict=True):
        numbers = [
            [float(text) for text in re.findall(r"\d+\.?\d*", line.partition("|")[2].partition("|")[2])]
            for line in (ours, theirs)
        ]
        assert numbers[1] == pytest.approx(numbers[0], rel=0.01, abs=0.051), (ours, theirs)
