"""Recordings of Kmcode1/SG-I2V at 52977a2: the loss, its updates, the merge, and attention with frame 1's keys."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from anyi2v.backbone.config import UNetConfig
from anyi2v.comparators.frequencies import low_pass
from anyi2v.comparators.settings import SGI2VSettings
from anyi2v.comparators.sg_i2v import adamw, box_cells, loss, merged, resized, weight, with_first_keys
from anyi2v.tracks import Track, Tracks

from .comparators import Recorded, parametrize
from .recordings import relative


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = {"optimised": ("functions", "iterations"), "attention": ("functions", "recorded")}
    parametrize(metafunc, "sg_i2v", kinds)


def settings_of(function: Recorded) -> SGI2VSettings:
    meta = function.meta
    decay = meta["optimizer"]["weight_decay"]
    return SGI2VSettings(
        lr=meta["lr"], weight_decay=decay, sigma=meta["sigma"], d_s=meta["d_s"], stretch_first_box=True
    )


def tracks_of(function: Recorded) -> Tracks:
    objects = (
        Track(f"object {o}", tuple((x0, y0, x1, y1) for y0, x0, y1, x1 in boxes))
        for o, boxes in enumerate(function.meta["boxes in pixels [row0 col0 row1 col1]"])
    )
    return Tracks(8 * function.meta["w"], 8 * function.meta["h"], tuple(objects))


def features(function: Recorded, z: Tensor) -> list[Tensor]:
    """The recording's stand-in network: means over 2 x 2 cells through a linear layer and a tanh."""
    pooled = rearrange(z, "f c (h a) (w b) -> f h w c (a b)", a=2, b=2).mean(-1)
    return [function.tensors[f"offset{n}"] + torch.tanh(pooled @ function.tensors[f"map{n}"]) for n in (0, 1)]


def test_optimisation_equals_the_recorded_one(optimised: Recorded) -> None:
    """Limits 1e-5, of gradients relative, as suggested; every iteration begins at the recorded latents."""
    meta, x = optimised
    settings, grid = settings_of(optimised), (meta["h"], meta["w"])
    boxes = box_cells(tracks_of(optimised), grid)
    for cells, recorded in zip(boxes, meta["cells"], strict=True):
        for cell, (top, left, bottom, right) in zip(cells, recorded, strict=True):
            assert cell == (top, left, max(bottom, top + 1), max(right, left + 1))
    z = x["latents_in"].clone()
    optimiser = adamw(z, settings)
    for k in range(meta["iterations"]):
        start = z.detach().requires_grad_()
        maps = features(optimised, start)
        value = loss(resized(maps, grid), boxes, settings)
        assert value is not None and value.item() == pytest.approx(x[f"iter{k}.loss"].item(), abs=1e-5)
        gradients = torch.autograd.grad(value, [start, *maps])
        for name, gradient in zip(("grad", "feature0_grad", "feature1_grad"), gradients, strict=True):
            if f"iter{k}.{name}" in x:
                assert relative(gradient, x[f"iter{k}.{name}"]) <= 1e-5, name
        z.grad = gradients[0]
        optimiser.step()
        assert (z - x[f"iter{k}.latents"]).abs().max() <= 1e-5
        z.copy_(x[f"iter{k}.latents"])
    lpf = low_pass(grid, (meta["d_s"], meta["d_s"]), meta["order"])
    torch.testing.assert_close(lpf, x["lpf"], rtol=0, atol=1e-6)
    result = merged(z[None], x["latents_in"][None], settings)[0]
    torch.testing.assert_close(result, x["merged"], rtol=0, atol=1e-5)
    for name, recorded in x.items():
        if name.startswith("weight_"):
            rows, columns = map(int, name.removeprefix("weight_").split("x"))
            torch.testing.assert_close(weight((rows, columns), meta["sigma"]), recorded, rtol=0, atol=1e-6)


def test_features_equal_the_recorded_ones(attention: Recorded) -> None:
    """The plain attention goes on in the network; recorded layers have features beside it."""
    meta, x = attention
    assert ("feature" in x) == bool(meta["recorded"])
    if "feature" not in x:
        return
    hidden = x["hidden"].clone().requires_grad_()
    seen = {
        f"layer.{part}": rearrange(hidden @ x[f"to_{part[0]}.weight"].T, "f (h w) c -> 1 f h w c", h=meta["h"])
        for part in ("query", "key", "value")
    }
    config = UNetConfig(heads=meta["heads"])
    feature = with_first_keys(seen, "layer", config)
    torch.testing.assert_close(feature, x["feature"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((feature * x["cotangent"]).sum(), hidden)
    assert relative(gradient, x["hidden_grad"]) <= 1e-5
