"""Whether objects follow their tracks: measured, judged and shown wherever a run is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.reports.following import Following, advice, mean_error, measure_following, problems, recorded
from anyi2v.reports.page import write_page
from anyi2v.reports.record import Origin, RunInputs, differences
from anyi2v.reports.writing import write_run
from anyi2v.tracks import Track, Tracks

from .test_report import result

FRAMES = 6


def square(path: list[tuple[float, float]], side: int = 10, size: int = 64) -> Tensor:
    """A red square with its corner at each of some pixels; outside of the frame there is none."""
    video = torch.full((len(path), 3, size, size), 0.3)
    for frame, (x, y) in zip(video, path, strict=True):
        frame[0, int(y) : int(y) + side, int(x) : int(x) + side] = 0.9
    return video


def boxes(path: list[tuple[float, float]], side: float = 10) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((x, y, x + side, y + side) for x, y in path)


def line(step: float, start: float = 10) -> list[tuple[float, float]]:
    return [(start + k * step, 20.0) for k in range(FRAMES)]


def one(video: Tensor, *path: tuple[float, float, float, float]) -> Following:
    (found,) = measure_following(video, Tracks(64, 64, (Track("it", path),)))
    return found


@settings(max_examples=10)
@given(real=st.integers(-2, 6), asked=st.floats(-1, 7))
def test_the_error_is_the_mean_distance_after_frame_1(real: int, asked: float) -> None:
    found = one(square(line(real, 20)), *boxes(line(asked, 20)))
    assert found.frames == FRAMES - 1 and found.lost is None and found.error is not None
    assert found.error == pytest.approx(abs(asked - real) * 3, abs=0.15)  # of 1 to 5 steps
    assert found.share == pytest.approx(found.error / 64, abs=1e-4)
    assert found.follows == (found.error <= found.limit)


def test_the_limit_is_a_share_of_the_width_and_less_for_short_tracks() -> None:
    still = square(line(0))
    limits = {step: one(still, *boxes(line(step))).limit for step in (0, 0.5, 0.9, 4)}
    assert limits == pytest.approx({0: 0.02 * 64, 0.5: 0.02 * 64, 0.9: 0.9 * 3 / 2, 4: 0.05 * 64})
    # an object that stays where it is does not follow any track but a static one
    assert [one(still, *boxes(line(step))).follows for step in (0, 0.2, 0.9, 2, 8)] == [True, True, False, False, False]
    assert one(square(line(4)), *boxes(line(0))).verdict == "does not follow its track"
    # a single box is a static track
    assert one(still, *boxes(line(0)[:1])).verdict == "follows its track"


def test_an_object_that_vanishes_has_a_frame_and_no_number() -> None:
    video = square(line(2))
    video[3:] = 0.3
    found = one(video, *boxes(line(2)))
    assert (found.error, found.share, found.lost, found.follows) == (None, None, 4, False)
    assert (found.distance, found.verdict) == ("", "lost in frame 4")
    nothing = one(torch.full_like(video, 0.3), *boxes(line(2)))
    assert (nothing.lost, nothing.error) == (1, None) and "frame 1 shows nothing" in nothing.verdict


def test_frames_in_which_the_box_leaves_do_not_count() -> None:
    path = [(40.0 + 6 * k, 20.0) for k in range(FRAMES)]  # half of it is outside from x = 59 on
    found = one(square(path), *boxes(path))
    assert (found.frames, found.lost, found.follows) == (3, None, True)
    assert found.error is not None and found.error < 0.2
    # an object that is gone though it should not is lost
    assert one(square(path), *boxes(line(2, 40))).lost == 5
    gone = one(square(path[:2]), *boxes([(40, 20), (300, 20)]))
    assert (gone.frames, gone.error, gone.lost) == (0, None, None) and "not measured" in gone.verdict
    assert one(square(path[:1]), *boxes(path[:1])).verdict == gone.verdict  # a single frame
    assert problems([gone]) == []


def test_resized_boxes_masks_and_other_frames_of_reference() -> None:
    video = torch.cat([square([(20.0 - k, 20.0 - k)], side=10 + 2 * k) for k in range(FRAMES)])
    grown = tuple((20.0 - k, 20.0 - k, 30.0 + k, 30.0 + k) for k in (0, FRAMES - 1))  # resampled to all frames
    mask = np.zeros((32, 32), dtype=bool)
    mask[10:15, 10:15] = True
    tracks = Tracks(64, 64, (Track("it", grown, mask=mask),))
    for known in (tracks, tracks.scaled(640, 320)):
        (found,) = measure_following(video, known)
        assert found.follows and found.error is not None and found.error < 0.3
    assert measure_following(video, Tracks(64, 64)) == []


@pytest.mark.parametrize("kind", ["plain", "resize", "two objects"])
def test_rendered_scenes_follow_and_stopped_ones_do_not(kind: str) -> None:
    """Cases of the benchmark, with their ground truth as the video."""
    for seed in (1000, 1001, 1002):
        case = make_case(seed, "photo", kind)  # pyright: ignore[reportArgumentType]
        true = measure_following(case.truth, case.tracks)
        assert [found.name for found in true] == [track.name for track in case.tracks.objects]
        assert all(found.follows and found.error is not None and found.error < 1 for found in true), true
        stopped = measure_following(case.truth[:1].repeat(8, 1, 1, 1), case.tracks)
        assert not any(found.follows for found in stopped)


def following(**changes: object) -> Following:
    return dataclasses.replace(Following("a", 1.0, 0.02, 3.0, 7, None), **changes)  # pyright: ignore[reportArgumentType]


def test_summaries_name_what_does_not_follow_and_say_what_to_try() -> None:
    good, bad, lost = following(), following(name="b", error=9.0), following(name="c", error=None, share=None, lost=3)
    assert mean_error([good, bad, lost]) == 5 and mean_error([lost]) is None
    assert problems([good, bad, lost]) == ["b: does not follow its track", "c: lost in frame 3"]
    assert "--method.iterations" in advice([bad]) and "anyi2v tracks check" in advice([bad])
    assert "--method" not in advice([lost], "freetraj") and "settings of freetraj" in advice([lost], "freetraj")
    assert advice([good]) == "" == advice([])
    assert good.distance == "1.0 px (2.0% of the width)"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    save_file({"weights": torch.zeros(3)}, path)
    return str(path)


def test_a_run_records_and_shows_its_measurement(tmp_path: Path, weights: str) -> None:
    video = square(line(4))
    video[:, 2, 45:55, 40:50] = 1.0  # a second object, which does not move
    tracks = Tracks(64, 64, (Track("follows & <b>", boxes(line(4))), Track("stays", boxes([(40, 45), (10, 45)]))))
    run = dataclasses.replace(result(), video=video, tracks=tracks, masks=[])
    write_run(tmp_path / "out", run, video[0], Origin(weights))
    data = json.loads((tmp_path / "out" / "run.json").read_text())
    first, second = recorded(data)
    assert [first, second] == measure_following(video, tracks)
    assert first.follows and not second.follows and second.error == pytest.approx(18, abs=0.3)
    text = (tmp_path / "out" / "report.html").read_text()
    for words in ("follows &amp; &lt;b&gt;", second.distance, "<b>does not follow its track</b>", "more --method.iter"):
        assert words in text
    # it is a result: other values are no difference, and older records have none
    same = RunInputs(str(weights), video[0], tracks, "a", "b", 3, FRAMES, 8, run.config).to_dict()
    assert differences({**data, "trajectories": []}, same) == []
    del data["trajectories"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(data))
    assert recorded(data) == [] and "Did the objects follow?" not in write_page(tmp_path / "out").read_text()
    for bad in ([{"name": "a"}], ["a"], [{**dataclasses.asdict(first), "error": "far"}]):
        (tmp_path / "out" / "run.json").write_text(json.dumps({**data, "trajectories": bad}))
        with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
            write_page(tmp_path / "out")
