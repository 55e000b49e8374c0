"""Every implementation of an operator equals its formula: results and gradients, in every mode."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v import operators
from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import InputError
from anyi2v.execution.packed import packed
from anyi2v.operators import choice, formulas, private, using, where
from anyi2v.operators.cpu import attention as cpu_attention
from anyi2v.operators.cpu import feed_forward as cpu_feed_forward
from anyi2v.operators.cpu import linear as cpu_linear
from anyi2v.operators.cpu import norm as cpu_norm

from .networks import inputs, tiny_unet

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if where.onednn_computes(dtype)]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 0.04, torch.float16: 4e-3}
"""Of the largest value: sums of some hundred numbers in another order; else roundings of inputs and results."""


@dataclass
class Case:
    """An operator with parameters: `ours` and `formula` map the same tensors, of which all are differentiated."""

    ours: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    inputs: list[Tensor]
    parameters: list[Tensor]
    """Frozen; the first arguments after the inputs."""


Draw = Callable[[st.SearchStrategy[Any]], Any]


def normal(draw: Draw, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))


def rows(draw: Draw) -> list[int]:
    return draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))


def linear(draw: Draw) -> Case:
    c, d = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    parameters = [normal(draw, d, c), normal(draw, d)][: 1 + draw(st.booleans())]
    return Case(operators.linear, formulas.linear, [normal(draw, *rows(draw), c)], parameters)


def projections(draw: Draw) -> Case:
    c, widths = draw(st.integers(1, 20)), draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))

    def joined(of: Any, *tensors: Tensor) -> Tensor:
        return torch.cat(of(*tensors), -1)

    ours, formula = partial(joined, operators.projections), partial(joined, formulas.projections)
    return Case(ours, formula, [normal(draw, *rows(draw), c)], [normal(draw, d, c) for d in widths])


def conv2d(draw: Draw) -> Case:
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(2, 9))
    c, d = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    d = draw(st.sampled_from([c, d]))  # of equal widths 1x1 convolutions are linear maps
    kernel, stride, padding = draw(st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1)]))
    order = draw(st.sampled_from([torch.channels_last, torch.contiguous_format]))
    x, weight = normal(draw, n, c, h, w), normal(draw, d, c, kernel, kernel)
    x, weight = (t.contiguous(memory_format=order) for t in (x, weight))
    bias, shift = (normal(draw, d) if draw(st.booleans()) else None for _ in range(2))

    def call(of: Any, x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        given = iter(rest)
        b, s = (None if t is None else next(given) for t in (bias, shift))
        return of(x, weight, b, stride, padding, s)

    parameters = [weight, *(t for t in (bias, shift) if t is not None)]
    return Case(partial(call, operators.conv2d), partial(call, formulas.conv2d), [x], parameters)


def layer_norm(draw: Draw) -> Case:
    b, f, c = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(4, 40))
    parameters = [normal(draw, c), normal(draw, c)]

    def call(of: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return of(x, weight, bias, 0.1, None)

    return Case(
        partial(call, operators.layer_norm), partial(call, formulas.layer_norm), [normal(draw, b, f, 3, c)], parameters
    )


def group_norm(draw: Draw, silu: bool = False, large: bool = False) -> Case:
    groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    frames = draw(st.sampled_from([1, 1, 3]))
    h, w = draw(st.integers(4, 9)), draw(st.integers(4, 9))  # of a few numbers a norm is ill-conditioned
    order = draw(st.sampled_from([torch.channels_last, torch.contiguous_format]))
    x = normal(draw, 2 * frames, groups * width, h, w).contiguous(memory_format=order)
    name, options = ("group_norm_silu" if silu else "group_norm"), ({"large": large} if silu else {})

    def call(of: Any, x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
        return of(x, groups, weight, bias, 1e-3, frames, **options)

    parameters = [normal(draw, groups * width), normal(draw, groups * width)]
    ours = partial(call, getattr(operators, name), **options)
    return Case(ours, partial(call, getattr(formulas, name)), [x], parameters)


def attention(draw: Draw) -> Case:
    n, heads = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 4]))
    width = draw(st.sampled_from([4, 8, 16, 40]))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 90))
    queries = draw(st.sampled_from([queries, keys]))
    given = [normal(draw, n, length, heads * width) for length in (queries, keys, keys)]
    ours, formula = (lambda q, k, v, of=of: of.attention(q, k, v, heads) for of in (operators, formulas))
    return Case(ours, formula, given, [])


def attention_over_frames(draw: Draw) -> Case:
    b, h, w, f, heads = (draw(st.integers(1, most)) for most in (2, 4, 4, 17, 2))
    c = heads * draw(st.sampled_from([4, 8, 16, 24]))
    given = [normal(draw, b, f, h, w, c).permute(0, 2, 3, 1, 4) for _ in range(3)]
    # a projection that mixes channels, and needs no parameters of its own
    ways = operators.attention_over_frames, formulas.attention_over_frames
    ours, formula = (lambda q, k, v, of=of: of(q, k, v, heads, _Flipped()) for of in ways)
    return Case(ours, formula, given, [])


class _Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * x.flip(-1)


def geglu(draw: Draw) -> Case:
    return Case(operators.geglu, formulas.geglu, [normal(draw, *rows(draw), 2 * draw(st.integers(1, 20)))], [])


def feed_forward(draw: Draw) -> Case:
    c, d = draw(st.integers(4, 12)), draw(st.integers(1, 30))

    def call(of: Any, *tensors: Tensor) -> Tensor:
        return of(*tensors, 0.1)

    parameters = [normal(draw, *shape) for shape in ((c,), (c,), (2 * d, c), (2 * d,), (c, d), (c,))]
    ours, formula = partial(call, operators.feed_forward), partial(call, formulas.feed_forward)
    return Case(ours, formula, [normal(draw, *rows(draw), c)], parameters)


CASES: dict[str, Callable[[Draw], Case]] = {
    "linear": linear,
    "projections": projections,
    "conv2d": conv2d,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "group_norm_silu": partial(group_norm, silu=True),
    "group_norm_silu of large maps": partial(group_norm, silu=True, large=True),
    "attention": attention,
    "attention_over_frames": attention_over_frames,
    "geglu": geglu,
    "feed_forward": feed_forward,
}
THRESHOLDS: dict[str, tuple[Any, dict[str, list[int]]]] = {
    "linear": (cpu_linear, {"SMALL": [0], "FEW": [0]}),
    "norm": (cpu_norm, {"MANY": [0], "WIDE": [1, 64]}),
    "attention": (cpu_attention, {"MANY": [0, 2**17], "SCORES": [1, 2000, 2**19]}),
    "feed_forward": (cpu_feed_forward, {"CACHE": [1, 700, 2**21]}),
}
"""Values with which small tensors take the ways of large ones."""


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype, factor: float = 1) -> None:
    atol = factor * CLOSE[dtype] * max(1.0, wanted.detach().abs().max().item())
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])  # simpler examples say no more
@given(data=st.data())
def test_every_implementation_equals_its_formula(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Forwards and backwards, without gradients, in inference mode, with trained weights, and by choice."""
    case = CASES[name](data.draw)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module, values in THRESHOLDS.values():
            for threshold, choices in values.items():
                patch.setattr(module, threshold, data.draw(st.sampled_from(choices)))
        given = [x.to(dtype) for x in case.inputs]
        parameters = [p.to(dtype) for p in case.parameters]
        ours = [x.clone().requires_grad_() for x in given]  # `clone` keeps the strides
        exact = [x.double().requires_grad_() for x in given]
        found, wanted = case.ours(*ours, *parameters), case.formula(*exact, *(p.double() for p in parameters))
        assert found.dtype == dtype
        assert found.shape == wanted.shape
        weights = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted).to(dtype)
        back = torch.autograd.grad(found, ours, weights)
        right = torch.autograd.grad(wanted, exact, weights.double())
        close(found, wanted, dtype)
        for x, y in zip(back, right, strict=True):
            close(x, y, dtype, 4)
        close(case.ours(*given, *parameters), wanted, dtype)
        with torch.inference_mode():
            close(case.ours(*given, *parameters), wanted, dtype)
        if parameters and dtype == torch.float32:  # sums over all tokens, which lose too much in bfloat16
            ours, exact = ([p.to(kind).requires_grad_() for p in parameters] for kind in (dtype, torch.float64))
            back = torch.autograd.grad(case.ours(*given, *ours), ours, weights)
            right = torch.autograd.grad(case.formula(*(x.double() for x in given), *exact), exact, weights.double())
            for x, y in zip(back, right, strict=True):
                close(x, y, dtype, 8)
        with using("reference"):
            assert torch.equal(case.ours(*given, *parameters), case.formula(*given, *parameters))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_under_autocast_operators_equal_their_formulas(name: str, data: st.DataObject) -> None:
    case = CASES[name](data.draw)
    tensors = [*case.inputs, *case.parameters]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = case.ours(*tensors), case.formula(*tensors)
    close(found.float(), wanted.float(), torch.bfloat16, 2)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    make_all_large(monkeypatch)


def make_all_large(patch: pytest.MonkeyPatch) -> None:
    for module, values in THRESHOLDS.values():
        for threshold, choices in values.items():
            patch.setattr(module, threshold, choices[0])


class Fixed:
    """Draws the same always: the last of several, true, five."""

    def __call__(self, strategy: Any) -> Any:
        if "sampled_from" in repr(strategy):
            return strategy.elements[-1]
        return {"booleans()": True}.get(repr(strategy), 5) if "lists" not in repr(strategy) else [5, 6]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("name", CASES)
def test_torch_func_sees_the_formulas(name: str) -> None:
    """The compiler: `tests.check_compiled`."""
    case = CASES[name](Fixed())
    x, *rest = case.inputs
    others = [*rest, *case.parameters]

    def ours(x: Tensor) -> Tensor:
        return case.ours(x, *others)

    def formula(x: Tensor) -> Tensor:
        return case.formula(x, *others)

    along = torch.ones_like(x)
    ways: list[Callable[[Callable[[Tensor], Tensor]], Tensor]] = [
        lambda f: torch.func.grad(lambda y: f(y).sum())(x),
        lambda f: torch.func.vmap(f)(torch.stack([x, along])),
    ]
    if "attention" not in name:  # PyTorch's own has no forward mode
        ways.append(lambda f: torch.func.jvp(f, (x,), (along,))[1])
    for way in ways:
        assert torch.equal(way(ours), way(formula))


PROBES = sorted({*private.NEEDED_ON_CPU, "_functorch"})


@pytest.fixture
def _forgetful() -> Iterator[None]:
    """What is known of oneDNN is looked up again, before and after."""
    where.onednn_computes.cache_clear()
    yield
    where.onednn_computes.cache_clear()


@pytest.mark.usefixtures("large", "_forgetful")
@pytest.mark.parametrize("probe", PROBES)
def test_without_a_private_name_the_formulas_compute(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, probe, None)
    for name in ("linear", "conv2d", "feed_forward", "group_norm_silu"):
        case = CASES[name](Fixed())
        ours, plain = ([x.clone().requires_grad_() for x in case.inputs] for _ in range(2))
        found, wanted = case.ours(*ours, *case.parameters), case.formula(*plain, *case.parameters)
        assert torch.equal(found, wanted)
        grads = (torch.autograd.grad(y.square().sum(), x)[0] for y, x in ((found, ours), (wanted, plain)))
        assert torch.equal(*grads)
    unet = tiny_unet().float()
    assert packed(unet) is unet


def test_a_name_that_is_not_there_is_none() -> None:
    assert private.find("ops.mkldnn._no_such_operator") is None
    assert private.find("no.such.name") is None
    assert all(private.find(path) is not None for path in ("ops.aten.silu_backward", "mkldnn_convolution"))


def test_without_knowledge_of_global_hooks_every_module_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_global_hooks", None)
    assert where.hooked(nn.Linear(2, 2))


def noticed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the formulas alone computed, at each of the feed-forward layers."""
    seen, formula = list[bool](), choice.geglu

    def noting(x: Tensor) -> Tensor:
        seen.append(where.formulas_only())
        return formula(x)

    monkeypatch.setattr(choice, "geglu", noting)
    return seen


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_network_computes_by_its_own_choice(checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where layers are recomputed in the backward pass."""
    seen, unet = noticed(monkeypatch), tiny_unet()
    z, t, text = inputs()
    counts = []
    for kind in ("reference", "fast"):
        unet.operators = kind
        seen.clear()
        (gradient,) = torch.autograd.grad(unet(z.requires_grad_(), t, text, checkpoint=checkpoint).sum(), z)
        assert gradient.isfinite().all()
        assert set(seen) == {unet.operators == "reference"}  # with --operators reference it cannot be set
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0
    assert where.chosen() in ("fast", "reference")


def test_reference_networks_are_not_packed_and_known_kinds_are_checked() -> None:
    backbone = load("micro", operators="reference")
    assert backbone.operators == "reference"
    assert packed(backbone.unet) is backbone.unet
    kind: Any = "slow"
    with pytest.raises(InputError, match="unknown operators='slow'; choose fast or reference"):
        backbone.operators = kind
