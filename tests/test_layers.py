"""What layers keep for the backward pass, what is trained, and where the libraries behind them are missing.

That they equal their formulas: `test_operators`.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from anyi2v.backbone.feed_forward import FeedForward
from anyi2v.backbone.layers import Conv2d, Linear, group_norm, group_norm_silu
from anyi2v.operators import where
from anyi2v.operators.cpu import linear, norm


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
