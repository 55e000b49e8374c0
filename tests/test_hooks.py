"""Hooks of modules, subclasses and wrappers of layers work at all sizes: no fast path bypasses them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from anyi2v.backbone import attention
from anyi2v.backbone.attention import Attention
from anyi2v.backbone.layers import Linear
from anyi2v.backbone.slots import Slot
from anyi2v.backbone.unet import UNet
from anyi2v.execution.packed import packed
from anyi2v.operators import plain
from anyi2v.operators.cpu import linear, norm

from .networks import inputs, tiny_unet

UNET = tiny_unet().float()
CALLED = {
    name: m for name, m in UNET.named_modules() if not isinstance(m, (nn.ModuleList, Attention)) and type(m) is not Slot
}
"""Modules that have a forward pass of their own; an empty slot is no layer."""
SIZES = st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 16]), st.booleans(), st.booleans())
"""Frames, cells along an edge, whether every size counts as large, whether a gradient is wanted."""


def thresholds(patch: pytest.MonkeyPatch, large: bool) -> None:
    for module, names in ((linear, ("SMALL", "FEW")), (norm, ("MANY",))):
        for name in names if large else ():
            patch.setattr(module, name, 0)


def predicted(unet: UNet, frames: int, edge: int, large: bool, gradient: bool) -> Tensor:
    """The prediction, or the gradient of its square."""
    z, t, text = inputs(frames=frames, height=edge, width=edge)
    z = z.float().requires_grad_(gradient)
    with pytest.MonkeyPatch.context() as patch:
        thresholds(patch, large)
        noise = unet(z, t, text.float())
        return torch.autograd.grad(noise.square().sum(), z)[0] if gradient else noise


def close(found: Tensor, wanted: Tensor) -> None:
    # float32 through some forty layers, in other orders of summation
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each module is called, seen by its own hook."""
    calls = Counter[str]()
    hooks = [m.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, m in CALLED.items()]
    yield calls
    for hook in hooks:
        hook.remove()


@settings(max_examples=8, deadline=None)
@given(SIZES)
def test_a_hook_of_any_layer_is_called_at_any_size(size: tuple[int, int, bool, bool]) -> None:
    wanted = predicted(UNET, *size)
    with counted() as calls:
        found = predicted(UNET, *size)
    assert {name: calls[name] for name in CALLED} == dict.fromkeys(CALLED, 1)
    close(found, wanted)


@settings(max_examples=4, deadline=None)
@given(SIZES)
def test_a_hook_of_all_modules_is_called_at_any_size(size: tuple[int, int, bool, bool]) -> None:
    seen = set[nn.Module]()
    hook = register_module_forward_hook(lambda module, *_: seen.add(module) or None)
    predicted(UNET, *size)
    hook.remove()
    assert set(CALLED.values()) <= seen


@torch.no_grad()
def test_hooks_are_called_in_every_pass_of_a_packed_copy() -> None:
    z, t, text = inputs(frames=1)
    with counted() as calls:
        copy = packed(UNET)
        for _ in range(2):
            copy(z.float(), t, text.float(), temporal=False)
    spatial = [name for name in CALLED if "temporal" not in name]
    assert {calls[name] for name in spatial} == {2}


@torch.no_grad()
def test_a_packed_copy_sees_weights_that_a_hook_changes() -> None:
    unet = tiny_unet().float()
    layer, passes = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"), list[float]()
    assert isinstance(layer, Linear)
    weight = layer.weight.clone()

    def change(module: nn.Module, args: tuple[Tensor]) -> None:
        passes.append(0)
        layer.weight.copy_(weight * len(passes))

    layer.register_forward_pre_hook(change)
    z, t, text = inputs(frames=1)
    found = []
    for network in (unet, packed(unet)):
        passes.clear()
        found.append([network(z.float(), t, text.float(), temporal=False) for _ in range(3)])
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs)
    assert not torch.allclose(found[0][0], found[0][2], rtol=0, atol=1e-3)


class Doubled(Linear):
    """A subclass with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Wrapper(nn.Module):
    """As adapters wrap a layer: only callable."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


class Double(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def in_a_subclass(layer: Linear) -> nn.Module:
    made = Doubled(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.load_state_dict(layer.state_dict())
    return made.requires_grad_(False)


def with_an_own_forward(layer: Linear) -> nn.Module:
    before = layer.forward
    layer.forward = lambda input: before(2 * input)
    return layer


def with_a_hook(layer: Linear) -> nn.Module:
    def double(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        return 2 * out

    layer.register_forward_hook(double)
    return layer


def with_a_pre_hook(layer: Linear) -> nn.Module:
    def double(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (2 * args[0],)

    layer.register_forward_pre_hook(double)
    return layer


def with_a_parametrisation(layer: Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Double())
    return layer


WAYS = [in_a_subclass, Wrapper, with_an_own_forward, with_a_hook, with_a_pre_hook, with_a_parametrisation]
PLACES = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_k", "ff.net.0.proj", "ff.net.2")


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=4, deadline=None)
@given(size=SIZES, place=st.sampled_from(PLACES))
def test_doubling_a_layer_from_outside_doubles_it(way, size: tuple[int, int, bool, bool], place: str) -> None:
    """Against a network whose weights are doubled; the biases of the two last are zero, so that all ways agree."""
    ours, theirs = tiny_unet().float(), tiny_unet().float()
    for unet in (ours, theirs):
        parent = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0")
        layer = parent.get_submodule(place)
        assert isinstance(layer, Linear)
        if layer.bias is not None:
            layer.bias.zero_()
        if unet is theirs:
            layer.weight.mul_(2)
        else:
            assert plain(layer, Linear)
            changed = way(layer)
            assert not plain(changed, Linear)
            parent.set_submodule(place, changed)
    close(predicted(ours, *size), predicted(theirs, *size))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.GroupNorm, nn.LayerNorm])
@settings(max_examples=4, deadline=None)
@given(size=SIZES)
def test_wrapped_convolutions_and_norms(kind: type[nn.Module], size: tuple[int, int, bool, bool]) -> None:
    """All of a kind."""
    wrapped = tiny_unet().float()
    for name, module in list(wrapped.named_modules()):
        if isinstance(module, kind):
            wrapped.set_submodule(name, Same(module))
    # the dtype is that of the first convolution
    if kind is nn.Conv2d:
        wrapped.conv_in.weight = UNET.conv_in.weight
    close(predicted(wrapped, *size), predicted(UNET, *size))


class Same(nn.Module):
    """Only calls what it wraps."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


def test_several_projections_at_once_know_a_bias() -> None:
    layer = Linear(4, 4, bias=False), Linear(4, 4)
    x = torch.randn(2, 3, 4)
    for found, part in zip(attention.project(x, *layer), layer, strict=True):
        torch.testing.assert_close(found, part(x))
