"""Measuring plain text-to-video and inversion, on the world's own drawings and on networks that are known."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.micro.benchmark import quality
from anyi2v.micro.benchmark.quality import (
    best_shape,
    measure_backbone,
    measure_sample,
    reconstruction_error,
    sample_case,
    summary,
)
from anyi2v.micro.world.modalities import render
from anyi2v.micro.world.world import SHAPES, Sprite, distance, object_masks

from .networks import tiny_backbone


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
@example(6144)  # a ring that leaves is cut into two arcs
def test_true_clips_are_found_right_and_smooth(seed: int) -> None:
    scene = sample_case(seed)
    sample = measure_sample(render(scene, "photo"), scene)
    assert sample.object_found == 1
    # dark stripes on a dark background may come nearer to black
    assert sample.background_found > 0.5
    assert math.isnan(sample.shape_right) or sample.shape_right > 0.7
    assert not sample.largest_jump > 6


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.floats(8.5, 13),
    st.floats(-0.4, 0.4),
    st.tuples(st.floats(20, 44), st.floats(20, 44)),
)
def test_shapes_are_recognised_at_any_place_size_and_angle(
    shape: str, radius: float, angle: float, centre: tuple[float, float]
) -> None:
    mask = distance(Sprite(shape, "red", (centre,), (radius,), angle), 64)[0] < 0
    assert best_shape(mask) == shape


def test_other_words_are_found_wrong() -> None:
    scene = sample_case(3)
    video = render(scene, "photo")
    empty = video[:, :, :1, :1].expand_as(video)
    sample = measure_sample(empty, scene)
    assert sample.object_found == 0
    assert math.isnan(sample.largest_jump)
    other = sample_case(next(s for s in range(99) if sample_case(s).background != scene.background))
    assert measure_sample(video, other).background_found < 0.5


def test_an_object_that_left_through_an_edge_is_not_missed_but_one_that_vanishes_is() -> None:
    scene = next(s for s in map(sample_case, range(300)) if not object_masks(s)[0][-1].any())
    video = render(scene, "photo")
    assert measure_sample(video, scene).object_found == 1
    inside = next(s for s in map(sample_case, range(300)) if object_masks(s)[0][:, 4:-4, 4:-4].flatten(1).any(1).all())
    video = render(inside, "photo")
    video[4:] = 0
    assert measure_sample(video, inside).object_found <= 0.5


def test_jumps_are_measured_in_pixels() -> None:
    scene = sample_case(next(s for s in range(300) if len(set(sample_case(s).sprites[0].centres)) == 1))
    video = render(scene, "photo")
    still = measure_sample(video, scene).largest_jump
    assert still < 0.2
    x = scene.sprites[0].centres[0][0]
    jumped = torch.cat([video[:4], video[4:].roll(9 if x < 32 else -9, -1)])
    assert measure_sample(jumped, scene).largest_jump == pytest.approx(9, abs=0.5)


def test_summary_counts_shares() -> None:
    clips = [
        {"object_found": 1.0, "background_found": 0.5, "shape_right": math.nan, "largest_jump": 5.0},
        {"object_found": 0.5, "background_found": 0.5, "shape_right": 0.5, "largest_jump": 7.0},
    ]
    found = summary(clips, {"to 201": [0.1, 0.3]})
    assert list(found.values()) == pytest.approx([0.75, 0.5, 0.5, 0.5, 0.2])


def test_inversion_of_a_network_that_ignores_its_input_is_undone_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    latent = torch.randn(2, 1, backbone.config.vae.latent_channels, 8, 8)
    word = "" if backbone.config.text.words is None else backbone.config.text.words[3]
    plain = reconstruction_error(backbone, latent, [word] * 2, until=41, stride=10)
    noise = torch.randn_like(latent)
    monkeypatch.setattr(type(backbone.unet), "forward", lambda *args, **options: noise)
    exact = reconstruction_error(backbone, latent, [word] * 2, until=41, stride=10)
    # float32 rounding over ten steps
    assert (exact < 1e-5).all()
    assert (plain > 1e-5).all()


def note(_: str, __: torch.dtype, seed: int) -> dict[str, float]:
    """In place of a clip: leaves a file named after the seed, and fails where a file forbids that seed."""
    folder = Path(os.environ["NOTES"])
    if (folder / f"forbidden-{seed}").exists():
        raise RuntimeError("interrupted")
    (folder / str(seed)).touch(exist_ok=False)
    return {"object_found": seed, "background_found": 1.0, "shape_right": math.nan, "largest_jump": 2.0}


def note_errors(_: str, __: torch.dtype, first: int, count: int, ___: int, ____: int) -> list[float]:
    """In place of a batch of inversions."""
    return [float(number) for number in range(first, first + count)]


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_sample", note)
    monkeypatch.setattr(quality, "_reconstruct", note_errors)
    monkeypatch.setenv("NOTES", str(tmp_path))
    kept = tmp_path / "b.partial.json"

    def measured() -> dict[str, Any]:
        return measure_backbone("micro", torch.float32, 4, 7, workers=None, progress=False, kept=kept)

    (tmp_path / "forbidden-10").touch()
    with pytest.raises(RuntimeError, match="interrupted"):
        measured()
    (tmp_path / "forbidden-10").unlink()
    figures = measured()  # a clip made twice would find its file
    assert [clip["object_found"] for clip in figures["clips"]] == [7, 8, 9, 10]
    assert figures["reconstruction"] == {way: [7, 8, 9, 10] for way in ("to 201, stride 1", "to 981, stride 20")}


def test_a_file_that_is_no_interrupted_measurement_is_not_touched(tmp_path: Path) -> None:
    kept = tmp_path / "b.partial.json"
    kept.write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"b\.partial\.json exists and is not from an interrupted measurement"):
        measure_backbone("micro", torch.float32, 1, 7, workers=None, progress=False, kept=kept)
    assert kept.read_text() == '{"mine": 1}'
