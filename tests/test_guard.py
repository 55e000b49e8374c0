"""NaN put into each place of a job by a tap: found there and then, and named."""

from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from anyi2v.backbone.unet import points
from anyi2v.backbone.vae import AutoencoderKL
from anyi2v.errors import NumericsError
from anyi2v.guard import all_finite, bad_layer, failure, first_bad_layer, frames_text
from anyi2v.job import Result
from anyi2v.method.boxes import make_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.guard import bad_errors, bad_map
from anyi2v.pipeline import animate
from anyi2v.taps import Pass, Tap, Taps, no_tap, no_taps
from anyi2v.tracks import Track, Tracks

from .networks import HIDDENS, QUERIES, SHORT, inputs, tiny_backbone, tiny_unet

BACKBONE = tiny_backbone()
LEFT = Track("left", ((0.0, 0.0, 7.0, 16.0),))
RIGHT = Track("right", ((9.0, 0.0, 16.0, 16.0),))
TRACKS = Tracks(16, 16, (LEFT, RIGHT))
POINTS = cache(points)
"""Listing them takes half of the time of a job this small, and gives the same for each."""
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


def run(taps: Taps = no_taps, config: MethodConfig = SHORT) -> Result:
    with patch("anyi2v.method.anyi2v.points", POINTS):
        return animate(BACKBONE, IMAGE, "a red ball", TRACKS, config=config, taps=taps)


def poison(where: Pass, layer: str, index: tuple[int | slice, ...], value: float = torch.nan) -> Taps:
    """Puts `value` into one layer of one pass, at `index` of the tensor that its tap sees."""

    def edit(name: str, x: Tensor) -> Tensor:
        if name != layer:
            return x
        x = x.clone()
        x[index] = value
        return x

    return lambda at: edit if at == where else no_tap


FRAME_3 = (slice(None), 2)
ALL = (slice(None),)
PLACES: dict[str, tuple[Pass, str, tuple[int | slice, ...], str]] = {
    "inversion": (
        Pass("inversion", 3),
        "mid_block.resnets.0.hidden",
        ALL,
        "the latent .* in stage inversion, timestep 3: first in layer mid_block.resnets.0.hidden, frame 1;",
    ),
    "recorded feature": (
        Pass("inversion", 5),
        HIDDENS[1],
        ALL,
        f"a recorded feature .* stage inversion, timestep 5: layer {HIDDENS[1]}; first in layer {HIDDENS[1]}, frame 1;",
    ),
    "recorded feature of an earlier layer": (
        Pass("inversion", 5),
        "conv_in",
        ALL,
        f"a recorded feature .*timestep 5: layer {HIDDENS[0]}; first in layer conv_in, frame 1;",
    ),
    "aligned feature": (
        Pass("optimisation", 501, 1, 1),
        QUERIES[1],
        (0, 2, 4, 0),  # the left edge
        f"an aligned feature .* stage optimisation, step 1 .timestep 501., iteration 1: layer {QUERIES[1]}, frame 3, "
        f"object 1 .'left'.; first in layer {QUERIES[1]}, frame 3;",
    ),
    "first denoising step": (
        Pass("denoising", 751, 0),
        "up_blocks.0.temporals.0",
        FRAME_3,
        "the latents .* stage denoising, step 0 .timestep 751.: first in layer up_blocks.0.temporals.0, frame 3;",
    ),
    "inside of a temporal layer": (
        Pass("denoising", 501, 1),
        "up_blocks.0.temporals.0.0.value",
        ALL,
        "step 1 .timestep 501.: first in layer up_blocks.0.temporals.0.0.value;",
    ),
    "last denoising step, both passes in one batch": (
        Pass("denoising", 1, 3),
        "down_blocks.1.attentions.0.value",
        (1, 0),
        "step 3 .timestep 1.: first in layer down_blocks.1.attentions.0.value, frame 1;",
    ),
}


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("name", PLACES)
def test_every_pass_is_guarded(name: str, value: float) -> None:
    where, layer, index, message = PLACES[name]
    with pytest.raises(NumericsError, match=message):
        run(poison(where, layer, index, value))


def test_taps_see_every_pass_of_a_job_and_change_nothing_by_watching() -> None:
    seen: list[Pass] = []

    def watch(at: Pass) -> Tap:
        seen.append(at)
        return lambda name, x: x

    assert torch.equal(run(watch).video, run().video)
    steps = ((751, 0), (501, 1), (251, 2), (1, 3))
    expected = [Pass("inversion", t) for t in range(1, 6)]
    for t, i in steps:
        expected += [Pass("optimisation", t, i, k) for k in range(SHORT.iterations if i < SHORT.optimise_steps else 0)]
        expected.append(Pass("denoising", t, i))
    assert seen == expected


def test_a_loss_that_overflows_names_the_object() -> None:
    """The features are finite, their square is not."""
    taps = poison(Pass("optimisation", 751, 0, 0), QUERIES[1], (0, 1, slice(None), -1), 1e30)
    config = replace(SHORT, mask="none", pca_dim=None, align=QUERIES[::-1])
    with pytest.raises(NumericsError, match=rf"the alignment loss .*layer {QUERIES[1]}, object 2 .'right'., frame 2;"):
        run(taps, config)


def test_a_gradient_that_overflows_names_the_frames() -> None:
    def edit(name: str, x: Tensor) -> Tensor:
        return x + (0 * x).sqrt() if name == "conv_in" else x  # the derivative of the root is infinite at zero

    with pytest.raises(NumericsError, match=r"the gradient .*step 1 .*iteration 0: frames 1, 2, 3, 4 of the latents;"):
        run(lambda at: edit if at.stage == "optimisation" and at.step == 1 else no_tap)


def test_an_update_that_overflows_is_reported() -> None:
    with pytest.raises(NumericsError, match=r"the updated latents .*step 0 .*iteration 0: lr=3e\+37; lower lr"):
        run(config=replace(SHORT, lr=3e37, weight_decay=10.0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_autoencoder_is_guarded(value: float) -> None:
    encode, decode = AutoencoderKL.encode, AutoencoderKL.decode
    with (
        patch.object(AutoencoderKL, "encode", lambda self, x: encode(self, x).fill_(value)),
        pytest.raises(NumericsError, match=r"the latent of the condition image .* stage encode;"),
    ):
        run()

    def broken(self: AutoencoderKL, z: Tensor, *, chunk: int = 8) -> Tensor:
        video = decode(self, z, chunk=chunk)
        video[2, 0, 0, 0] = value  # infinity would be clamped to white
        return video

    with (
        patch.object(AutoencoderKL, "decode", broken),
        pytest.raises(NumericsError, match=r"the video .* stage decode: frame 3;"),
    ):
        run()


def test_the_text_is_guarded() -> None:
    with (
        patch.object(type(BACKBONE), "encode_text", lambda self, prompts: torch.full((2, 6, 8), torch.nan)),
        pytest.raises(NumericsError, match=r"the states of the prompt .* stage text;"),
    ):
        run()


def test_the_sampler_without_a_bad_layer() -> None:
    """Finite predictions far apart overflow in the guidance."""
    config = replace(SHORT, guidance_scale=1e39, optimise_steps=0)
    with pytest.raises(
        NumericsError, match=r"step 0 .*every layer is finite; the values overflowed after the network;"
    ):
        run(config=config)


def test_features_of_an_earlier_job_are_guarded() -> None:
    features = {name: x.clone() for name, x in run().features.items()}
    features[QUERIES[0]][0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NumericsError, match=f"a feature that was passed in .*: layer {QUERIES[0]};"):
        animate(BACKBONE, IMAGE, "a red ball", TRACKS, config=SHORT, features=features)


def test_advice_follows_the_dtype() -> None:
    assert "compute in float32 instead of float16" in str(failure("x", "decode", dtype=torch.float16))
    assert "lower lr" in str(failure("x", "decode"))


def test_a_healthy_pass_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tensors there are, one value is read."""
    read, plain = [], Tensor.__bool__

    def counted(self: Tensor) -> bool:
        read.append(self)
        return plain(self)

    monkeypatch.setattr(Tensor, "__bool__", counted)
    assert all_finite(*[torch.zeros(3)] * 5)
    assert len(read) == 1
    assert not all_finite(torch.zeros(2), torch.tensor([0.0, torch.inf]))
    assert all_finite()


def test_objects_are_those_whose_boxes_read_a_bad_cell() -> None:
    far = Tracks(32, 32, (Track("a", ((0.0, 0.0, 8.0, 8.0),)), Track("b", ((24.0, 24.0, 32.0, 32.0),)))).resample(2)
    crops = make_crops(far, (32, 32), 2)
    for cell, text in (((1, 1), "object 1 ('a')"), ((30, 30), "object 2 ('b')"), ((1, 30), "in no object's box")):
        x = torch.zeros(2, 32, 32, 3)
        x[1, *cell, 0] = torch.inf
        assert bad_map({"fine": torch.zeros(2, 4, 4, 3), "x": x}, crops) == f"layer x, frame 2, {text}"
    assert bad_layer({"fine": torch.zeros(1), "x": torch.tensor(torch.nan)}) == "layer x"
    errors = torch.zeros(1, 2, 2)
    assert "every object's error are finite" in bad_errors(errors, ("x",), crops)
    errors[0, 1, 1] = torch.inf
    assert bad_errors(errors, ("x",), crops) == "layer x, object 2 ('b'), frame 2"


def test_frames_are_numbered_from_one() -> None:
    assert frames_text(torch.tensor([True, False, True])) == "frames 1, 3"


@torch.no_grad()
def test_the_repeated_pass_has_the_same_edits() -> None:
    unet = tiny_unet()
    z, t, text = inputs()

    def edit(name: str, x: Tensor) -> Tensor:
        return x / 0 if name == "down_blocks.0.resnets.0.hidden" else x

    def again(tap: Tap) -> Tensor:
        return unet(z, t, text, tap=tap)

    assert first_bad_layer(again, edit) == "first in layer down_blocks.0.resnets.0.hidden, frames 1, 2, 3"
    assert "every layer is finite" in first_bad_layer(again)
