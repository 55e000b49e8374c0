"""The alignment loss, Eq. 3, 4 and 8."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyi2v.errors import HookError
from anyi2v.method import alignment, parts
from anyi2v.method.alignment import Alignment, _anchors, cut, feature_map, reduce
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import AlignmentOptions
from anyi2v.method.crops import Crops, Maps
from anyi2v.tracks import Track, Tracks

SIZES = ((8, 12), (16, 24))
LATTICE = (16, 24)
A = Track("a", ((2.0, 2.0, 10.0, 10.0), (8.0, 2.0, 16.0, 10.0), (20.0, 4.0, 28.0, 12.0)), ((4.0, 4.0), (8.0, 8.0)))
B = Track("b", ((12.0, 2.0, 20.0, 8.0), (12.0, 2.0, 22.0, 9.0), (12.0, 2.0, 24.0, 10.0)), ((16.0, 5.0),))


def features(seed: int = 0, channels: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, h, w, channels, generator=generator) for h, w in SIZES]


def make(*tracks: Track, **options: object) -> tuple[Crops, list]:
    crops = make_crops(Tracks(24, 16, tracks), LATTICE, 3, **options)  # type: ignore[arg-type]
    return crops, [crops.maps(*size) for size in SIZES]


def align(xs: list[Tensor], crops: Crops, maps: list[Maps], **options: Any) -> Alignment:
    return alignment.align(xs, crops, maps, AlignmentOptions(**options))


def align_in_parts(xs: list[Tensor], crops: Crops, **options: Any) -> Alignment:
    return parts.align_in_parts(xs, crops, AlignmentOptions(**options))


def test_a_moved_copy_has_no_loss() -> None:
    """At the lattice's own resolution, with shifts of whole cells, crops of a rolled map are equal."""
    first = torch.randn(16, 24, 5, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([first, first.roll(6, 1), first.roll((2, 10), (0, 1))])
    track = Track("a", ((2.0, 2.0, 10.0, 10.0), (8.0, 2.0, 16.0, 10.0), (12.0, 4.0, 20.0, 12.0)))
    crops, _ = make(track)
    # bicubic rows of the identity are exact up to float32 rounding, squared
    assert align([maps], crops, [crops.maps(*LATTICE)]).loss < 1e-10
    assert align([maps + torch.randn_like(maps)], crops, [crops.maps(*LATTICE)]).loss > 0.1


def test_worked_example() -> None:
    """One cell, two frames, values 1 and 4 in one channel: (4 - 1)^2 over an overlap of one cell."""
    maps = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    crops = make_crops(Tracks(1, 1, (Track("a", ((0.0, 0.0, 1.0, 1.0),) * 2),)), (1, 1), 2)
    assert align([maps], crops, [crops.maps(1, 1)]).loss == 9


@pytest.mark.parametrize("mask", ["dynamic", "static", "none"])
def test_frame_1_gets_no_gradient(mask: str) -> None:
    xs = [x.requires_grad_() for x in features()]
    align(xs, *make(A, B), mask=mask).loss.backward()  # type: ignore[arg-type]
    for x in xs:
        assert x.grad is not None
        assert not x.grad[0].any()
        assert x.grad[1:].any()


def test_objects_add_and_their_order_does_not_matter() -> None:
    xs = features()
    a, b, both, swapped = (align(xs, *make(*t)).loss for t in ((A,), (B,), (A, B), (B, A)))
    # float32: sums of a few hundred terms, and crops padded to another common size
    torch.testing.assert_close(both, a + b, rtol=1e-5, atol=0)
    torch.testing.assert_close(swapped, both, rtol=1e-5, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_what_lies_outside_of_all_boxes_cannot_matter(seed: int) -> None:
    x = torch.randn(3, *LATTICE, 4, generator=torch.Generator().manual_seed(seed))
    crops, _ = make(A)
    outside = torch.ones(3, *LATTICE, dtype=torch.bool)
    for f, (rows, cols) in enumerate(crops.boxes[0]):
        outside[f, slice(*rows), slice(max(cols[0], 0), cols[1])] = False
    other = torch.where(outside[..., None], torch.randn(x.shape) * 9, x)
    maps = [crops.maps(*LATTICE)]
    assert torch.equal(align([x], crops, maps).loss, align([other], crops, maps).loss)


@pytest.mark.parametrize("tracks", [(A,), (A, B)])
def test_gradcheck(tracks: tuple[Track, ...]) -> None:
    """In float64; the masks are piecewise constant, so the derivative exists almost everywhere."""
    crops = make_crops(Tracks(24, 16, tracks), (8, 12), 3)
    maps = crops.maps(4, 6)
    now, first, points = ((rows.double(), cols.double()) for rows, cols in (maps.now, maps.first, maps.points))
    maps = Maps(now, first, points)
    x = torch.randn(3, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(x: Tensor) -> Tensor:
        # frame 1 is held: by definition it has no gradient, though the loss depends on it
        return align([torch.cat([frozen, x])], crops, [maps]).loss

    frozen, later = x[:1], x[1:].requires_grad_()
    assert torch.autograd.gradcheck(loss, later, eps=1e-7, atol=1e-5)


OPTIONS = {
    "mask": ("dynamic", "static", "none"),
    "clustering": ("per_frame", "joint"),
    "first_frame_mask": ("per_object", "shared"),
    "anchors": ("attached", "box_index"),
    "normalise": ("per_object", "all_objects"),
    "mask_margin": (0, 1),
}


def test_every_combination_of_options_is_finite_and_each_option_matters() -> None:
    xs = features()
    losses = {}
    for values in itertools.product(*OPTIONS.values()):
        made = align(xs, *make(A, B), **dict(zip(OPTIONS, values, strict=True)))
        assert made.loss.isfinite()
        assert ((made.masks == 0) | (made.masks == 1)).all()
        losses[values] = made.loss.item()
    default = tuple(values[0] for values in OPTIONS.values())
    for i, values in enumerate(OPTIONS.values()):
        for value in values[1:]:
            assert losses[(*default[:i], value, *default[i + 1 :])] != losses[default], value


CLUSTERINGS: tuple[dict[str, Any], ...] = (
    {"clusters": 3},
    {"clusters": 3, "clustering": "joint"},
    {"cluster_by": "features"},
    {"cluster_by": "features", "clusters": 4, "clustering": "joint"},
)


@pytest.mark.parametrize("options", CLUSTERINGS)
def test_other_clusterings_make_other_masks_in_parts_too(options: dict[str, Any]) -> None:
    xs = features()
    with patch("anyi2v.method.crops.PART_CELLS", 450):
        crops, maps = make(*MANY)
        made, some = align(xs, crops, maps, **options), align_in_parts(xs, crops, **options)
    assert not torch.equal(made.masks, align(xs, crops, maps).masks)
    assert torch.equal(made.masks, some.masks)
    assert made.loss.isfinite()


def test_a_clustering_of_ones_own_gets_all_that_it_needs() -> None:
    xs = features()
    crops, maps = make(A, B)
    seen: list[Any] = []

    def threshold(similarities: Tensor, cells: Sequence[Tensor], valid: Tensor) -> Tensor:
        seen.append((similarities, cells, valid))
        return similarities > 0.3

    made = alignment.align(xs, crops, maps, cluster=threshold)
    ((similarities, cells, valid),) = seen
    assert torch.equal(similarities, made.similarities) and torch.equal(valid, crops.valid)
    assert [x.shape for x in cells] == [(*valid.shape, 6)] * 2 and not any(x.requires_grad for x in cells)
    assert torch.equal(made.masks.bool(), (made.similarities > 0.3) & crops.valid)
    in_parts = parts.align_in_parts(xs, crops, cluster=threshold)
    assert torch.equal(in_parts.masks, made.masks)


MANY = (
    A,
    B,
    Track("c", ((0.0, 0.0, 24.0, 16.0),) * 3),
    Track("d", ((3.0, 3.0, 6.0, 7.0),) * 3, ((4.0, 4.0),), weight=0.5),
)


@pytest.mark.parametrize(("cells", "sizes"), [(1, [1, 1, 1, 1]), (450, [1, 1, 2]), (1000, [1, 3])])
def test_parts_of_the_objects_align_as_all_together(cells: int, sizes: list[int]) -> None:
    """With every combination of options: loss, gradient, masks and errors."""
    xs = [x.requires_grad_() for x in features()]
    with patch("anyi2v.method.crops.PART_CELLS", cells):
        crops, maps = make(*MANY)
        assert [len(numbers) for numbers, _ in crops.parts] == sizes
    assert sorted(o for numbers, _ in crops.parts for o in numbers) == [0, 1, 2, 3]
    for values in itertools.product(*OPTIONS.values()):
        options: dict[str, Any] = dict(zip(OPTIONS, values, strict=True))
        whole, some = align(xs, crops, maps, **options), align_in_parts(xs, crops, **options)
        assert torch.equal(some.masks, whole.masks), options
        # float32: a few thousand terms in another order
        torch.testing.assert_close(some.loss, whole.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(some.errors, whole.errors, rtol=1e-5, atol=1e-5)
        theirs, ours = (torch.autograd.grad(made.loss, xs) for made in (whole, some))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_jobs_of_ordinary_size_are_one_part() -> None:
    crops, _ = make(*MANY)
    assert [numbers for numbers, part in crops.parts if part is crops] == [(0, 1, 2, 3)]
    one, _ = make(A)
    with patch("anyi2v.method.crops.PART_CELLS", 1):
        assert one.parts[0][1] is one


class NoHost(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU, or bring numbers to it."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "_linalg_eigh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket._qualified_op_name.removeprefix("aten::") not in self.WAITS, func
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing_between_pca_and_gradient() -> None:
    xs = [x.requires_grad_() for x in features()]
    crops, maps = make(A, B)
    crops.shared_maps  # noqa: B018 - once in a job, as the maps
    with NoHost(), pytest.raises(AssertionError, match="eigh"):
        reduce(xs[0], 2)
    with NoHost(), pytest.raises(AssertionError, match="lift_fresh"):
        torch.tensor([1.0])
    for values in itertools.product(*OPTIONS.values()):
        with NoHost():
            loss = align(xs, crops, maps, **dict(zip(OPTIONS, values, strict=True))).loss
            gradients = torch.autograd.grad(loss, xs)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_each_object_has_its_own_first_frame_mask() -> None:
    """The published code masks object 2 by object 1's mask: what object 1 looks like then changes its loss."""
    xs = features()
    others = [x.clone() for x in xs]
    for x, (h, w) in zip(others, SIZES, strict=True):
        # B's box begins at x = 12 of 24; everything left of it belongs to A alone in frame 1
        x[0, :, : w * 10 // 24] += torch.randn(h, w * 10 // 24, x.shape[-1])
    crops, maps = make(A, B)

    def mask_of_b(x: list[Tensor]) -> Tensor:
        return align(x, crops, maps).masks[:, 1, 0]

    assert torch.equal(mask_of_b(xs), mask_of_b(others))


def test_attached_anchors_do_not_change_when_the_box_grows_or_leaves() -> None:
    """Growing or clipped boxes change what is compared, but not the point that it is compared with."""
    grown = Track("a", (A.boxes[0], (6.0, 0.0, 22.0, 16.0), (-6.0, 2.0, 2.0, 10.0)), A.points)
    x = features()[1]
    for track in (A, grown):
        crops, maps = make(track)
        reference = cut(x[:1].expand_as(x), maps[1].first)
        anchors = _anchors("attached", x[0], reference, maps[1], crops)
        # 1 px a cell: the points (4, 4) and (8, 8) themselves, in every frame
        expected = torch.stack([x[0, 4, 4], x[0, 8, 8]]).expand(1, 3, -1, -1)
        torch.testing.assert_close(anchors, expected)


def test_a_box_outside_in_every_later_frame_has_zero_loss() -> None:
    gone = Track("a", (A.boxes[0], (30.0, 2.0, 38.0, 10.0), (30.0, 2.0, 38.0, 10.0)))
    xs = [x.requires_grad_() for x in features()]
    loss = align(xs, *make(gone)).loss
    loss.backward()
    assert loss == 0
    assert all(x.grad is not None and not x.grad.any() for x in xs)


def test_reduce_keeps_distances_of_what_it_keeps() -> None:
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert reduce(x, None) is x

    def distances(x: Tensor) -> Tensor:
        x = x.flatten(0, 2)
        return (x[:, None] - x).norm(dim=-1)

    # an orthonormal change of basis, in float32
    torch.testing.assert_close(distances(reduce(x, 6)), distances(x), rtol=1e-5, atol=1e-5)
    assert reduce(x, 64).shape[-1] == 6
    lowrank = reduce(x, 2, solver="lowrank", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lowrank, reduce(x, 2), rtol=1e-3, atol=1e-3)


def test_feature_maps_have_channels_last() -> None:
    assert feature_map("up_blocks.1.resnets.0.hidden", torch.zeros(1, 3, 7, 4, 5)).shape == (3, 4, 5, 7)
    assert feature_map("up_blocks.1.temporals.0", torch.zeros(1, 3, 7, 4, 5)).shape == (3, 4, 5, 7)
    assert feature_map("up_blocks.1.attentions.0.query", torch.zeros(1, 3, 4, 5, 7)).shape == (3, 4, 5, 7)
    for name in (
        "up_blocks.1.attentions.0.cross.query",
        "up_blocks.1.temporals.0.0.query",
        "mid_block.attentions.0.probs",
    ):
        with pytest.raises(HookError, match="not a spatial feature map"):
            feature_map(name, torch.zeros(1, 3, 4, 5, 7))


def plain_two_means(values: Tensor) -> Tensor:
    """The upper cluster of the best of all splits of a few numbers."""
    splits = [values >= edge for edge in values.unique()]

    def cost(upper: Tensor) -> float:
        clusters = [values[upper], values[~upper]]
        return sum(float((c - c.mean()).square().sum()) for c in clusters if len(c))

    # the first split has everything in the upper cluster; it is only right if all values are equal
    return min(splits[1:] or splits, key=cost)


class PlainCrop(NamedTuple):
    now: list[Tensor]
    """What is seen of the box, per layer."""
    first: list[Tensor]
    """Frame 1's box, resized and cut alike."""
    nearest: tuple[Tensor, Tensor]
    """Rows and columns of frame 1's crop in which the centres of the cells lie."""


def plain_crop(maps: list[Tensor], track: Track, f: int) -> PlainCrop | None:
    """For maps on the lattice of one pixel a cell and a box inside in frame 1; None if nothing is seen."""
    x0, y0, x1, y1 = (math.floor(value) for value in track.boxes[f])
    a0, b0, a1, b1 = (math.floor(value) for value in track.boxes[0])
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, LATTICE[1]), min(y1, LATTICE[0])
    if left >= right or top >= bottom:
        return None
    starts = [m[0, b0:b1, a0:a1].movedim(-1, 0)[None] for m in maps]
    whole = [F.interpolate(s, size=(y1 - y0, x1 - x0), mode="bicubic")[0].movedim(0, -1) for s in starts]
    first = [w[top - y0 : bottom - y0, left - x0 : right - x0] for w in whole]
    rows = (torch.arange(top - y0, bottom - y0) * 2 + 1) * (b1 - b0) // (2 * (y1 - y0))
    cols = (torch.arange(left - x0, right - x0) * 2 + 1) * (a1 - a0) // (2 * (x1 - x0))
    return PlainCrop([m[f, top:bottom, left:right] for m in maps], first, (rows, cols))


def plain_similarities(maps: list[Tensor], track: Track, crop: PlainCrop, anchors: str) -> Tensor:
    """Per layer and cell."""
    similarities = []
    for cells, reference, m in zip(crop.now, crop.first, maps, strict=True):
        if anchors == "attached":
            points = [m[0, int(y), int(x)] for x, y in track.points]
        else:
            offsets = [(int(y - track.boxes[0][1]), int(x - track.boxes[0][0])) for x, y in track.points]
            rows, cols = reference.shape[:2]
            points = [reference[min(y, rows - 1), min(x, cols - 1)] for y, x in offsets]
        cosines = [torch.cosine_similarity(cells, point, dim=-1) for point in points]
        similarities.append(torch.stack(cosines).amax(0))
    return torch.stack(similarities)


def plain_dilation(mask: Tensor, margin: int) -> Tensor:
    """Cells of which one at most `margin` rows and columns away is set; `l y x`."""
    grown = torch.zeros_like(mask)
    for layer, y, x in mask.nonzero().tolist():
        grown[layer, max(y - margin, 0) : y + margin + 1, max(x - margin, 0) : x + margin + 1] = True
    return grown


def plain_loss(
    features: list[Tensor], tracks: tuple[Track, ...], options: dict[str, Any]
) -> tuple[float, dict[tuple[int, int], Tensor]]:
    """The alignment in loops over frames, objects and layers: the loss, and masks `l y x` by object and frame."""
    maps = [F.interpolate(x.movedim(-1, 1), size=LATTICE, mode="bicubic").movedim(1, -1) for x in features]
    masks: dict[tuple[int, int], Tensor] = {}
    errors, overlaps = [0.0] * len(tracks), [0.0] * len(tracks)
    shared, firsts = None, {}
    for f, (o, track) in itertools.product(range(3), enumerate(tracks)):
        crop = plain_crop(maps, track, f)
        if crop is None:
            continue
        sims = plain_similarities(maps, track, crop, options["anchors"])
        own = plain_two_means((sims if options["clustering"] == "joint" else sims.mean(0)).flatten())
        own = own.view(-1, *sims.shape[1:]).expand_as(sims)
        own = torch.ones_like(own) if options["mask"] == "none" else own
        own = plain_dilation(own, options["mask_margin"]) if f == 0 else own
        rows, cols = crop.nearest
        carried = firsts.setdefault(o, own)[:, rows][:, :, cols]
        own = masks[o, f] = carried if options["mask"] == "static" else own
        weight, compared = own * carried, f > 0
        if options["first_frame_mask"] == "shared":
            shared = own.float() if shared is None else shared
            if shared.shape != own.shape:
                shared = F.interpolate(shared[None], size=own.shape[1:], mode="bilinear")[0]
            weight, compared = own * shared, (f, o) != (0, 0)
        if compared:
            overlaps[o] += float(weight.sum())
            for cells, reference, w in zip(crop.now, crop.first, weight, strict=True):
                errors[o] += float(((cells - reference) * w[..., None]).square().mean(-1).sum())
    if options["normalise"] == "all_objects":
        return sum(errors) / sum(overlaps), masks
    return sum(e / c for e, c in zip(errors, overlaps, strict=True) if c), masks


LEAVING = Track(
    "c", ((2.0, 8.0, 9.0, 14.0), (-3.0, 9.0, 5.0, 17.0), (30.0, 8.0, 37.0, 14.0)), ((3.0, 12.0), (7.0, 9.0))
)


@pytest.mark.parametrize("tracks", [(A,), (A, B), (B, LEAVING, A)], ids=["one", "growing", "leaving"])
@pytest.mark.parametrize("mask", OPTIONS["mask"])
def test_equals_the_loops_with_every_combination_of_options(tracks: tuple[Track, ...], mask: str) -> None:
    xs = features(seed=2)
    crops, maps = make(*tracks)
    for rest in itertools.product(*list(OPTIONS.values())[1:]):
        options = dict(zip(OPTIONS, (mask, *rest), strict=True))
        made = align(xs, crops, maps, **options)  # type: ignore[arg-type]
        loss, masks = plain_loss(xs, tracks, options)
        # float32: bicubic sums in another order, a few hundred terms
        assert made.loss.item() == pytest.approx(loss, rel=1e-5), options
        for (o, f), expected in masks.items():
            found = made.masks[:, o, f, : expected.shape[1], : expected.shape[2]]
            assert torch.equal(found, expected.float()), (options, o, f)
        assert made.masks.sum() == sum(expected.sum() for expected in masks.values())


def test_masks_of_a_moved_copy_are_equal_in_every_frame() -> None:
    """Static masks are dynamic ones for an object that only moves."""
    first = torch.randn(16, 24, 5, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([first, first.roll(6, 1), first.roll((2, 10), (0, 1))])
    track = Track("a", ((2.0, 2.0, 10.0, 10.0), (8.0, 2.0, 16.0, 10.0), (12.0, 4.0, 20.0, 12.0)), ((4.0, 4.0),))
    crops, _ = make(track)
    dynamic, static = (align([maps], crops, [crops.maps(*LATTICE)], mask=m).masks for m in ("dynamic", "static"))
    assert torch.equal(dynamic, static)
    assert 0 < dynamic.mean() < 1
    assert torch.equal(dynamic, dynamic[:, :, :1].expand_as(dynamic))


@given(st.floats(0.01, 100))
def test_scaling_all_features_scales_the_loss_by_its_square(factor: float) -> None:
    xs, job = features(), make(A, B)
    scaled = align([factor * x for x in xs], *job)
    torch.testing.assert_close(scaled.loss, factor**2 * align(xs, *job).loss, rtol=1e-4, atol=0)


ONES = np.ones((16, 24), dtype=bool)
"""A mask at the lattice's resolution."""


@pytest.mark.parametrize("clustering", ["per_frame", "joint"])
@pytest.mark.parametrize("first_frame_mask", ["per_object", "shared"])
def test_a_mask_of_the_whole_box_is_no_mask_in_frame_1(clustering: str, first_frame_mask: str) -> None:
    """Static: equal to mask="none" throughout. Dynamic: frame 1's part is, and later frames keep their clusters."""
    options: dict = {"clustering": clustering, "first_frame_mask": first_frame_mask}
    xs = features()
    ones = make(*(replace(track, mask=ONES) for track in (A, B)))
    none = align(xs, *make(A, B), mask="none", **options)
    static = align(xs, *ones, mask="static", **options)
    assert static.loss == none.loss
    assert torch.equal(static.masks, none.masks)
    dynamic, without = align(xs, *ones, mask="dynamic", **options), align(xs, *make(A, B), mask="dynamic", **options)
    assert torch.equal(dynamic.masks[:, :, 0], none.masks[:, :, 0])
    assert torch.equal(dynamic.masks[:, :, 1:], without.masks[:, :, 1:])
    assert align(xs, *ones, mask="none", **options).loss == none.loss


def test_a_mask_by_the_user_counts_where_none_are_found() -> None:
    """mask="none": an object with a mask has it in all frames, one without is its whole box."""
    xs, mask = features(), np.zeros((16, 24), dtype=bool)
    mask[:6, :8] = True
    given = make(replace(A, mask=mask), B)
    none, static, without = (
        align(xs, *given, mask="none").masks,
        align(xs, *given, mask="static").masks,
        align(xs, *make(A, B), mask="none").masks,
    )
    assert torch.equal(none[:, 0], static[:, 0])
    assert torch.equal(none[:, 1], without[:, 1])
    assert none[:, 0].sum() < without[:, 0].sum()


def test_dynamic_masks_with_the_whole_box_weigh_later_frames_by_their_own_masks() -> None:
    """With M_1 = 1 in the box, M_1 M_j = M_j: Eq. 8 on the crops, written out."""
    x = features()[1]
    crops, _ = make(replace(A, mask=ONES))
    maps = crops.maps(*x.shape[1:3])
    result = align([x], crops, [maps])
    weight = result.masks[0, 0, 1:]
    difference = (cut(x, maps.now) - cut(x[:1].expand_as(x), maps.first))[0, 1:] ** 2
    # float32: sums of a few hundred terms
    torch.testing.assert_close(result.loss, (difference.mean(-1) * weight).sum() / weight.sum(), rtol=1e-5, atol=0)


def test_a_users_mask_is_frame_1s_and_another_objects_stays_clustered() -> None:
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:9, 3:7] = True  # inside A's first box, 8 x 8 cells from (2, 2)
    xs = features()
    given, alone = align(xs, *make(replace(A, mask=mask), B)), align(xs, *make(A, B))
    assert torch.equal(given.masks[:, 1], alone.masks[:, 1])
    assert torch.equal(given.masks[:, 0, 1:], alone.masks[:, 0, 1:])
    expected = torch.zeros(given.masks.shape[-2:])
    expected[2:7, 1:5] = 1
    assert all(torch.equal(layer, expected) for layer in given.masks[:, 0, 0])
    static = align(xs, *make(replace(A, mask=mask), B), mask="static")
    # A's boxes have one size: its mask is carried along as it is, as far as the frame goes
    assert all(torch.equal(frame, expected) for frame in static.masks[:, 0, :2].flatten(0, 1))
    expected[:, 4:] = 0
    assert all(torch.equal(layer, expected) for layer in static.masks[:, 0, 2])


def test_features_outside_a_users_mask_cannot_matter_when_it_is_static() -> None:
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:8, 4:8] = True
    first = torch.randn(16, 24, 5, generator=torch.Generator().manual_seed(0))
    x = torch.stack([first] * 3)
    crops, _ = make(replace(A, boxes=A.boxes[:1] * 3, mask=mask))
    other = x.clone()
    other[1:] += torch.where(torch.tensor(mask)[..., None], 0.0, torch.randn(16, 24, 5))
    maps = [crops.maps(*LATTICE)]
    # bicubic rows of the identity are exact up to float32 rounding, squared
    assert align([other], crops, maps, mask="static").loss < 1e-10
    assert align([other], make(replace(A, boxes=A.boxes[:1] * 3))[0], maps, mask="none").loss > 0.1


def test_masks_carry_no_gradient() -> None:
    xs = [x.requires_grad_() for x in features()]
    result = align(xs, *make(replace(A, mask=ONES), B))
    assert not result.masks.requires_grad
    result.loss.backward()
    assert all(x.grad is not None and x.grad[1:].any() and not x.grad[0].any() for x in xs)


def test_weights_of_1_change_no_byte_and_cost_nothing() -> None:
    xs = features()
    plain, weighed = (align(xs, *make(*(replace(t, weight=w) for t in (A, B)))) for w in (1.0, 1))
    assert all(torch.equal(a, b) for a, b in zip(plain, weighed, strict=True))
    crops, maps = make(A, B)
    assert crops.loss_weights is None
    # multiplied by ones, it is the same to the last bit, too
    ones = align(xs, replace(crops, loss_weights=torch.ones(2)), maps)
    assert all(torch.equal(a, b) for a, b in zip(plain, ones, strict=True))


@pytest.mark.parametrize("normalise", ["per_object", "all_objects"])
def test_a_weight_multiplies_the_objects_part_of_loss_and_gradient(normalise: Any) -> None:
    def run(a: float, b: float) -> tuple[Tensor, Tensor]:
        xs = [x.requires_grad_() for x in features()]
        loss = align(xs, *make(replace(A, weight=a), replace(B, weight=b)), normalise=normalise).loss
        return loss.detach(), torch.autograd.grad(loss, xs[0])[0]

    (only_a, grad_a), (only_b, grad_b), (both, grad) = run(1, 0), run(0, 1), run(3, 0.5)
    assert only_a > 0 and only_b > 0
    # float32: sums of a few hundred terms
    torch.testing.assert_close(both, 3 * only_a + 0.5 * only_b, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad, 3 * grad_a + 0.5 * grad_b, rtol=1e-4, atol=1e-7)
    assert not torch.equal(grad, run(1, 1)[1])


@pytest.mark.parametrize("normalise", ["per_object", "all_objects"])
def test_gradcheck_with_weights(normalise: Any) -> None:
    crops = make_crops(Tracks(24, 16, (replace(A, weight=2.5), replace(B, weight=0.25))), (8, 12), 3)
    maps = crops.maps(4, 6)
    maps = Maps(*((rows.double(), cols.double()) for rows, cols in (maps.now, maps.first, maps.points)))
    x = torch.randn(3, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frozen, later = x[:1], x[1:].requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return align([torch.cat([frozen, x])], crops, [maps], normalise=normalise).loss

    assert torch.autograd.gradcheck(loss, later, eps=1e-7, atol=1e-5)


def test_the_components_are_those_of_all_frames() -> None:
    """Frame 1 varies along one axis only, the others along two more: its own first component is not theirs."""
    generator = torch.Generator().manual_seed(0)
    x = 0.01 * torch.randn(3, 8, 8, 6, generator=generator)
    x[0, ..., 0] += torch.randn(8, 8, generator=generator)
    x[1:, ..., 1] += 5 * torch.randn(2, 8, 8, generator=generator)
    flat = x.flatten(0, 2) - x.flatten(0, 2).mean(0)
    _, _, basis = torch.linalg.svd(flat, full_matrices=False)
    wanted = (flat @ basis[0]).abs().view(3, 8, 8)
    # the sign of a component is free; float32
    torch.testing.assert_close(reduce(x, 1)[..., 0].abs(), wanted, rtol=0, atol=1e-3)
