"""What must not change a bit of a job on the shipped backbones: watching it, and the modes of its caller."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import anyi2v
from anyi2v.backbone.networks import Backbone
from anyi2v.denoiser import PACK_FROM
from anyi2v.errors import HookError, InputError
from anyi2v.job import Result
from anyi2v.method.config import MethodConfig
from anyi2v.pipeline import animate, invert_images
from anyi2v.taps import Pass, Recorder, Replace, Stop, Tap, Taps, no_tap, no_taps
from anyi2v.tracks import Track, Tracks

NAMES = ("micro", "micro-lavie", "micro-vc2")
TRACKS = Tracks(64, 64, (Track("square", ((8.0, 18.0, 36.0, 46.0), (28.0, 18.0, 56.0, 46.0))),))
PROMPT = "a red square on a navy background"
STAGES = ("inversion", "optimisation", "denoising")


@cache
def backbone(name: str) -> Backbone:
    return anyi2v.load(name)


def image() -> Tensor:
    picture = 0.1 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    picture[0, 10:22, 5:17] += 0.8
    return picture


def config(name: str, **changes: Any) -> MethodConfig:
    own = MethodConfig.from_dict(backbone(name).config.method)
    short: dict[str, Any] = dict(steps=2, optimise_steps=1, iterations=1, inject_steps=1, inversion_stride=100)
    return replace(own, **(short | changes))


def job(name: str = "micro", taps: Taps = no_taps, **changes: Any) -> Result:
    return animate(backbone(name), image(), PROMPT, TRACKS, config=config(name, **changes), frames=2, taps=taps)


def same(ours: Result, theirs: Result) -> None:
    assert torch.equal(ours.video, theirs.video)
    assert all(torch.equal(ours.features[name], x) for name, x in theirs.features.items())


def identity(name: str, x: Tensor) -> Tensor:
    return x


def copied(name: str, x: Tensor) -> Tensor:
    return x.clone()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_watching_changes_no_bit(name: str, stage: str) -> None:
    """By a function, by a Recorder of all points, attention maps included, and by one that returns copies."""
    plain, points = job(name), list(anyi2v.points(backbone(name).unet))
    ways: list[Callable[[], Tap]] = [lambda: identity, lambda: Recorder(points), lambda: copied]
    for tap in ways:
        same(job(name, lambda at: tap() if at.stage == stage else no_tap), plain)  # noqa: B023


def test_watching_an_inversion_with_packed_weights_changes_no_bit() -> None:
    changes: dict[str, Any] = dict(inversion_timestep=PACK_FROM, inversion_stride=1, optimise_steps=0, steps=1)
    same(job(taps=lambda at: identity, **changes), job(**changes))


def test_watching_changes_no_bit_of_one_frame() -> None:
    unet = backbone("micro").unet
    z, text = torch.randn(1, 1, 4, 32, 32), backbone("micro").encode_text([PROMPT])
    with torch.no_grad():
        for temporal in (False, True):
            plain = unet(z, 101, text, temporal=temporal)
            for tap in (identity, copied):
                assert torch.equal(unet(z, 101, text, temporal=temporal, tap=tap), plain)


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_name_ends_the_job_before_the_pass(stage: str) -> None:
    for tap in (Recorder(["up_blocks.2.attention.0.query"]), Replace({"up_blocks.2.attention.0.query": torch.clone})):
        with pytest.raises(HookError, match=r"closest are up_blocks\.2\.attentions\.0\.query"):
            job(taps=lambda at: tap if at.stage == stage else no_tap)  # noqa: B023


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_says_what_a_stop_is_for(stage: str) -> None:
    def stop(name: str, x: Tensor) -> Tensor:
        raise Stop

    for tap in (stop, Recorder(["conv_in"], stop="point")):
        with pytest.raises(HookError, match=rf"raised Stop at conv_in in stage {stage}.*anyi2v\.record"):
            job(taps=lambda at: tap if at.stage == stage else no_tap)  # noqa: B023


def test_an_unknown_layer_is_named_with_its_setting() -> None:
    for setting in ("inject_hidden", "inject_query", "align"):
        changes: dict[str, Any] = {setting: ("up_blocks.9",)}
        with pytest.raises(HookError, match=f"^{setting}: unknown hook point 'up_blocks.9'"):
            job(**changes)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize(
    ("mode", "name"), [*((mode, "micro") for mode in MODES), *(("inference_mode", name) for name in NAMES[1:])]
)
def test_jobs_compute_the_same_in_every_mode(mode: str, name: str) -> None:
    """Also with the image, the features and the weights made inside of it."""
    plain = job(name)
    with MODES[mode]():
        inside = anyi2v.load(name)
        features = {key: x.clone() for key, x in plain.features.items()}
        options: dict[str, Any] = {"config": config(name), "frames": 2}
        for given in (None, features):
            video = animate(inside, image().clone(), PROMPT, TRACKS, features=given, **options).video
            assert torch.equal(video, plain.video)


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_images_are_inverted_the_same_in_every_mode(mode: str) -> None:
    def features() -> list[dict[str, Tensor]]:
        return invert_images(backbone("micro"), [image(), image().flip(2)], [PROMPT] * 2, config=config("micro"))

    plain = features()
    with MODES[mode]():
        for ours, theirs in zip(features(), plain, strict=True):
            assert all(torch.equal(ours[name], x) for name, x in theirs.items())
            assert not any(x.is_inference() for x in ours.values())


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_recording_reads_the_same_in_every_mode(mode: str) -> None:
    unet, text = backbone("micro").unet, backbone("micro").encode_text([PROMPT])
    z, names = torch.randn(1, 3, 4, 32, 32), config("micro").align
    plain = anyi2v.record(unet, names, z, 301, text)
    with MODES[mode]():
        seen = anyi2v.record(unet, names, z, 301, text)
    assert all(torch.equal(seen[name], plain[name]) for name in names)


def test_weights_that_autograd_cannot_save_are_an_error() -> None:
    made = anyi2v.load("micro")
    with torch.inference_mode():
        made.unet.conv_in.weight = torch.nn.Parameter(made.unet.conv_in.weight.clone(), requires_grad=False)
    with pytest.raises(InputError, match=r"created inside torch\.inference_mode"):
        animate(made, image(), PROMPT, TRACKS, config=config("micro"))


def test_another_default_dtype_is_an_error() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default dtype is torch\.float64.*set_default_dtype\(torch\.float32\)"):
            job()
        z, text = torch.randn(1, 8, 4, 32, 32, dtype=torch.float32), backbone("micro").encode_text([PROMPT])
        found = backbone("micro").unet(z, 301, text)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, backbone("micro").unet(z, 301, text))


def test_sizes_are_multiples_of_what_the_error_says() -> None:
    assert backbone("micro").config.multiple == 2
    picture = image()[:, :30, :26]
    video = animate(backbone("micro"), picture, PROMPT, TRACKS, config=config("micro"), frames=2).video
    assert video.shape[2:] == (30, 26)
    with pytest.raises(InputError, match="multiples of 2"):
        animate(backbone("micro"), picture[:, :29], PROMPT, TRACKS)


def test_passes_are_told_apart() -> None:
    """So that the tests above watch what they say."""
    seen = list[Pass]()
    job(taps=lambda at: seen.append(at) or no_tap)
    assert {at.stage for at in seen} == set(STAGES)
