"""Stage timing."""

import logging
import re
import time

import pytest

from anyi2v.timing import Bars, Lines, Stages, counted


def test_seconds_of_a_stage_add_up_even_if_it_fails() -> None:
    stages = Stages()
    for _ in range(2):
        try:
            with stages.stage("a"):
                time.sleep(0.01)
                raise KeyError
        except KeyError:
            pass
    with stages.stage("b"):
        pass
    assert stages.seconds["a"] >= 0.02
    assert set(stages.seconds) == {"a", "b"}


def test_bars_are_silent_unless_asked_for(capsys) -> None:
    Stages().counter("quiet", 3)(3)
    Stages(progress=True).counter("loud", 3)(3)
    err = capsys.readouterr().err
    assert "loud" in err
    assert "quiet" not in err


def test_progress_is_called_at_the_start_and_after_every_unit() -> None:
    seen: list[tuple[str, int, int]] = []
    stages = Stages(progress=lambda *told: seen.append(told))
    first, second = stages.counter("a", 3), stages.counter("b", 1)
    first(1)
    second(1)
    first(2)
    assert seen == [("a", 0, 3), ("b", 0, 1), ("a", 1, 3), ("b", 1, 1), ("a", 3, 3)]


def test_without_a_terminal_each_stage_is_logged_with_the_seconds_of_its_own_units(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines()
    with caplog.at_level(logging.INFO, "anyi2v"):
        lines("none", 0, 0)
        lines("outer", 0, 2)
        lines("inner", 0, 1)
        time.sleep(0.3)
        lines("inner", 1, 1)
        lines("outer", 1, 2)
        lines("outer", 2, 2)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ["outer: started (0 of 2)", "inner: started (0 of 1)"]
    assert re.fullmatch(r"inner: finished in (0\.[3-9]|[1-9]\.\d) s \(1 of 1\)", said[2])
    assert re.fullmatch(r"outer: finished in 0\.[0-2] s \(2 of 2\)", said[3])
    assert len(said) == 4 and {record.name for record in caplog.records} == {"anyi2v.timing"}


def test_a_long_stage_is_logged_at_most_every_30_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    lines = Lines()
    with caplog.at_level(logging.INFO, "anyi2v"):
        lines("steps", 0, 9)
        for done in range(1, 10):
            clock += 20
            lines("steps", done, 9)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "steps: started (0 of 9)",
        "steps: 2 of 9 after 40 s",
        "steps: 4 of 9 after 80 s",
        "steps: 6 of 9 after 120 s",
        "steps: 8 of 9 after 160 s",
        "steps: finished in 180.0 s (9 of 9)",
    ]


def test_a_stage_of_one_unit_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars()
    bars("decode", 0, 1)
    bars("decode", 1, 1)
    assert capsys.readouterr().err == "" and not bars.bars


@pytest.mark.parametrize("bar", [False, True])
def test_items_are_counted_by_a_bar_or_by_messages(
    bar: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "anyi2v"):
        assert list(counted(iter("abc"), 3, "letters", bar=bar)) == ["a", "b", "c"]
    assert ("3/3" in capsys.readouterr().err) == bar
    said = [record.getMessage().partition(" in ")[0] for record in caplog.records]
    assert said == ([] if bar else ["letters: started (0 of 3)", "letters: finished"])
