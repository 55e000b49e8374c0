"""Stage timing."""

import time

from anyi2v.timing import Stages


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
