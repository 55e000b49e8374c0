"""The UNet: slots, temporal switches, sizes, dtypes, and the snapshot of its hook points."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.backbone.call import Call
from anyi2v.backbone.config import BackboneConfig, MotionConfig, UNetConfig
from anyi2v.backbone.slots import Design, Site, Slot, Temporal
from anyi2v.backbone.unet import UNet, points
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.hook_points import skip
from anyi2v.taps import At, Recorder, chain

from .networks import TINY, inputs, tiny_unet

UNET = tiny_unet()
SNAPSHOT = Path(__file__).parent / "snapshots" / "points.json"
BACKBONES = {
    "animatediff-v1": UNetConfig(norm_over="clip", temporal=MotionConfig(max_frames=24)),
    "animatediff-v2": UNetConfig(temporal=MotionConfig(mid=True)),
    "animatediff-v3": UNetConfig(),
    "micro": read_config("micro").unet,
}


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, replace(TINY, temporal=MotionConfig(2, 4, 8, mid=True))])
def test_without_temporal_layers_a_video_is_its_frames_one_by_one(config: UNetConfig) -> None:
    unet = tiny_unet(config)
    z, t, text = inputs(batch=2)
    video = unet(z, t, text, temporal=False)
    for f in range(z.shape[1]):
        # other batch sizes may take other convolution kernels; float64 leaves 1e-12
        torch.testing.assert_close(video[:, f : f + 1], unet(z[:, f : f + 1], t, text, temporal=False))


@torch.no_grad()
def test_clip_wide_norms_mix_frames_even_without_temporal_layers() -> None:
    unet = tiny_unet(replace(TINY, norm_over="clip"))
    z, t, text = inputs()
    video = unet(z, t, text, temporal=False)
    assert (video[:, :1] - unet(z[:, :1], t, text, temporal=False)).abs().max() > 1e-3


@torch.no_grad()
def test_temporal_layers_off_equal_a_network_without_them() -> None:
    z, t, text = inputs()
    flat = tiny_unet(replace(TINY, temporal=None))
    flat.load_state_dict({k: v for k, v in UNET.state_dict().items() if "temporals" not in k})
    assert torch.equal(UNET(z, t, text, temporal=False), flat(z, t, text))
    assert not flat.temporal_names


@torch.no_grad()
def test_a_collection_leaves_only_the_named_temporal_layers_on() -> None:
    z, t, text = inputs()
    names = UNET.temporal_names
    assert torch.equal(UNET(z, t, text, temporal=names), UNET(z, t, text))
    assert torch.equal(UNET(z, t, text, temporal=[]), UNET(z, t, text, temporal=False))
    alone = UNET(z, t, text, temporal=names[:1])
    assert not torch.equal(alone, UNET(z, t, text)) and not torch.equal(alone, UNET(z, t, text, temporal=[]))


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(3, 13), st.integers(3, 13))
def test_any_size_comes_back(batch: int, frames: int, height: int, width: int) -> None:
    z, t, text = inputs(batch, frames, height, width)
    out = UNET(z, t, text)
    assert out.shape == z.shape and out.isfinite().all()


@torch.no_grad()
def test_batch_entries_do_not_meet_and_may_have_their_own_timesteps() -> None:
    z, _, text = inputs(batch=2)
    both = UNET(z, torch.tensor([5, 700]), text)
    for b, t in enumerate((5, 700)):
        torch.testing.assert_close(both[b : b + 1], UNET(z[b : b + 1], t, text[b : b + 1]))


@torch.no_grad()
def test_half_precision_networks_return_the_dtype_of_the_latents() -> None:
    z, t, text = inputs()
    out = tiny_unet().to(torch.bfloat16)(z.float(), t, text.float())
    assert out.dtype == torch.float32
    # bfloat16 has eight bits; the network amplifies their rounding a few times
    assert (out - UNET(z, t, text)).norm() / UNET(z, t, text).norm() < 0.1


def test_too_many_frames_are_refused_only_where_positions_are_needed() -> None:
    z, t, text = inputs(frames=9)
    with pytest.raises(InputError, match=r"9 frames.*at most 8"):
        UNET(z, t, text)
    assert UNET(z, t, text, temporal=False).shape == z.shape


class Doubling(Temporal):
    """Doubles what passes, so that each slot's place shows in the output."""

    def mix(self, x: Tensor, call: Call) -> Tensor:
        return 2 * x


class EverySlot(Design):
    """A design that fills all four kinds of slot."""

    def stem(self, site: Site) -> Slot:
        return Doubling(site.name)

    def after_resnet(self, site: Site) -> Slot:
        return Doubling(site.name)

    def in_transformer(self, site: Site) -> Slot:
        return Doubling(site.name)

    def after_layer(self, site: Site) -> Slot:
        return Doubling(site.name)


@torch.no_grad()
def test_a_design_can_fill_every_slot_and_each_can_be_switched_alone() -> None:
    unet = UNet(replace(TINY, temporal=None), EverySlot()).double().eval()
    z, t, text = inputs()
    names = unet.temporal_names
    kinds = ("stem_temporal", "resnets.0.temporal", "attentions.0.temporal", "temporals.0")
    assert all(any(name.endswith(kind) for name in names) for kind in kinds)
    assert len(set(names)) == len(names)
    off = unet(z, t, text, temporal=False)
    for name in names:
        assert not torch.equal(unet(z, t, text, temporal=[name]), off), name


def test_unet_code_knows_no_backbone_by_name() -> None:
    folder = Path(__file__).parents[1] / "src" / "anyi2v" / "backbone"
    for file in ("unet.py", "blocks.py", "attention.py", "call.py", "slots.py"):
        text = (folder / file).read_text().lower()
        assert not any(name in text for name in ("animatediff", "lavie", "videocrafter")), file


def test_full_size_parameter_counts() -> None:
    """859 520 964 for SD-1.5's UNet and 417.1 M for v3's motion modules (published counts)."""
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    counts = {"spatial": 0, "temporal": 0}
    for name, parameter in unet.named_parameters():
        counts["temporal" if "temporals" in name else "spatial"] += parameter.numel()
    assert counts == {"spatial": 859_520_964, "temporal": 417_137_600}


@pytest.mark.parametrize("name", BACKBONES)
def test_hook_points_are_those_of_the_snapshot(name: str) -> None:
    """Names and shapes are public. Rewrite the file with `python -m tests.test_unet` when they change on purpose."""
    recorded = json.loads(SNAPSHOT.read_text())[name]
    assert {k: list(v) for k, v in named_points(BACKBONES[name]).items()} == recorded


def named_points(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        unet = UNet(config)
    return {name: point.shape for name, point in points(unet, frames=16, height=64, width=64).items()}


@torch.no_grad()
def test_an_edit_of_a_skip_connection_does_not_reach_the_encoder() -> None:
    """All of them in the order in which the encoder made them; the up blocks alone see the edit."""
    z, t, text = inputs()
    count = len(TINY.channels) * (TINY.layers + 1)
    encoder = Recorder(["mid_block.resnets.1", *(name for name in points(UNET) if name.startswith("down_blocks"))])
    entering = Recorder(skip(n) for n in range(count))
    plain = UNET(z, t, text, tap=chain(encoder, entering))
    assert torch.equal(plain, UNET(z, t, text))
    outputs = [f"down_blocks.0.temporals.{j}" for j in range(TINY.layers)]
    for n, name in enumerate(outputs, 1):
        assert torch.equal(entering.seen[skip(n)], encoder.seen[name])
    for n in range(count):
        again = Recorder(encoder.names)
        edited = UNET(z, t, text, tap=chain(At([skip(n)], lambda name, x: x + 1), again))
        assert all(torch.equal(again.seen[name], encoder.seen[name]) for name in encoder.names)
        assert (edited - plain).abs().max() > 1e-6, n


@torch.no_grad()
def test_skip_connections_of_one_clip_under_several_texts_are_seen_for_each() -> None:
    z, t, text = inputs(batch=2)
    recorder = Recorder([skip(0)])
    out = UNET(z[:1], t, text, tap=recorder)
    assert recorder.seen[skip(0)].shape[0] == len(out) == 2


def test_architectures_survive_their_json() -> None:
    for name, config in BACKBONES.items():
        backbone = BackboneConfig(name=name, unet=config)
        assert BackboneConfig.from_json(backbone.to_json()) == backbone


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    found = {name: named_points(config) for name, config in BACKBONES.items()}
    SNAPSHOT.write_text(json.dumps(found, indent=0).replace("\n", " ").replace("], ", "],\n") + "\n")
