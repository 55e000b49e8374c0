"""Inversion with the temporal layers off, up to the pass whose features are taken."""

from typing import Any

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.unet import UNet, record
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs, transport
from anyi2v.errors import HookError, InputError
from anyi2v.method.inversion import invert, round_trip

from .networks import HIDDENS, QUERIES, inputs, tiny_unet

UNET = tiny_unet()
SCHEDULE = ScheduleConfig()
NAMES = (*HIDDENS, *QUERIES)


def inverted(
    z: Tensor, text: Tensor, *, until: int, stride: int = 1, unet: UNet = UNET, **options: Any
) -> dict[str, Tensor]:
    """The features at `names`, by default `NAMES`."""
    steps = inversion_pairs(SCHEDULE, until=until, stride=stride)
    names = options.pop("names", NAMES)
    return invert(Denoiser(unet, text).images(len(steps)), z, steps, names, **options)


@pytest.mark.parametrize(("until", "stride", "passes"), [(201, 1, 201), (201, 50, 5), (1, 1, 1)])
def test_number_of_passes(until: int, stride: int, passes: int) -> None:
    z, _, text = inputs(frames=1, height=4, width=4)
    counts = []
    hook = UNET.register_forward_pre_hook(lambda module, args: counts.append(args[1]))
    reports: list[int] = []
    inverted(z, text, until=until, stride=stride, report=reports.append)
    hook.remove()
    assert len(counts) == passes == sum(reports)
    assert counts[-1] == until


def test_features_are_those_of_a_plain_pass_at_the_inverted_latent() -> None:
    z, _, text = inputs(frames=1)
    features = inverted(z, text, until=21, stride=5)
    latent: Tensor = z
    with torch.no_grad():
        for step in inversion_pairs(SCHEDULE, until=21, stride=5)[:-1]:
            latent = transport(latent, UNET(latent, step.t, text, temporal=False), step.at, step.to)
        expected = record(UNET, NAMES, latent, 21, text, temporal=False)
    assert features.keys() == expected.keys()
    for name, feature in features.items():
        assert torch.equal(feature, expected[name])
        assert not feature.requires_grad


def test_constant_noise_is_undone_by_sampling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one noise prediction for all timesteps DDIM and its inverse retrace the same line exactly."""
    z, _, text = inputs(frames=1)
    noise, seen = inputs(frames=1, seed=4)[0], []

    def constant(self: UNet, z: Tensor, t: int, text: Tensor, **options: object) -> Tensor:
        seen.append(z)
        return noise

    monkeypatch.setattr(UNet, "forward", constant)
    monkeypatch.setattr("anyi2v.denoiser.record", lambda unet, names, z, t, *rest, **options: {"latent": z})
    steps = inversion_pairs(SCHEDULE, until=201, stride=25)
    latent = inverted(z, text, until=201, stride=25)["latent"]
    assert len(seen) == len(steps) - 1 == 8
    # float64; the last pass sees the latent at the level of the timestep before
    torch.testing.assert_close(latent, transport(z, noise, steps[0].at, steps[-1].at), rtol=1e-12, atol=1e-12)
    for at, to in ((step.at, step.to) for step in reversed(steps[:-1])):
        latent = transport(latent, noise, to, at)
    torch.testing.assert_close(latent, z, rtol=1e-12, atol=1e-12)


def test_the_last_pass_ends_at_the_last_wanted_point() -> None:
    z, _, text = inputs(frames=1, height=4, width=4)
    ends, later = [], []
    hooks = [
        UNET.conv_out.register_forward_pre_hook(lambda *_: ends.append(1)),
        UNET.up_blocks[2].register_forward_pre_hook(lambda *_: later.append(1)),
    ]
    inverted(z, text, names=[HIDDENS[0]], until=5)
    for hook in hooks:
        hook.remove()
    # of five passes four give a noise prediction; the fifth ends in up block 1
    assert len(ends) == len(later) == 4


def test_temporal_layers_play_no_part() -> None:
    z, _, text = inputs(frames=1)
    other = tiny_unet()
    for name, parameter in other.named_parameters():
        if "temporal" in name:
            parameter.data.mul_(2)
    ours, theirs = (inverted(z, text, unet=u, until=3) for u in (UNET, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in NAMES)


def test_messages() -> None:
    z, _, text = inputs(frames=1)
    with pytest.raises(InputError, match="stride 7 does not lead"):
        inverted(z, text, until=201, stride=7)
    with pytest.raises(HookError, match="closest"):
        inverted(z, text, names=["up_blocks.1.query"], until=1)


def test_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact under a noise prediction that is the same for all timesteps; evaluated at the same ones both ways."""
    z, _, text = inputs(frames=1)
    noise, seen = inputs(frames=1, seed=4)[0], []

    def constant(self: UNet, z: Tensor, t: int, text: Tensor, **options: object) -> Tensor:
        seen.append(t)
        return noise

    monkeypatch.setattr(UNet, "forward", constant)
    # float64 rounding
    there = round_trip(Denoiser(UNET, text).images(), z, inversion_pairs(SCHEDULE, until=201, stride=50))
    torch.testing.assert_close(there, z, rtol=1e-12, atol=1e-12)
    assert seen == [1, 51, 101, 151, 201, 201, 151, 101, 51, 1]
