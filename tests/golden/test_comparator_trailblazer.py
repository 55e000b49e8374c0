"""Recordings of hohonu-vicml/TrailBlazer at de2696e: boxes, both edits of attention, several subjects."""

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from anyi2v.comparators.settings import TrailBlazerSettings
from anyi2v.comparators.trailblazer import blend, box_cells, edit_frames, edit_words, subject_cells
from anyi2v.tracks import Box

from .comparators import Recorded, parametrize

PUBLISHED = {"margin": 0.01, "thin_boxes": "nothing", "half": True}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, "trailblazer", {"boxes": ("boxes", "keys"), "edits": ("edits", "strengthen")})


def boxes_of(rows: list[list[float]]) -> list[Box]:
    """Recorded [left, top, right, bottom]."""
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in rows]


def test_cells_equal_the_recorded_ones(boxes: Recorded) -> None:
    settings = TrailBlazerSettings(**PUBLISHED)
    for name, recorded in boxes.meta["cells [top bottom left right] per frame"].items():
        height, width = map(int, name.split("x"))
        cells = box_cells(boxes_of(boxes.meta["boxes per frame"]), (height, width), settings)
        assert [[c.top, c.bottom, c.left, c.right] for c in cells] == recorded, name


@pytest.mark.parametrize("half", [True, False])
def test_edits_equal_the_recorded_ones(edits: Recorded, half: bool) -> None:
    """1e-6 with the originals' rounding to half precision, 5e-4 without, as suggested with the recordings."""
    meta, x = edits
    settings = TrailBlazerSettings(
        **{**PUBLISHED, "half": half}, strengthen=meta["strengthen"], weaken=meta["weaken"], absolute=False
    )
    grid = (meta["h"], meta["w"])
    cells = box_cells(boxes_of(meta["boxes [left top right bottom]"]), grid, settings)
    assert [[c.top, c.bottom, c.left, c.right] for c in cells] == meta["cells [top bottom left right] per frame"]
    if "before_abs" in x:
        probs = rearrange(x["probs_in"], "n h w i j -> 1 h w n i j")
        ours = rearrange(edit_frames(probs, cells, grid, settings), "1 h w n i j -> n h w i j")
        assert bool((ours < 0).any()) == meta["negative values"]
        theirs = x["before_abs"]
    else:
        probs = rearrange(x["probs_in"], "(f n) q l -> 1 f n q l", n=meta["heads"])
        ours, theirs = edit_words(probs, cells, grid, meta["edited_tokens"], settings).flatten(0, 2), x["probs_out"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if half else 5e-4)


def test_several_subjects_equal_the_recorded_ones(root: Path) -> None:
    paths = sorted((root / "comparators" / "trailblazer").glob("several_subjects*.json"))
    if not paths:
        pytest.skip("the golden folder has no comparators/trailblazer/several_subjects*.json")
    settings = TrailBlazerSettings(margin=0.01, thin_boxes="nothing", subject_cells="published")
    for path in paths:
        meta, x = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
        grid = (meta["h"], meta["w"])
        z, count = x["start"].transpose(1, 2), meta["integration_steps"]
        for step in range(meta["steps"]):
            z = 0.9 * z + 0.3 * x["added"][step][None]
            torch.testing.assert_close(z[0].transpose(0, 1), x[f"step{step}.before"], rtol=0, atol=1e-6)
            if step < count:
                rows = [boxes_of(subject["boxes [left top right bottom]"]) for subject in meta["subjects"]]
                own = [x[f"subject{n}"][step].transpose(0, 1)[None] for n in range(len(rows))]
                z = blend(z, own, [subject_cells(boxes, grid, settings) for boxes in rows], step / count)
            torch.testing.assert_close(z[0].transpose(0, 1), x[f"step{step}.after"], rtol=0, atol=1e-6)
