"""The hook mechanism: reading, replacing, stopping, composing; gradients with checkpointing and compilation."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyi2v.backbone.config import RotaryConfig
from anyi2v.backbone.unet import points, record
from anyi2v.errors import HookError
from anyi2v.hook_points import Point
from anyi2v.taps import At, Recorder, Replace, Stop, Tap, chain, no_tap

from .networks import TINY, inputs, tiny_unet

UNET = tiny_unet()
POINTS = points(UNET)
NAMES = list(POINTS)
LATENT_POINTS = [name for name in NAMES if not name.endswith(("logits", "probs")) and ".cross.key" not in name]
QUERIES = ["up_blocks.1.attentions.0.query", "up_blocks.2.attentions.0.query"]


def identity(name: str, x: torch.Tensor) -> torch.Tensor:
    return x


@torch.no_grad()
def test_identity_tap_changes_no_bit() -> None:
    z, t, text = inputs(batch=2)
    assert torch.equal(UNET(z, t, text, tap=identity), UNET(z, t, text))


@torch.no_grad()
def test_every_point_is_seen_with_the_listed_shape() -> None:
    z, t, text = inputs()
    seen = {}

    def note(name: str, x: torch.Tensor) -> torch.Tensor:
        assert name not in seen
        seen[name] = tuple(x.shape)
        return x

    note.wants = lambda name: True  # type: ignore[attr-defined]
    UNET(z, t, text.expand(1, 5, -1), tap=note)
    listed = {name: point.shape for name, point in points(UNET, frames=3).items()}
    assert list(seen) == list(listed)
    text_points = [name for name in listed if ".cross." in name and not name.endswith("query")]
    assert {n: s for n, s in seen.items() if n not in text_points} == {
        n: s for n, s in listed.items() if n not in text_points
    }


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("probs")])
def test_materialised_attention_equals_the_fused_one(name: str) -> None:
    z, t, text = inputs()
    recorder = Recorder([name])
    out = UNET(z, t, text, tap=chain(recorder, Replace({name: torch.clone})))
    # float64: two orders of summation of at most 64 terms
    torch.testing.assert_close(out, UNET(z, t, text), rtol=1e-12, atol=1e-12)
    probs = recorder.seen[name]
    assert torch.equal(UNET(z, t, text, tap=Recorder([name])), UNET(z, t, text))
    halved = UNET(z, t, text, tap=Replace({name: lambda x: x * 0.5}))
    assert not torch.equal(halved, out)
    assert torch.equal(UNET(z, t, text, tap=At([name], lambda _, x: x.mul_(0.5))), halved)  # in place, but not lost
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs.sum(-1)), rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("logits")])
def test_edited_logits_go_through_the_softmax(name: str) -> None:
    z, t, text = inputs()
    probs = name.replace("logits", "probs")
    recorder = Recorder([name, probs])
    out = UNET(z, t, text, tap=recorder)
    assert torch.equal(out, UNET(z, t, text))
    torch.testing.assert_close(recorder.seen[name].softmax(-1), recorder.seen[probs], rtol=1e-12, atol=0)
    edited = UNET(z, t, text, tap=Replace({name: lambda x: x * 0.5}))
    assert not torch.equal(edited, out)
    replaced = (recorder.seen[name] * 0.5).softmax(-1)
    torch.testing.assert_close(UNET(z, t, text, tap=Replace({probs: lambda x: replaced})), edited, rtol=1e-12, atol=0)
    both = chain(Replace({name: lambda x: x * 0.5}), after := Recorder([probs]))
    assert torch.equal(UNET(z, t, text, tap=both), edited)
    torch.testing.assert_close(after.seen[probs], replaced, rtol=1e-12, atol=0)


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(LATENT_POINTS))
def test_a_replacement_changes_only_what_lies_downstream(name: str) -> None:
    z, t, text = inputs()
    plain, edited = Recorder(NAMES), Recorder(NAMES)
    UNET(z, t, text, tap=plain)
    UNET(z, t, text, tap=chain(Replace({name: lambda x: x + 1}), edited))
    before = NAMES[: NAMES.index(name)]
    assert all(torch.equal(plain.seen[n], edited.seen[n]) for n in before)
    assert torch.equal(plain.seen[name] + 1, edited.seen[name])


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(LATENT_POINTS))
def test_a_stop_runs_nothing_later(name: str) -> None:
    z, t, text = inputs()
    calls: list[str] = []
    recorder = Recorder([name], stop="point")

    def count(point: str, x: torch.Tensor) -> torch.Tensor:
        calls.append(point)
        return x

    with pytest.raises(Stop):
        UNET(z, t, text, tap=chain(count, recorder))
    assert calls[-1] == name
    assert len(calls) < len(NAMES) or name == NAMES[-1]


def query_gradient(**options: object) -> torch.Tensor:
    z, t, text = inputs()
    z.requires_grad_()
    edit = Replace({QUERIES[0]: lambda q: torch.cat([q[:, :1].detach() * 0.5, q[:, 1:]], dim=1)})
    seen = record(UNET, QUERIES, z, t, text, edit=edit, **options)  # type: ignore[arg-type]
    loss = torch.stack([(seen[name] ** 2).mean() for name in QUERIES]).sum()
    return torch.autograd.grad(loss, z)[0]


def test_truncated_and_checkpointed_gradients_equal_the_plain_one() -> None:
    z, t, text = inputs()
    z.requires_grad_()
    recorder = Recorder(QUERIES)
    edit = Replace({QUERIES[0]: lambda q: torch.cat([q[:, :1].detach() * 0.5, q[:, 1:]], dim=1)})
    UNET(z, t, text, tap=chain(edit, recorder))
    plain = torch.autograd.grad(torch.stack([(recorder.seen[n] ** 2).mean() for n in QUERIES]).sum(), z)[0]
    assert plain.abs().sum() > 0
    for options in ({}, {"stop": "layer"}, {"checkpoint": True}, {"checkpoint": True, "stop": "layer"}):
        assert torch.equal(query_gradient(**options), plain), options


def test_compiled_equals_eager() -> None:
    """In a process of its own: the compiler cannot trace the shape checks of the test run."""
    done = subprocess.run([sys.executable, "-m", "tests.check_compiled"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 6


def test_unknown_name_is_an_error_with_the_closest_names() -> None:
    z, t, text = inputs()
    with pytest.raises(HookError, match=r"up_blocks\.1\.attentions\.0\.query"):
        record(UNET, ["up_blocks.1.attention.0.query"], z, t, text)
    with pytest.raises(HookError, match="temporals"):
        UNET(z, t, text, temporal=["up_blocks.1.temporal.0"])


def test_an_edit_may_not_change_shape_or_dtype() -> None:
    z, t, text = inputs()
    with pytest.raises(HookError, match="conv_in"):
        UNET(z, t, text, tap=Replace({"conv_in": lambda x: x[:, :1]}))
    with pytest.raises(HookError, match="float32"):
        UNET(z, t, text, tap=Replace({"conv_in": lambda x: x.float()}))


def test_recorder_keeps_the_first_value() -> None:
    recorder = Recorder(["a"])
    recorder("a", torch.zeros(1))
    recorder("a", torch.ones(1))
    assert recorder.seen["a"] == 0


def test_chain_is_left_to_right_and_drops_no_tap() -> None:
    assert chain() is no_tap
    assert chain(no_tap, identity) is identity
    double, add = (lambda n, x: 2 * x), (lambda n, x: x + 1)
    assert chain(double, no_tap, add)("a", torch.tensor(3)) == 7


def test_layers_are_told_from_places_inside_them() -> None:
    assert Point("up_blocks.1.resnets.0").kind == "layer"
    assert Point("up_blocks.1.resnets.0.hidden").kind == "hidden"


@torch.no_grad()
def test_costly_points_are_offered_to_taps_that_name_them_only() -> None:
    z, t, text = inputs()
    for unet in (UNET, tiny_unet(replace(TINY, temporal=RotaryConfig(heads=2, rotary_dims=4)))):
        costly, seen = [name for name, point in points(unet).items() if point.costly], list[str]()

        def note(name: str, x: torch.Tensor, seen: list[str] = seen) -> torch.Tensor:
            seen.append(name)
            return x

        unet(z, t, text, tap=note)
        assert set(seen) == set(points(unet)) - set(costly)
        seen.clear()
        unet(z, t, text, tap=chain(identity, At(costly, note)))
        assert seen == costly
        assert len(seen) > 3


@pytest.mark.parametrize(
    "make", [lambda n: Recorder([n]), lambda n: Replace({n: torch.clone}), lambda n: At([n], identity)]
)
def test_names_that_do_not_exist_are_errors_before_the_pass(make: Callable[[str], Tap]) -> None:
    z, t, text = inputs()
    wrong, passes = make("up_blocks.1.attention.0.query"), []
    hook = UNET.conv_in.register_forward_hook(lambda *_: passes.append(1))
    for tap in (wrong, chain(identity, wrong)):
        with pytest.raises(HookError, match=r"closest are up_blocks\.1\.attentions\.0\.query"):
            UNET(z, t, text, tap=tap)
    hook.remove()
    assert not passes


def test_what_a_tap_returns_must_be_a_tensor() -> None:
    z, t, text = inputs()
    with pytest.raises(HookError, match="returned NoneType at conv_in"):
        UNET(z, t, text, tap=lambda name, x: None)  # type: ignore[arg-type, return-value]


def test_points_that_a_pass_does_not_reach_are_errors() -> None:
    z, t, text = inputs()
    inner = next(name for name in NAMES if ".temporals." in name and name.endswith(".query"))
    with pytest.raises(HookError, match="temporal layer that holds it is off"):
        record(UNET, [inner], z, t, text, temporal=False)
    with pytest.raises(HookError, match="stopped the pass before"):
        record(UNET, QUERIES, z, t, text, edit=Recorder(["conv_in"], stop="point"))


def test_the_list_of_points_has_the_length_of_the_text() -> None:
    key = "up_blocks.1.attentions.0.cross.key"
    assert points(UNET, tokens=5)[key].shape == (1, 5, 16)
    assert points(UNET)[key].shape == (1, 77, 16)
