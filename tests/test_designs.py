"""What fills the temporal slots: LaVie's rotary attention, VideoCrafter2's convolutions and transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anyi2v
from anyi2v.backbone.config import (
    BackboneConfig,
    FactorisedConfig,
    MotionConfig,
    RotaryConfig,
    ScheduleConfig,
    UNetConfig,
)
from anyi2v.backbone.lavie import buckets, rotate
from anyi2v.backbone.networks import Backbone
from anyi2v.backbone.unet import UNet
from anyi2v.diffusion import inversion_pairs, level, sampling_timesteps, transport
from anyi2v.errors import CheckpointError, HookError, InputError
from anyi2v.tracks import Track, Tracks
from weights_converters import lavie, videocrafter
from weights_converters.keymap import make_plan

from .networks import SHORT, TINY, tiny_backbone, tiny_unet

ROTARY = dataclasses.replace(TINY, norm_over="clip", temporal=RotaryConfig(heads=2, rotary_dims=4))
FACTORISED = dataclasses.replace(
    TINY,
    head_dim=4,
    linear_projection=True,
    fps_embedding=True,
    even_grids=True,
    temporal=FactorisedConfig(head_dim=4, groups=4, stem_heads=3, stem_head_dim=4),
)
SHRINKING = ScheduleConfig(curve="scaled_linear", final_alpha_one=False, spacing="uniform", x0_scale=0.7)


def random_unet(config: UNetConfig) -> UNet:
    """In float64, with all that is zero at the start made to count."""
    unet = tiny_unet(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "temporal" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter + 0.2 * noise)
    return unet


UNETS = {"rotary": random_unet(ROTARY), "factorised": random_unet(FACTORISED)}
CONVOLUTIONS = {name for name in UNETS["factorised"].temporal_names if ".resnets." in name}


class Everything:
    """A tap that notes the batch of every hook point, costly ones too if asked to."""

    def __init__(self, costly: bool):
        self.costly = costly
        self.batches: dict[str, int] = {}

    def __call__(self, name: str, x: Tensor) -> Tensor:
        self.batches[name] = len(x)
        return x

    def wants(self, name: str) -> bool:
        return self.costly


@torch.no_grad()
@pytest.mark.parametrize(
    "unet",
    [
        random_unet(TINY),
        random_unet(dataclasses.replace(TINY, attention=(False, True, True))),
        random_unet(dataclasses.replace(TINY, attention=(False, False, False))),
        *UNETS.values(),
    ],
    ids=["motion", "text from the second level on", "text in the middle only", *UNETS],
)
def test_one_clip_serves_several_texts(unet: UNet) -> None:
    """What comes before the first text is computed once, whether taps watch or not."""
    z, t, _ = inputs()
    text = torch.randn(3, 5, TINY.context_dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = unet(z, t, text, fps=8)
    torch.testing.assert_close(out, unet(z.expand(3, *z.shape[1:]), t, text, fps=8))
    for costly in (False, True):
        tap = Everything(costly)
        watched = unet(z, t, text, fps=8, tap=tap)
        torch.testing.assert_close(watched, out)
        assert costly or torch.equal(watched, out)
        names, batches = list(tap.batches), list(tap.batches.values())
        begin = next(i for i, name in enumerate(names) if name.endswith(".cross.key"))
        assert batches == [1] * begin + [3] * (len(names) - begin)
        assert names[begin - 1].endswith(".cross.query")


def inputs(frames: int = 4, seed: int = 0) -> tuple[Tensor, int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, frames, 4, 8, 12, generator=generator, dtype=torch.float64)
    return z, 301, torch.randn(1, 5, TINY.context_dim, generator=generator, dtype=torch.float64)


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def frames_alone(unet: UNet, z: Tensor, t: int, text: Tensor) -> Tensor:
    return torch.cat([unet(frame, t, text, fps=8, temporal=False) for frame in z.split(1, dim=1)], dim=1)


def test_without_temporal_layers_videocrafters_frames_are_images_but_lavies_are_not() -> None:
    z, t, text = inputs()
    factorised, rotary = UNETS["factorised"], UNETS["rotary"]
    assert difference(factorised(z, t, text, fps=8, temporal=False), frames_alone(factorised, z, t, text)) < 1e-12
    # its norms take their statistics over all frames, whatever is switched off
    assert difference(rotary(z, t, text, temporal=False), frames_alone(rotary, z, t, text)) > 0.01


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_only_the_convolutions_know_the_order_of_frames(order: list[int], seed: int) -> None:
    unet, (z, t, text) = UNETS["factorised"], inputs(seed=seed)
    attentions = set(unet.temporal_names) - CONVOLUTIONS
    plain = unet(z, t, text, fps=8, temporal=attentions)
    assert difference(unet(z[:, order], t, text, fps=8, temporal=attentions), plain[:, order]) < 1e-12
    if order != sorted(order):
        plain = unet(z, t, text, fps=8)
        assert difference(unet(z[:, order], t, text, fps=8), plain[:, order]) > 1e-3


@pytest.mark.parametrize("kind", UNETS)
def test_every_temporal_layer_can_be_switched_by_itself(kind: str) -> None:
    unet, (z, t, text) = UNETS[kind], inputs()
    names = unet.temporal_names
    on, off = unet(z, t, text, fps=8), unet(z, t, text, fps=8, temporal=False)
    assert difference(unet(z, t, text, fps=8, temporal=names), on) == 0
    assert difference(unet(z, t, text, fps=8, temporal=()), off) == 0
    for name in names:
        one = unet(z, t, text, fps=8, temporal=[name])
        assert difference(one, off) > 1e-6, name
        assert difference(unet(z, t, text, fps=8, temporal=set(names) - {name}), on) > 1e-6, name
    with pytest.raises(HookError, match="temporal"):
        unet(z, t, text, fps=8, temporal=["up_blocks.0.nothing"])


def test_places_of_the_temporal_layers() -> None:
    names = UNETS["factorised"].temporal_names
    # levels with attention: 0 and 1; one layer down, two up; the middle has two ResBlocks and one transformer
    assert len(CONVOLUTIONS) == 3 * 1 + 3 * 2 + 2
    assert len(names) - len(CONVOLUTIONS) == 1 + 2 * 1 + 2 * 2 + 1
    assert names[0] == "stem_temporal"
    assert len(UNETS["rotary"].temporal_names) == 2 * 1 + 2 * 2 + 1


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(2, 9), shift=st.integers(0, 7), dims=st.sampled_from([2, 4, 6]), seed=st.integers(0, 99))
def test_rotated_products_depend_on_the_distance_of_frames(frames: int, shift: int, dims: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)
    # the same vectors in every frame
    turned = [rotate(x.expand(frames + shift, 1, 8), dims) for x in (query[0], key[0])]
    scores = torch.einsum("inc,jnc->ij", *turned)
    # the waves are computed in float32
    assert difference(scores[shift:, shift:], scores[:frames, :frames]) < 1e-5
    assert difference(turned[0].norm(dim=-1), query.norm().expand(frames + shift, 1)) < 1e-6
    assert torch.equal(turned[0][..., dims:], query[0].expand(frames + shift, 1, 8)[..., dims:])


@given(frames=st.integers(1, 80))
def test_buckets_are_symmetric_monotonous_and_all_within_the_table(frames: int) -> None:
    table = buckets(frames, 32, 32)
    assert table.min() >= 0
    assert table.max() < 32
    assert torch.equal(table, table.T + 16 * (torch.ones_like(table).triu(1) - torch.ones_like(table).tril(-1)))
    assert (table[0].diff()[1:] >= 0).all()
    assert table.diagonal().eq(0).all()
    near = min(frames, 8)
    assert table[:near, 0].tolist() == list(range(near))


@settings(max_examples=20, deadline=None)
@given(stride=st.sampled_from([1, 5, 10, 20, 40]), until=st.sampled_from([201, 401, 601]), seed=st.integers(0, 99))
def test_a_shrinking_image_is_inverted_exactly_under_constant_noise(stride: int, until: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    z = start
    steps = inversion_pairs(SHRINKING, until=until, stride=stride)
    for at, to in ((step.at, step.to) for step in steps):
        z = transport(z, noise, at, to)
    assert difference(z, start) > 0.1
    for at, to in ((step.at, step.to) for step in reversed(steps)):
        z = transport(z, noise, to, at)
    assert difference(z, start) < 1e-10


def test_the_image_shrinks_to_its_scale_and_noise_is_as_ever() -> None:
    plain = dataclasses.replace(SHRINKING, x0_scale=1.0)
    for t, factor in ((-1, 1.0), (0, 1.0), (399, 0.7), (999, 0.7)):
        ours, theirs = level(SHRINKING, t), level(plain, t)
        assert ours.noise == theirs.noise
        assert ours.signal == pytest.approx(factor * theirs.signal, rel=1e-12)


def test_uniform_spacing_goes_on_to_the_end_of_the_schedule() -> None:
    assert sampling_timesteps(SHRINKING, 25) == sampling_timesteps(ScheduleConfig(), 25)
    thirty = sampling_timesteps(SHRINKING, 30)
    assert len(thirty) == 31
    assert thirty[0] == 991
    with pytest.raises(InputError, match="starts at timestep 1000"):
        sampling_timesteps(SHRINKING, 1000)


def test_frame_rate_is_asked_for_and_counts() -> None:
    unet, (z, t, text) = UNETS["factorised"], inputs()
    assert difference(unet(z, t, text, fps=8), unet(z, t, text, fps=24)) > 1e-6
    with pytest.raises(InputError, match="fps"):
        unet(z, t, text)
    assert difference(UNETS["rotary"](z, t, text, fps=8), UNETS["rotary"](z, t, text)) == 0


def test_grids_that_cannot_be_halved_are_refused_where_the_original_fails() -> None:
    z, t, text = inputs()
    with pytest.raises(InputError, match="multiples of 4"):
        UNETS["factorised"](z[..., :10], t, text, fps=8)
    assert UNETS["rotary"](z[..., :9, :11], t, text).shape == (1, 4, 4, 8, 11)


@pytest.mark.parametrize("config", [TINY, ROTARY, FACTORISED, dataclasses.replace(TINY, temporal=None)])
def test_configurations_survive_json(config: UNetConfig) -> None:
    whole = BackboneConfig(name="x", unet=config, schedule=SHRINKING)
    assert BackboneConfig.from_json(whole.to_json()) == whole


def test_older_files_describe_motion_modules() -> None:
    data = json.loads(BackboneConfig(name="x").to_json())
    del data["unet"]["temporal"]["kind"]
    assert BackboneConfig.from_json(json.dumps(data)).unet.temporal == MotionConfig()
    data["unet"]["temporal"]["kind"] = "newer"
    with pytest.raises(CheckpointError, match="newer"):
        BackboneConfig.from_json(json.dumps(data))


def backbone_of(config: UNetConfig) -> Backbone:
    """A random backbone of that kind in float32."""
    backbone = tiny_backbone()
    whole = dataclasses.replace(backbone.config, unet=config, schedule=SHRINKING)
    return dataclasses.replace(backbone, config=whole, unet=random_unet(config).float())


@pytest.mark.parametrize("config", [ROTARY, FACTORISED], ids=["rotary", "factorised"])
def test_the_method_runs_on_wide_frames_whose_maps_patches_do_not_divide(config: UNetConfig) -> None:
    backbone = backbone_of(config)
    tracks = Tracks(40, 24, (Track("ball", ((2.0, 3.0, 14.0, 15.0), (22.0, 6.0, 34.0, 18.0))),))
    method = dataclasses.replace(SHORT, patch=3, eta=0.5)
    image = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(0))
    result = anyi2v.animate(backbone, image, "a red ball", tracks, config=method)
    assert result.video.shape == (4, 3, 24, 40)
    assert result.video.isfinite().all()
    assert result.losses
    other = anyi2v.animate(backbone, image, "a red ball", tracks, config=method, fps=24)
    assert (difference(result.video, other.video) > 1e-6) == config.fps_embedding
    assert other.fps == 24


def test_sizes_are_checked_before_any_work() -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        anyi2v.animate(backbone_of(FACTORISED), torch.rand(3, 24, 36), "a red ball", Tracks(36, 24), config=SHORT)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published file."""
    path = Path(__file__).parent / "manifests" / "video" / f"{name}.json"
    return {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}


PUBLISHED = {
    "channels": (320, 640, 1280, 1280),
    "attention": (True, True, True, False),
}


def shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in UNet(config).state_dict().items()}


def test_lavies_published_unet_is_filled_exactly() -> None:
    theirs = manifest("lavie_base_unet")
    config = UNetConfig(norm_over="clip", temporal=RotaryConfig())
    plan = make_plan(theirs, lavie.UNET)
    assert not any(plan.problems(shapes(config)).values())
    # sixteen copies of the rotary frequencies are all that is left out
    assert len(plan.report.renamed) == 830 - 16
    assert plan.report.renamed.keys() | plan.report.dropped.keys() == theirs.keys()
    assert len(set(plan.report.renamed.values())) == 830 - 16


def test_videocrafters_published_file_is_filled_exactly() -> None:
    theirs = manifest("videocrafter2_full")
    config = UNetConfig(
        context_dim=1024,
        head_dim=64,
        linear_projection=True,
        fps_embedding=True,
        even_grids=True,
        temporal=FactorisedConfig(),
    )
    networks = BackboneConfig(name="x", unet=config, text=videocrafter.TEXT)
    counts, used = {}, set()
    for part in ("unet", "vae", "text"):
        plan = make_plan(theirs, videocrafter.rules(theirs, part))
        with torch.device("meta"):
            network = getattr(anyi2v.backbone.networks.build(networks), part)
        targets = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        assert not any(plan.problems(targets).values()), plan.problems(targets)
        counts[part] = len(plan.report.renamed)
        used |= set(plan.report.renamed)
        assert plan.report.renamed.keys() | plan.report.dropped.keys() == theirs.keys()
    assert counts == {"unet": 1484, "vae": 248, "text": 292}
    # schedules, and what the text tower does not need
    assert len(theirs) - len(used) == 2039 - 1484 - 248 - 292
