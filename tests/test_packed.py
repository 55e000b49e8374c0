"""The copy of a network with packed weights against the network itself."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anyi2v import denoiser
from anyi2v.backbone.attention import TransformerBlock
from anyi2v.backbone.layers import Conv2d, Linear
from anyi2v.backbone.unet import UNet, points, record
from anyi2v.diffusion import inversion_pairs
from anyi2v.execution.memory import predict
from anyi2v.execution.packed import PackedConv2d, PackedLinear, packed, packed_size
from anyi2v.method.config import MethodConfig
from anyi2v.method.inversion import invert
from anyi2v.operators.where import onednn_computes
from anyi2v.taps import Replace

from .networks import HIDDENS, SHORT, TINY, inputs, tiny_backbone, tiny_unet

onednn = pytest.mark.skipif(not onednn_computes(torch.float32), reason="PyTorch without oneDNN")
ERROR = {dtype: e for dtype, e in ((torch.float32, 1e-5), (torch.bfloat16, 0.04)) if onednn_computes(dtype)}
"""Relative to the largest number; other orders of summation, each layer of bfloat16 rounding by 2^-9."""


def image(dtype: torch.dtype, height: int = 8, width: int = 8) -> tuple[UNet, Tensor, int, Tensor]:
    z, t, text = inputs(frames=1, height=height, width=width)
    return tiny_unet().to(dtype), z.float(), t, text.float()


@onednn
@given(st.sampled_from(list(ERROR)), st.integers(4, 12), st.integers(4, 12))
@settings(max_examples=12, deadline=None)
def test_the_copy_computes_the_same(dtype: torch.dtype, height: int, width: int) -> None:
    unet, z, t, text = image(dtype, height, width)
    copy = packed(unet)
    assert any(isinstance(layer, PackedLinear) for layer in copy.modules())
    with torch.no_grad():
        # the second pass takes packed weights and what the first made of the text, the third has another text
        for timestep, words in ((t, text), (7, text), (7, text.flip(1) + 1)):
            wanted, found = (u(z, timestep, words, temporal=False) for u in (unet, copy))
            assert (wanted - found).abs().max() <= ERROR[dtype] * wanted.abs().max()


@onednn
def test_a_text_is_projected_once() -> None:
    unet, z, t, text = image(torch.float32)
    copy = packed(unet)
    layers = [layer for layer in copy.modules() if isinstance(layer, PackedLinear)]
    with torch.no_grad():
        copy(z, t, text, temporal=False)
        first = [layer.last for layer in layers if layer.last is not None]
        copy(z, 7, text, temporal=False)
    assert [layer.last for layer in layers if layer.last is not None] == first
    # a key and a value in every transformer
    assert len(first) == 2 * sum(isinstance(module, TransformerBlock) for module in unet.modules())
    assert all(given is text for given, _ in first)


@onednn
def test_the_copy_shares_parameters_and_leaves_the_network_as_it_was() -> None:
    unet, z, t, text = image(torch.float32)
    copy = packed(unet)
    kinds = {type(layer) for layer in unet.modules()}
    assert {Linear, Conv2d} <= kinds
    assert not {PackedLinear, PackedConv2d} & kinds
    for (name, ours), (other, theirs) in zip(unet.named_parameters(), copy.named_parameters(), strict=True):
        assert name == other
        assert ours is theirs
    assert points(copy) == points(unet)
    with torch.no_grad():
        copy(z, t, text, temporal=False)
    kept = [layer.packed for layer in copy.modules() if isinstance(layer, (PackedLinear, PackedConv2d))]
    # neither temporal layers nor time embeddings, which have a single row
    single = [p for name, p in unet.named_parameters() if "time_emb" in name and p.ndim == 2]
    wanted = packed_size(unet) - sum(x.numel() * x.element_size() for x in single)
    assert sum(x.numel() * x.element_size() for x in kept if x is not None) == wanted


@onednn
def test_hook_points_of_the_copy_see_and_change_the_same() -> None:
    unet, z, t, text = image(torch.float32)
    halved = Replace({"down_blocks.0.attentions.0.key": lambda key: key * 0.5})
    with torch.no_grad():
        ours, theirs = (record(u, HIDDENS, z, t, text, temporal=False, edit=halved) for u in (unet, packed(unet)))
    assert ours.keys() == theirs.keys()
    for name in ours:
        # float32 sums in another order, through a dozen layers
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_networks_that_onednn_does_not_compute_are_not_copied() -> None:
    double = tiny_unet()
    assert packed(double) is double
    with FakeTensorMode():
        fake = UNet(TINY)
        assert packed(fake) is fake
    meta = tiny_unet().to("meta")
    assert packed(meta) is meta


@onednn
def test_inversion_of_many_passes_takes_the_copy_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, z, _, text = image(torch.float32)
    made = list[UNet]()

    def noted(network: UNet) -> UNet:
        made.append(packed(network))
        return made[-1]

    monkeypatch.setattr(denoiser, "packed", noted)
    schedule = tiny_backbone().config.schedule

    def features(until: int, low_memory: bool) -> dict[str, Tensor]:
        steps = inversion_pairs(schedule, until=until)
        network = denoiser.Denoiser(unet, text, low_memory=low_memory).images(len(steps))
        return invert(network, z, steps, HIDDENS)

    features(denoiser.PACK_FROM - 1, low_memory=False)
    plain = features(denoiser.PACK_FROM, low_memory=True)
    assert not made
    quick = features(denoiser.PACK_FROM, low_memory=False)
    assert len(made) == 1
    for name in HIDDENS:
        # rounding grows over the passes
        torch.testing.assert_close(quick[name], plain[name], rtol=1e-3, atol=1e-4)


def test_the_copy_is_predicted_where_it_is_made() -> None:
    config = tiny_backbone().config

    def passes(method: MethodConfig, low_memory: bool) -> dict[str, int]:
        return predict(config, method, (4, 16, 16), low_memory=low_memory).passes

    many = replace(SHORT, inversion_timestep=denoiser.PACK_FROM, optimise_steps=0)
    extra = packed_size(UNet(config.unet))
    needed = passes(many, low_memory=False)
    assert extra < needed["inversion"] < extra + needed["denoising"]
    assert "inversion" not in passes(many, low_memory=True)
    assert "inversion" not in passes(replace(SHORT, optimise_steps=0), low_memory=False)
