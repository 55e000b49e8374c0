"""Injection into frame 1 and shared keys and values, against a plain implementation."""

import pytest
import torch
from torch import Tensor

from anyi2v.errors import HookError
from anyi2v.method.injection import Injection, check_injectable
from anyi2v.numerics.adain import patch_adain
from anyi2v.taps import Recorder, Replace, chain

from .networks import HIDDENS, LAYERS, QUERIES, inputs, tiny_unet

UNET = tiny_unet()


def features(seed: int = 5) -> dict[str, Tensor]:
    """Recorded from another image."""
    z, t, text = inputs(frames=1, seed=seed)
    recorder = Recorder((*HIDDENS, *QUERIES))
    UNET(z, t, text, temporal=False, tap=recorder)
    return recorder.seen


def injection(**options: object) -> Injection:
    given = {"hiddens": HIDDENS, "queries": QUERIES, "share_kv": LAYERS, "patch": 2, **options}
    return Injection(features(), **given)  # type: ignore[arg-type]


def first(x: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value, x[:, 1:]], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("queries", [QUERIES, ()])
@pytest.mark.parametrize("share_kv", [LAYERS, LAYERS[:1], ()])
@pytest.mark.parametrize(("debias", "patch"), [(True, 2), (True, 0), (False, 2)])
def test_equals_the_plain_statement(
    queries: tuple[str, ...], share_kv: tuple[str, ...], debias: bool, patch: int
) -> None:
    """Keys and values of frames 2..f are overwritten by frame 1's after every frame's were computed.

    Which layers share them does not depend on the queries that are injected.
    """
    recorded = features()
    edits = {}
    for name in HIDDENS:
        f = recorded[name]
        edits[name] = lambda x, f=f: first(x, patch_adain(f[0], x[0, :1], patch)[None] if debias else f)
    for name in queries:
        edits[name] = lambda x, f=recorded[name]: first(x, f)
    for layer in share_kv:
        for part in ("key", "value"):
            edits[f"{layer}.{part}"] = lambda x: x[:, :1].expand_as(x)
    z, t, text = inputs()
    plain = UNET(z, t, text, tap=Replace(edits))
    ours = UNET(z, t, text, tap=injection(queries=queries, share_kv=share_kv, debias=debias, patch=patch))
    # float64; attention sums in another order when all frames' queries share one set of keys
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    assert (ours - UNET(z, t, text)).abs().max() > 1e-3


@torch.no_grad()
def test_only_frame_1_is_edited_and_only_at_the_named_points() -> None:
    tap, seen = injection(), {}

    def before(name: str, x: Tensor) -> Tensor:
        seen[name] = x
        return x

    def after(name: str, x: Tensor) -> Tensor:
        old = seen[name]
        if name in HIDDENS or name in QUERIES:
            assert torch.equal(x[:, 1:], old[:, 1:])
            assert not torch.equal(x[:, :1], old[:, :1])
        elif x.shape != old.shape:
            assert name in {f"{layer}.context" for layer in LAYERS}
            assert torch.equal(x, old[:, :1])
        else:
            assert x is old
        return x

    z, t, text = inputs()
    UNET(z, t, text, tap=chain(before, tap, after))
    assert set(HIDDENS) | set(QUERIES) <= set(seen)


@torch.no_grad()
def test_keys_and_values_of_all_frames_are_those_of_frame_1() -> None:
    """They are computed once, from frame 1 alone, and not copied."""
    z, t, text = inputs()
    points = [f"{layer}.{part}" for layer in LAYERS for part in ("key", "value")]
    ours, plain = Recorder(points), Recorder(points)
    UNET(z, t, text, tap=chain(Injection({}, hiddens=[], queries=[], share_kv=LAYERS), ours))
    UNET(z, t, text, tap=plain)
    for point in points:
        assert ours.seen[point].shape[1] == 1
        assert plain.seen[point].shape[1] == z.shape[1]
    # of the first such layer only: the input of the other has been changed by it
    for point in points[:2]:
        torch.testing.assert_close(ours.seen[point], plain.seen[point][:, :1])


@torch.no_grad()
def test_patch_0_takes_the_statistics_of_the_whole_map() -> None:
    z, t, text = inputs()
    name = HIDDENS[1]
    ours, plain = Recorder([name]), Recorder([name])
    UNET(z, t, text, tap=chain(Injection(features(), hiddens=[name], queries=[], patch=0), ours))
    UNET(z, t, text, tap=plain)
    for statistic in (torch.mean, torch.std):
        a, b = (statistic(recorder.seen[name][0, 0], (-1, -2)) for recorder in (ours, plain))
        # eps = 1e-6 in the denominator leaves a relative 1e-6 / std
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_debiased_hidden_has_the_present_patch_statistics() -> None:
    x = torch.randn(1, 3, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = torch.randn(1, 1, 8, 8, 8, dtype=torch.float64) * 7 + 3
    tap = Injection({"h": source}, hiddens=["h"], queries=[], patch=4)
    out = tap("h", x)[0, 0].unfold(-2, 4, 4).unfold(-2, 4, 4)
    present = x[0, 0].unfold(-2, 4, 4).unfold(-2, 4, 4)
    # eps = 1e-6 in the denominator leaves a relative 1e-6 / std
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(statistic(out, (-1, -2)), statistic(present, (-1, -2)), rtol=1e-5, atol=1e-5)


def test_statistics_carry_no_gradient() -> None:
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    tap = Injection({"h": torch.randn(1, 1, 4, 4, 4)}, hiddens=["h"], queries=[], patch=2)
    (gradient,) = torch.autograd.grad(tap("h", x).square().sum(), x)
    assert not gradient[:, 0].any()
    assert gradient[:, 1].all()


@torch.no_grad()
def test_one_condition_serves_a_whole_batch() -> None:
    z, t, text = inputs(batch=2)
    both = UNET(z, t, text, tap=injection())
    for b in range(2):
        alone = UNET(z[b : b + 1], t, text[b : b + 1], tap=injection())
        torch.testing.assert_close(both[b : b + 1], alone, rtol=1e-10, atol=1e-12)


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(HookError, match=r"up_blocks\.1\.resnets\.1\.hidden"):
        Injection(features(), hiddens=["up_blocks.1.resnets.1.hidden"], queries=QUERIES)


@torch.no_grad()
@pytest.mark.parametrize("name", [HIDDENS[0], QUERIES[0]])
def test_features_of_another_size_are_refused(name: str) -> None:
    z, t, text = inputs(height=8, width=12)
    tap = Injection(features(), hiddens=[name] * (name in HIDDENS), queries=[name] * (name in QUERIES))
    with pytest.raises(HookError, match=r"\d+, .*image of the video's size"):
        UNET(z, t, text, tap=tap)


def test_points_of_another_kind_cannot_be_injected() -> None:
    check_injectable((*HIDDENS, "up_blocks.1.resnets.0"), (*QUERIES, "mid_block.attentions.0.query"))
    for name in (*QUERIES, "up_blocks.1.attentions.0.probs", "up_blocks.1.attentions.0.context"):
        with pytest.raises(HookError, match="cannot be injected as a hidden"):
            check_injectable([name], [])
    other = ("up_blocks.1.attentions.0.key", "up_blocks.1.attentions.0.cross.query", "up_blocks.1.temporals.0.0.query")
    for name in (*HIDDENS, *other, "up_blocks.1.attentions.0", "noise"):
        with pytest.raises(HookError, match="cannot be injected as a query"):
            check_injectable([], [name])
    check_injectable([], [], (*LAYERS, "mid_block.attentions.0"))
    for name in (*HIDDENS, *QUERIES, "up_blocks.1.resnets.0", "up_blocks.1.temporals.0", "up_blocks.1", "noise"):
        with pytest.raises(HookError, match="cannot share keys and values; name a layer"):
            check_injectable([], [], [name])
