"""Properties of the comparators' parts, and their jobs on tiny networks of every family."""

import dataclasses
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.backbone.config import FactorisedConfig, RotaryConfig, TextConfig
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.text import tokenize
from anyi2v.comparators import (
    SGI2V,
    FreeTraj,
    TimeToMove,
    TrailBlazer,
    boxes,
    freetraj,
    sg_i2v,
    time_to_move,
    trailblazer,
)
from anyi2v.comparators.boxes import Cells, gaussian, inside, place
from anyi2v.comparators.frequencies import low_pass, mix
from anyi2v.comparators.registry import Comparator
from anyi2v.comparators.settings import SETTINGS, Settings, SGI2VSettings, TrailBlazerSettings, share
from anyi2v.comparators.subjects import subject_tokens, subject_words, trailing_tokens
from anyi2v.errors import AnyI2VError, InputError
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.job import Result
from anyi2v.method.footprint import Footprint
from anyi2v.pipeline import animate
from anyi2v.samplers import DPMSolver2M
from anyi2v.tracks import Track, Tracks

from .networks import SHORT, TINY, WORDS, tiny_backbone, tiny_unet

BACKBONE = tiny_backbone()
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
BALL = Track("red ball", ((1.0, 1.0, 8.0, 8.0), (7.0, 6.0, 14.0, 13.0)))
TRACKS = Tracks(16, 16, (BALL,))
PROMPT = "a red ball"
LAYERS = ("up_blocks.2.attentions.0",)
METHODS: dict[str, Comparator] = {
    "freetraj": FreeTraj(edit_steps=2),
    "trailblazer": TrailBlazer(spatial_steps=2, temporal_steps=2),
    "sg-i2v": SGI2V(layers=LAYERS, first_step=1, last_step=2, iterations=2, lr=0.1),
    "time-to-move": TimeToMove(weak_step=1, strong_step=2),
}
boxes_of = st.lists(
    st.tuples(st.floats(-0.5, 1.2), st.floats(-0.5, 1.2), st.floats(0.02, 1.5), st.floats(0.02, 1.5)).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    ),
    min_size=1,
    max_size=3,
)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def run(method: Comparator | None, backbone: Backbone = BACKBONE, **options: Any) -> Result:
    prompt, tracks = options.pop("prompt", PROMPT), options.pop("tracks", TRACKS)
    return animate(backbone, IMAGE, prompt, tracks, config=SHORT, method=method, **options)


@pytest.fixture(scope="module")
def plain() -> Result:
    """The same job under AnyI2V."""
    return run(None)


# ------------------------------------------------------------------------------------------------ frequencies and noise


@settings(max_examples=30)
@given(st.lists(st.integers(2, 8), min_size=2, max_size=3), st.floats(0.05, 1.5), st.integers(0, 99))
def test_mixing_takes_each_frequency_from_its_source(sizes: list[int], cutoff: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(2, *sizes, generator=generator) for _ in range(2))
    lpf = low_pass(sizes, [cutoff] * len(sizes))
    assert lpf.shape == tuple(sizes) and lpf.min() >= 0 and lpf.max() <= 1
    # of one tensor alone the parts add up to it again; float32 transforms of a few hundred numbers
    torch.testing.assert_close(mix(x, x, lpf), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(mix(x, y, torch.ones(sizes)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(mix(x, y, torch.zeros(sizes)), y, rtol=0, atol=1e-5)
    constant = torch.ones(2, *sizes)
    if all(size % 2 == 0 for size in sizes):  # frequency 0 is in the middle, where everything passes
        torch.testing.assert_close(mix(constant, 0 * y, lpf), constant, rtol=0, atol=1e-5)


def test_mixed_noise_has_the_variance_of_its_filter_and_moves_with_the_box() -> None:
    """Var = mean(lpf^2 + (1 - lpf)^2), near 1; 3 standard errors of 10 draws of 4 x 8 x 16 x 16 numbers."""
    method, lpf = FreeTraj(), low_pass((8, 16, 16), (0.1, 0.25, 0.25))
    expected = (lpf.square() + (1 - lpf).square()).mean().item()
    assert 0.97 < expected < 1
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randn(10, 4, 8, 16, 16, generator=generator) for _ in range(2))
    x = mix(low, high, lpf)
    assert x.var().item() == pytest.approx(expected, abs=3 * math.sqrt(2 / x.numel()))
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    path = [(0.0 + 0.09 * f, 0.0, 0.375 + 0.09 * f, 0.5) for f in range(8)]
    cells = freetraj.box_cells(path, (16, 16))
    patch = torch.randn(4, 8, 6, generator=generator)
    pasted = place([patch] * 8, cells, torch.randn(4, 8, 16, 16, generator=generator), wrap=False)
    for f, box in enumerate(cells):
        assert torch.equal(pasted[:, f, box.top : box.bottom, box.left : box.right], patch)
    assert method.d_t == 0.1 and method.d_s == 0.25  # the cut-offs above


# ------------------------------------------------------------------------------------------------------------ boxes


@settings(max_examples=60)
@given(boxes_of, grids, st.booleans())
def test_boxes_are_cut_at_the_frame_or_wrapped(path: list[Any], grid: tuple[int, int], wrap: bool) -> None:
    cells = freetraj.box_cells(path, grid)
    assert all(min(box.size) >= 1 and box.size == cells[0].size for box in cells)
    there = inside(cells, grid, wrap=wrap)
    for box, frame in zip(cells, there, strict=True):
        for row in range(grid[0]):
            for column in range(grid[1]):
                plain = box.top <= row < box.bottom and box.left <= column < box.right
                wrapped = wrap and any(
                    box.top <= row - a * grid[0] < box.bottom and box.left <= column - b * grid[1] < box.right
                    for a in (0, 1)
                    for b in (0, 1)
                )
                assert frame[row, column] == (plain or wrapped)
    patches = [torch.ones(box.size) for box in cells]
    placed = place(patches, cells, torch.zeros(len(cells), *grid), wrap=wrap)
    assert torch.equal(placed > 0, there)


@given(st.integers(1, 12), st.integers(1, 12))
def test_the_gaussian_peaks_in_the_middle(rows: int, columns: int) -> None:
    g = gaussian((rows, columns))
    assert g.max() == 1 and g.min() > 0
    peak = divmod(int(g.argmax()), columns)
    assert abs(peak[0] - rows / 2) <= 1 and abs(peak[1] - columns / 2) <= 1
    assert gaussian((0, 3)).shape == (0, 3)


@given(boxes_of, grids)
def test_thin_boxes_have_a_cell_unless_the_quirk_is_on(path: list[Any], grid: tuple[int, int]) -> None:
    plain = trailblazer.box_cells(path, grid, TrailBlazerSettings())
    assert all(min(box.size) >= 1 for box in plain)
    published = TrailBlazerSettings(thin_boxes="nothing", margin=0.01)
    for box, quirky in zip(path, trailblazer.box_cells(path, grid, published), strict=True):
        assert min(quirky.size) >= 0
        if (box[3] - box[1]) * grid[0] < 0.01:
            assert quirky.size[0] <= 1


def test_the_whole_frame_is_the_whole_grid_only_without_the_margin() -> None:
    whole = [(0.0, 0.0, 1.0, 1.0)]
    assert trailblazer.box_cells(whole, (5, 9), TrailBlazerSettings()) == [(0, 0, 5, 9)]
    assert trailblazer.box_cells(whole, (5, 9), TrailBlazerSettings(margin=0.01)) == [(0, 0, 4, 8)]


def test_boxes_in_the_attention_keep_the_first_size_or_their_own() -> None:
    path = [(0.0, 0.0, 0.25, 0.25), (0.0, 0.0, 1.0, 0.5)]
    assert [c.size for c in freetraj.box_cells(path, (8, 8))] == [(2, 2), (2, 2)]
    assert [c.size for c in freetraj.box_cells(path, (8, 8), size="own")] == [(2, 2), (4, 8)]


# ------------------------------------------------------------------------------------------------- edits of attention


def maps(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30)
@given(boxes_of, grids, st.integers(0, 99))
def test_freetraj_isolates_inside_from_outside(path: list[Any], grid: tuple[int, int], seed: int) -> None:
    frames, cells = len(path), grid[0] * grid[1]
    sides = inside(freetraj.box_cells(path, grid), grid)[None]
    logits = maps((1, frames, 2, cells, cells), seed)
    ours = freetraj.isolate(logits, sides.flatten(2), 0.01)
    for f in range(frames):
        same = sides[0, f].flatten()[:, None] == sides[0, f].flatten()
        assert torch.equal(ours[:, f], torch.where(same, logits[:, f], 0.01 * logits[:, f]))
    over_frames = maps((1, *grid, 2, frames, frames), seed)
    ours = freetraj.isolate_frames(over_frames, sides, 0.01)
    for i in range(frames):
        for j in range(frames):
            before = over_frames[0, ..., i, j]
            same = (sides[0, i] == sides[0, j])[..., None]
            assert torch.equal(ours[0, ..., i, j], torch.where(same, before, 0.01 * before))
    twice = sides.flatten(2).repeat(2, 1, 1)
    assert torch.equal(freetraj.isolate(logits, twice, 0.01), freetraj.isolate(logits, twice[:1], 0.01))


@settings(max_examples=30)
@given(boxes_of, grids, st.integers(0, 99))
def test_freetraj_moves_the_words_into_the_box(path: list[Any], grid: tuple[int, int], seed: int) -> None:
    """Inside, a row is even and then gains c G per token; outside, the subject has nothing and rows sum to 1."""
    tokens, frames = [[1, 2]], len(path)
    cells = freetraj.box_cells(path, grid)
    sides = inside(cells, grid)[None].flatten(2)
    logits = maps((1, frames, 2, grid[0] * grid[1], 7), seed)
    probs = freetraj.mask_words(logits, sides, tokens).softmax(-1)
    bumps = freetraj.bump(path, cells, grid, 2, FreeTraj())[None].flatten(2)
    ours = freetraj.add_subjects(probs, bumps, tokens)
    within = sides[0][None, :, None].expand(1, frames, 2, -1)
    if within.any():
        torch.testing.assert_close(ours[within][:, 0], torch.full_like(ours[within][:, 0], 1 / 7), rtol=1e-6, atol=0)
        assert (ours[within][:, 1] > 1 / 7).all() and torch.equal(ours[within][:, 1], ours[within][:, 2])
        gained = 2 * bumps[0][None, :, None].expand(1, frames, 2, -1)[within]
        torch.testing.assert_close(ours[within].sum(-1), 1 + gained.double(), rtol=1e-5, atol=0)
    if not within.all():
        assert (ours[~within][:, 1:3] == 0).all()
        torch.testing.assert_close(ours[~within].sum(-1), torch.ones_like(ours[~within][:, 0]), rtol=1e-9, atol=0)


@settings(max_examples=30)
@given(boxes_of, grids, st.integers(0, 99))
def test_trailblazer_moves_the_words_into_the_box(path: list[Any], grid: tuple[int, int], seed: int) -> None:
    method, tokens = TrailBlazerSettings(), [2, 4]
    cells = trailblazer.box_cells(path, grid, method)
    there = inside(cells, grid).flatten(1)[None, :, None].expand(1, len(path), 2, -1)
    probs = maps((1, len(path), 2, grid[0] * grid[1], 6), seed).softmax(-1)
    ours = trailblazer.edit_words(probs, cells, grid, tokens, method)
    others = [n for n in range(6) if n not in tokens]
    assert torch.equal(ours[..., others], probs[..., others])
    if there.any():
        gained = (ours - probs)[there][:, tokens]
        assert (gained > 0).all() and gained.max() <= method.strengthen * probs.max() * (1 + 1e-6)
    if not there.all():
        torch.testing.assert_close(ours[~there][:, tokens], 0.05 * probs[~there][:, tokens], rtol=1e-6, atol=0)


def test_trailblazer_attracts_near_frames_and_repels_far_ones() -> None:
    path, method = [(0.0, 0.0, 0.6, 0.6)] * 6, TrailBlazerSettings()
    cells = trailblazer.box_cells(path, (5, 5), method)
    probs = torch.full((1, 5, 5, 2, 6, 6), 1 / 6)
    change = trailblazer.edit_frames(probs, cells, (5, 5), method) - probs
    middle = change[0, 1, 1, 0]  # of the box, where g is its maximum
    torch.testing.assert_close(middle[0, 0], torch.tensor(0.125 / 6))
    assert (middle[0].diff() < 0).all()  # falls with the distance of the frames
    corner = change[0, 0, 0, 0]
    assert corner[0, 0] > 0 > corner[0, 5]
    torch.testing.assert_close(change[0, 4, 4], torch.full((2, 6, 6), -0.95 / 6))


def test_later_subjects_cover_earlier_ones_and_the_first_step_takes_them_whole() -> None:
    z, *own = (torch.full((1, 2, 3, 4, 4), value) for value in (0.0, 1.0, 2.0))
    cells = [[Cells(0, 0, 2, 2)] * 2, [Cells(1, 1, 3, 3)] * 2]
    out = trailblazer.blend(z, own, cells, 0.0)
    assert out[0, 0, 0].tolist() == [[1, 1, 0, 0], [1, 2, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]]
    assert trailblazer.blend(z, own, cells, 0.5)[0, 1, 1, 1].tolist() == [0.5, 1, 1, 0]


# ----------------------------------------------------------------------------------------------------------- tokens


def test_subjects_are_found_in_the_prompt() -> None:
    config = TextConfig(width=8, layers=1, heads=2, length=8, vocab_size=len(WORDS), words=WORDS)
    assert subject_words("m", (), TRACKS, PROMPT) == ["red ball"]
    assert subject_tokens(config, PROMPT, "red ball", {}) == [2, 3]
    assert subject_tokens(config, "a RED  ball", "Red Ball", {}) == [2, 3]
    assert trailing_tokens(config, PROMPT, 3, {}, count_words=False) == [4, 5, 6]
    assert trailing_tokens(config, PROMPT, 30, {}, count_words=False) == [4, 5, 6, 7]
    ids = tokenize(config, [PROMPT])[0]
    assert ids[4] == 2 and ids[3] == WORDS.index("ball")  # the end token follows the words
    with pytest.raises(InputError, match=r"object 'red ball': its name is not in the prompt 'a blue ball'"):
        subject_words("m", (), TRACKS, "a blue ball")
    with pytest.raises(InputError, match="the subject 'all' is not in the prompt"):
        subject_words("m", ("all",), TRACKS, PROMPT)
    with pytest.raises(InputError, match=r"2 subjects for 1 objects \(red ball\)"):
        subject_words("m", ("red", "ball"), TRACKS, PROMPT)


def test_words_of_several_tokens_and_the_quirk_of_counting_words() -> None:
    config = TextConfig()
    prompt = "A clownfish swimming; masterpiece, best quality"
    ids = tokenize(config, [prompt])[0].tolist()
    end = ids.index(max(ids))  # the end token is the last of the vocabulary
    fish = subject_tokens(config, prompt, "clownfish", {})
    assert len(fish) > 1 and fish == list(range(2, 2 + len(fish)))
    assert subject_tokens(config, prompt, "swimming", {}) == [fish[-1] + 1]
    assert trailing_tokens(config, prompt, 2, {}, count_words=False) == [end, end + 1]
    assert trailing_tokens(config, prompt, 2, {}, count_words=True) == [4, 5]


# ----------------------------------------------------------------------------------------------------------- SG-I2V


def gradient_of_loss(x: Tensor, cells: list[list[Cells]], method: SGI2VSettings) -> Tensor:
    value = sg_i2v.loss(x, cells, method)
    assert value is not None
    return torch.autograd.grad(value, x)[0]


def test_sg_i2v_compares_with_frame_1_only_and_only_inside_of_boxes() -> None:
    method, grid = SGI2VSettings(), (8, 8)
    tracks = Tracks(16, 16, (Track("a", ((2, 2, 10, 10), (4, 4, 12, 12), (6, 6, 14, 14))),))
    cells = sg_i2v.box_cells(tracks, grid)
    x = maps((3, 8, 8, 5), 0).requires_grad_()
    gradient = gradient_of_loss(x, cells, method)
    there = inside(cells[0], grid)
    assert (gradient[0] == 0).all()  # the target is detached
    assert torch.equal((gradient[1:] != 0).any(-1), there[1:])
    moved = torch.stack([x[0].roll((f, f), (0, 1)) for f in range(3)]).detach()
    zero = sg_i2v.loss(moved, cells, method)
    assert zero is not None and zero.item() == pytest.approx(0, abs=1e-12)


def test_sg_i2v_does_not_align_what_frame_1_does_not_show() -> None:
    grid = (8, 8)
    tracks = Tracks(16, 16, (Track("a", ((12, 2, 20, 10), (4, 4, 12, 12))),))
    cells = sg_i2v.box_cells(tracks, grid)
    x = maps((2, 8, 8, 3), 1).requires_grad_()
    gradient = gradient_of_loss(x, cells, SGI2VSettings())
    there = (gradient[1] != 0).any(-1)
    assert there[2:6, 2:4].all() and there.sum() == 8  # the half of the box that frame 1 shows
    gradient = gradient_of_loss(x, cells, SGI2VSettings(stretch_first_box=True))
    assert (gradient[1] != 0).any(-1).sum() == 16
    away = sg_i2v.box_cells(Tracks(16, 16, (Track("a", ((2, 2, 10, 10), (40, 2, 48, 10))),)), grid)
    assert sg_i2v.loss(x, away, SGI2VSettings()) is None


def test_the_merge_keeps_high_frequencies() -> None:
    old, new = (torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    out = sg_i2v.merged(new, old, SGI2VSettings())
    checks = torch.tensor([[(-1.0) ** (row + column) for column in range(8)] for row in range(8)])
    # frequency 0 is the new latents', the highest is the old ones'
    for tensor, wave in ((new, torch.ones(8, 8)), (old, checks)):
        torch.testing.assert_close((out * wave).mean((-2, -1)), (tensor * wave).mean((-2, -1)), rtol=0, atol=1e-3)
    assert torch.equal(sg_i2v.merged(new, old, SGI2VSettings(merge=False)), new)


# ----------------------------------------------------------------------------------------------------- Time-to-Move


def test_cut_and_drag_moves_the_box_and_fills_the_hole() -> None:
    image = torch.zeros(3, 8, 8)
    image[0, 2:4, 1:3] = 1
    tracks = Tracks(8, 8, (Track("a", ((1, 2, 3, 4), (4, 3, 6, 5), (5, 4, 9, 8))),))
    frames, moved = time_to_move.cut_and_drag(image, tracks)
    torch.testing.assert_close(frames[0], image)
    expected = torch.zeros(3, 8, 8)
    expected[0, 3:5, 4:6] = 1
    torch.testing.assert_close(frames[1], expected)
    assert torch.equal(moved[1], expected[0] > 0)
    assert moved[2, 4:8, 5:8].all() and moved[2].sum() == 12  # grown, and cut at the frame
    mask = np.zeros((8, 8), dtype=bool)
    mask[2, 1:3] = True
    _, moved = time_to_move.cut_and_drag(image, replace(tracks, objects=(replace(tracks.objects[0], mask=mask),)))
    assert moved[1].nonzero().tolist() == [[3, 4], [3, 5]]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_holes_take_a_value_from_around(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, height, width, generator=generator)
    holes = torch.rand(height, width, generator=generator) < 0.6
    out = time_to_move.filled(image, holes)
    assert torch.equal(out[:, ~holes], image[:, ~holes])
    known = image[:, ~holes].T.tolist() or image.flatten(1).T.tolist()
    assert all(value in known for value in out[:, holes].T.tolist())


def test_the_two_clocks() -> None:
    method = METHODS["time-to-move"]
    seen: dict[int, Tensor] = {}
    result = run(method, observe=lambda step, z: seen.update({step.index: z}))
    assert list(seen) == [1, 2, 3]
    assert result.timings["denoising"] > 0
    # held until its beginning, the object is nearer to the animation than one that is free from step 1 on
    frames, moved = time_to_move.cut_and_drag(IMAGE, TRACKS.resample(4))
    there = moved[:, None].expand_as(frames)
    free = run(TimeToMove(weak_step=1, strong_step=1))
    assert not torch.equal(free.video, result.video)
    held = run(TimeToMove(weak_step=1, strong_step=3))
    decoded = (BACKBONE.vae.decode(BACKBONE.vae.encode(2 * frames - 1)) / 2 + 0.5).clamp(0, 1)
    errors = [(r.video - decoded)[there].square().mean().item() for r in (held, free)]
    assert errors[0] < errors[1]
    assert time_to_move.clocks(TimeToMove(), 50) == (14, 25)
    assert time_to_move.clocks(TimeToMove(), 1) == (0, 0)


def test_the_same_sampler_serves_a_job_that_begins_later() -> None:
    sampler, method = DPMSolver2M(), METHODS["time-to-move"]
    first = run(method, sampler=sampler).video
    assert torch.equal(run(method, sampler=sampler).video, first)


# --------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize("name", METHODS)
def test_a_job_is_steered_and_recorded(name: str, plain: Result) -> None:
    method = METHODS[name]
    result = run(method)
    assert result.video.shape == plain.video.shape and not torch.equal(result.video, plain.video)
    assert result.parts == {"method": name}
    assert SETTINGS[name].from_dict(result.method_settings) == SETTINGS[name](**dataclasses.asdict(method))  # type: ignore[index]
    assert result.features == {}
    injected = run(replace(method, injection=True), features=plain.features)
    assert not torch.equal(injected.video, result.video)
    assert injected.features.keys() == plain.features.keys()
    other = Tracks(16, 16, (replace(BALL, boxes=((1.0, 1.0, 8.0, 8.0), (1.0, 8.0, 8.0, 15.0))),))
    assert not torch.equal(run(method, tracks=other).video, result.video)


def test_features_of_the_condition_are_computed_for_the_injection(plain: Result) -> None:
    assert run(TimeToMove(injection=True)).features.keys() == plain.features.keys()


FAMILIES = (
    RotaryConfig(heads=2, rotary_dims=4),
    FactorisedConfig(head_dim=4, groups=4, stem_heads=2, stem_head_dim=4),
)


@pytest.mark.parametrize("family", FAMILIES, ids=["lavie", "videocrafter"])
def test_other_families_have_the_points(family: RotaryConfig | FactorisedConfig) -> None:
    config = replace(TINY, temporal=family)
    backbone = replace(BACKBONE, config=replace(BACKBONE.config, unet=config), unet=tiny_unet(config).float())
    for name in ("freetraj", "trailblazer"):  # what edits attention over frames
        assert run(METHODS[name], backbone).video.isfinite().all(), name


def test_several_objects() -> None:
    second = Track("blue ball", ((8.0, 1.0, 15.0, 8.0), (1.0, 8.0, 8.0, 15.0)))
    tracks, prompt = Tracks(16, 16, (BALL, second)), "red ball blue ball"
    for method in METHODS.values():
        assert run(method, tracks=tracks, prompt=prompt).video.isfinite().all()
    own = run(TrailBlazer(integration_steps=3), tracks=tracks, prompt=prompt)
    assert not torch.equal(own.video, run(TrailBlazer(integration_steps=0), tracks=tracks, prompt=prompt).video)


def test_losses_fall_and_are_recorded() -> None:
    result = run(SGI2V(layers=LAYERS, first_step=0, last_step=0, iterations=8, lr=0.05))
    assert [loss.step for loss in result.losses] == [0] * 8
    assert result.losses[-1].loss < result.losses[0].loss


BAD: list[tuple[Comparator, dict[str, Any], str]] = [
    (FreeTraj(), {"tracks": None}, "freetraj moves objects along tracks, but there are none"),
    (TrailBlazer(), {"tracks": None}, "trailblazer moves objects along tracks"),
    (SGI2V(), {"tracks": None}, "sg-i2v moves objects along tracks"),
    (TimeToMove(), {"tracks": None}, "time-to-move moves objects along tracks"),
    (FreeTraj(), {"prompt": "a ball"}, "object 'red ball': its name is not in the prompt"),
    (TrailBlazer(subjects=("blue",)), {}, "the subject 'blue' is not in the prompt"),
    (SGI2V(layers=("up_blocks.9.attentions.0",)), {}, "layers: unknown hook point 'up_blocks.9"),
    (SGI2V(layers=("conv_in",)), {}, "conv_in has no spatial self-attention"),
    (SGI2V(layers=()), {}, "leaves nothing to align"),
    (SGI2V(layers=LAYERS, first_step=3, last_step=1), {}, "first_step=3 comes after last_step=1"),
    (TimeToMove(strong_step=4), {}, "weak_step=1 and strong_step=4 of steps=4"),
    (TimeToMove(weak_step=3, strong_step=2), {}, "weak_step=3 and strong_step=2"),
]


@pytest.mark.parametrize(("method", "options", "message"), BAD, ids=[message[:24] for *_, message in BAD])
def test_what_cannot_work_is_said(method: Comparator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnyI2VError) as error:
        run(method, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(("change", "message"), [({"window": 2}, "window=2"), ({"deep_every": 2}, "deep_every=2")])
def test_edits_reach_every_map_or_are_refused(change: dict[str, int], message: str) -> None:
    config = replace(SHORT, **change)
    for method in (METHODS["freetraj"], METHODS["trailblazer"]):
        with pytest.raises(InputError, match=message):
            animate(BACKBONE, IMAGE, PROMPT, TRACKS, config=config, method=method)
    if "window" in change:
        animate(BACKBONE, IMAGE, PROMPT, TRACKS, config=config, method=FreeTraj(edit_temporal=False))
    with pytest.raises(InputError, match="makes its own initial noise"):
        FreeTraj().check(replace(SHORT, initial_noise="carried"), BACKBONE.unet, TRACKS, PROMPT, 3)


@pytest.mark.parametrize("kind", SETTINGS.values())
def test_settings_are_checked_and_survive_their_json(kind: type[Settings]) -> None:
    assert kind.from_dict(kind().to_dict()) == kind()
    with pytest.raises(InputError, match=f"{kind.__name__} has no setting 'nix'"):
        kind.from_dict({"nix": 1})
    for field in dataclasses.fields(kind):
        if isinstance(field.default, float):
            for bad in (math.nan, math.inf, -1.0):
                with pytest.raises(InputError, match=f"{field.name}="):
                    kind.from_dict({field.name: bad})


def test_shares_of_the_steps_are_the_published_ones() -> None:
    assert (share(6, 50, 50), share(5, 40, 40), share(20, 40, 40)) == (6, 5, 20)
    assert (share(6, 50, 8), share(5, 40, 1)) == (1, 1)
    assert sg_i2v.optimised_steps(SGI2V(), 50) == (5, 20)
    assert sg_i2v.optimised_steps(SGI2V(), 8) == (1, 3)
    assert boxes.fractions(BALL, TRACKS)[0] == (1 / 16, 1 / 16, 0.5, 0.5)


def test_footprints_are_what_a_run_edits_and_optimises() -> None:
    kinds: tuple[AttentionKind, ...] = ("spatial", "text", "temporal")
    edits: list[tuple[Kind, AttentionKind]] = [("logits", kind) for kind in kinds]
    spatial, text, temporal = edits
    probs: tuple[Kind, AttentionKind] = ("probs", "text")
    maps = frozenset({spatial, text, temporal, probs})
    assert FreeTraj().footprint(SHORT) == Footprint(replace(SHORT, optimise_steps=0), maps)
    assert FreeTraj(edit_self=False, edit_cross=False).footprint(SHORT).maps == {temporal}
    assert TrailBlazer(temporal_steps=0).footprint(SHORT).maps == {("probs", "text")}
    for nothing in (FreeTraj(edit_steps=0), TrailBlazer(spatial_steps=0, temporal_steps=0), TimeToMove()):
        assert nothing.footprint(SHORT) == Footprint(replace(SHORT, optimise_steps=0))
    config, maps, parameters = SGI2V(layers=("up_blocks.1.attentions.0",), first_step=1, last_step=3).footprint(SHORT)
    assert (config.optimise_steps, config.iterations, maps, parameters) == (3, 5, frozenset(), 0)
    assert config.align == tuple(f"up_blocks.1.attentions.0.{part}" for part in ("query", "key", "value"))
