"""Inversion with the temporal layers off, up to the pass whose features are taken."""

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.unet import record
from anyi2v.diffusion import inversion_pairs, transport
from anyi2v.errors import HookError, InputError
from anyi2v.method.inversion import invert

from .networks import HIDDENS, QUERIES, inputs, tiny_unet

UNET = tiny_unet()
SCHEDULE = ScheduleConfig()
NAMES = (*HIDDENS, *QUERIES)


@pytest.mark.parametrize(("until", "stride", "passes"), [(201, 1, 201), (201, 50, 5), (1, 1, 1)])
def test_number_of_passes(until: int, stride: int, passes: int) -> None:
    z, _, text = inputs(frames=1, height=4, width=4)
    counts = []
    hook = UNET.register_forward_pre_hook(lambda module, args: counts.append(args[1]))
    reports: list[int] = []
    invert(UNET, z, text, SCHEDULE, NAMES, until=until, stride=stride, report=reports.append)
    hook.remove()
    assert len(counts) == passes == sum(reports)
    assert counts[-1] == until


def test_features_are_those_of_a_plain_pass_at_the_inverted_latent() -> None:
    z, _, text = inputs(frames=1)
    features = invert(UNET, z, text, SCHEDULE, NAMES, until=21, stride=5)
    latent: Tensor = z
    with torch.no_grad():
        for t, at, to in inversion_pairs(SCHEDULE, until=21, stride=5)[:-1]:
            latent = transport(latent, UNET(latent, t, text, temporal=False), at, to)
        expected = record(UNET, NAMES, latent, 21, text, temporal=False)
    assert features.keys() == expected.keys()
    for name, feature in features.items():
        assert torch.equal(feature, expected[name])
        assert not feature.requires_grad


def test_temporal_layers_play_no_part() -> None:
    z, _, text = inputs(frames=1)
    other = tiny_unet()
    for name, parameter in other.named_parameters():
        if "temporal" in name:
            parameter.data.mul_(2)
    ours, theirs = (invert(u, z, text, SCHEDULE, NAMES, until=3) for u in (UNET, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in NAMES)


def test_messages() -> None:
    z, _, text = inputs(frames=1)
    with pytest.raises(InputError, match="stride 7 does not lead"):
        invert(UNET, z, text, SCHEDULE, NAMES, until=201, stride=7)
    with pytest.raises(HookError, match="closest"):
        invert(UNET, z, text, SCHEDULE, ["up_blocks.1.query"], until=1)
