"""Layers as oneDNN computes them equal PyTorch's own, forwards and backwards, with weights frozen or not."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from anyi2v.backbone.feed_forward import FeedForward
from anyi2v.backbone.layers import Conv2d, Linear, group_norm, group_norm_silu
from anyi2v.operators import where
from anyi2v.operators.cpu import feed_forward, linear, norm

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


class Residual(nn.Module):
    """A feed-forward layer with its norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x, self.norm)


class Norm(nn.Module):
    """GroupNorm as the UNet computes it, with SiLU or without."""

    def __init__(self, groups: int, channels: int, silu: bool):
        super().__init__()
        self.norm, self.silu = nn.GroupNorm(groups, channels), silu

    def forward(self, x: Tensor) -> Tensor:
        return group_norm_silu(self.norm, x) if self.silu else group_norm(self.norm, x)


@pytest.fixture(autouse=True)
def _every_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are PyTorch's own: here none is small."""
    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "FEW", 0)
    monkeypatch.setattr(norm, "MANY", 0)


def check(layer: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Result and gradient of a layer in its data type, against those of PyTorch's own in float64."""
    plain.load_state_dict(layer.state_dict())
    plain.double()
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    found, wanted = layer(ours), plain(exact)
    weights = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).view_as(wanted).round(decimals=2)
    (back,) = torch.autograd.grad(found, ours, weights.to(found.dtype))
    (right,) = torch.autograd.grad(wanted, exact, weights)
    # a few hundred products of the order of 1, summed in float32, which may cancel; bfloat16 rounds to 8 bits
    close = 1e-5 if x.dtype == torch.float32 else 0.03
    for a, b in ((found, wanted), (layer(x), wanted), (back, right)):
        assert a.dtype == x.dtype
        torch.testing.assert_close(a.double(), b, rtol=close, atol=close * max(1.0, b.detach().abs().max().item()))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    bias=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_linear_layers(rows: list[int], widths: tuple[int, int], bias: bool, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    layer = Linear(*widths, bias=bias, dtype=dtype).requires_grad_(False)
    check(layer, nn.Linear(*widths, bias=bias), torch.randn(*rows, widths[0]).to(dtype))


@settings(max_examples=60, deadline=None)
# maps so small that the gradient is a product, too
@example(count=2, size=(2, 3), widths=(5, 40), kind=(3, 1, 1), last=True, dtype=torch.float32, seed=0)
@example(count=1, size=(5, 4), widths=(5, 40), kind=(3, 2, 1), last=False, dtype=torch.float32, seed=1)
@given(
    count=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    kind=st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 2, 1)]),
    last=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_convolutions(
    count: int,
    size: tuple[int, int],
    widths: tuple[int, int],
    kind: tuple[int, int, int],
    last: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Both ways: small maps with many output channels as a product, others as a convolution."""
    torch.manual_seed(seed)
    kernel, stride, padding = kind
    order = torch.channels_last if last else torch.contiguous_format
    layer = Conv2d(*widths, kernel, stride, padding).to(dtype).requires_grad_(False).to(memory_format=order)
    x = torch.randn(count, widths[0], *size).to(dtype).contiguous(memory_format=order)
    check(layer, nn.Conv2d(*widths, kernel, stride, padding), x)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(4, 12),  # of two that happen to be close LayerNorm is ill-conditioned
    cache=st.sampled_from([1, 700, 2**21]),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_feed_forward_layers(rows: list[int], channels: int, cache: int, dtype: torch.dtype, seed: int) -> None:
    """Whatever the number of rows at a time."""
    torch.manual_seed(seed)
    layer, plain = Residual(channels).to(dtype).requires_grad_(False), Residual(channels)
    with torch.no_grad():  # or LayerNorm's are 1 and 0
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_forward, "CACHE", cache)
        check(layer, plain.requires_grad_(False), torch.randn(*rows, channels).to(dtype))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),  # of a few numbers a norm is ill-conditioned
    groups=st.integers(1, 4),
    width=st.integers(1, 12),
    wide=st.sampled_from([1, 64]),
    last=st.booleans(),
    silu=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
def test_group_norms(
    count: int,
    size: tuple[int, int],
    groups: int,
    width: int,
    wide: int,
    last: bool,
    silu: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """With vectors over all channels or over a group's, with SiLU or without."""
    torch.manual_seed(seed)
    order = torch.channels_last if last else torch.contiguous_format
    # means as large as the deviation; not in bfloat16, whose products of both lose what is left
    mean = torch.randn(groups * width, 1, 1) if dtype == torch.float32 else 0
    x = (torch.randn(count, groups * width, *size) + mean).to(dtype)
    layer = Norm(groups, groups * width, silu)
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "WIDE", wide)
        check(
            layer.to(dtype).requires_grad_(False),
            Norm(groups, groups * width, silu).requires_grad_(False),
            x.contiguous(memory_format=order),
        )


@pytest.mark.parametrize("make", [lambda: Linear(6, 5), lambda: Residual(6)])
def test_weights_that_are_trained_get_gradients(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(4, 6)
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_convolution_that_is_trained_gets_gradients() -> None:
    torch.manual_seed(0)
    layer, x = Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 4, 4)
    layer(x).square().sum().backward()
    wanted = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, padding=1).square().sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, wanted[0])


@pytest.mark.parametrize("make", [lambda: Linear(6, 6), lambda: Residual(6)])
def test_other_kinds_of_differentiation_see_pytorchs_own_layers(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x, along = make().requires_grad_(False), torch.randn(4, 6), torch.randn(4, 6)
    jacobian = torch.autograd.functional.jacobian(layer, x)
    assert isinstance(jacobian, Tensor)
    wanted = torch.einsum("abcd,cd->ab", jacobian, along)
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (along,))[1], wanted)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along))).tangent, wanted)
    gradient = torch.func.grad(lambda y: layer(y).sum())(x)
    torch.testing.assert_close(gradient, jacobian.sum((0, 1)))
    torch.testing.assert_close(torch.func.vmap(layer)(torch.stack([x, along])), torch.stack([layer(x), layer(along)]))


def test_a_bias_that_alone_is_trained_gets_its_gradient() -> None:
    for layer, x in ((Linear(6, 5), torch.randn(4, 6)), (Conv2d(6, 5, 3), torch.randn(2, 6, 4, 4))):
        layer.weight.requires_grad_(False)
        layer(x.requires_grad_()).sum().backward()
        assert layer.bias is not None
        assert layer.bias.grad is not None
        assert layer.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "order", "keeps_input"),
    [
        (lambda: Conv2d(16, 16, 3, padding=1), torch.channels_last, False),
        (lambda: Linear(8, 8), torch.contiguous_format, False),
        (lambda: Residual(8), torch.contiguous_format, True),
        (lambda: Norm(4, 16, silu=True), torch.channels_last, True),
    ],
)
def test_the_backward_pass_keeps_the_input_at_most(
    make: Callable[[], nn.Module], order: torch.memory_format, keeps_input: bool
) -> None:
    """Of layers with frozen weights; which is what they are for."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=order).requires_grad_()
    layer = make().requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    large = {t.untyped_storage().data_ptr() for t in kept if t.numel() >= x.numel()}
    assert kept
    assert large - parameters == ({x.untyped_storage().data_ptr()} if keeps_input else set())


OLD = """
import torch
from anyi2v.backbone import layers
from anyi2v.execution.packed import packed
from anyi2v.operators import where
assert not where.onednn_computes(torch.bfloat16)
network = torch.nn.ModuleList([layers.Linear(256, 256), layers.Conv2d(64, 64, 3, padding=1)]).bfloat16()
network.requires_grad_(False)
assert packed(network) is network
for layer, x in zip(network, (torch.randn(256, 256), torch.randn(2, 64, 16, 16))):
    x = x.bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert gradient.isfinite().all()
print("computed")
"""


def test_bfloat16_on_processors_that_onednn_has_no_kernels_for() -> None:
    """Simulated by the newest instructions that oneDNN may use; it knows bfloat16 from AVX-512 on."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "computed\n", done.stderr


@pytest.mark.parametrize(
    ("installed", "compiler", "capability", "runs"),
    [
        (True, True, (9, 0), True),
        (False, True, (9, 0), False),
        (True, False, (9, 0), False),
        (True, True, (6, 1), False),
    ],
)
def test_kernels_for_gpus_are_left_out_where_triton_cannot_make_them(
    installed: bool, compiler: bool, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls a C compiler, which the images that many run on lack."""
    monkeypatch.setattr(where, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(where.shutil, "which", lambda _: "/bin/cc" if compiler else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert where.triton_runs.__wrapped__(torch.device("cuda:0")) is runs
