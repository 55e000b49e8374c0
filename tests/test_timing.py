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
    with Stages().bar("quiet", 3) as bar:
        bar.update(3)
    with Stages(progress=True).bar("loud", 3) as bar:
        bar.update(3)
    err = capsys.readouterr().err
    assert "loud" in err
    assert "quiet" not in err
