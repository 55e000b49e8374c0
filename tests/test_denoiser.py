"""Guidance, with and without injection."""

from typing import Any

import pytest
import torch

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.unet import record
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import CLEAN, Step, level, noise_from_v
from anyi2v.method.config import MethodConfig
from anyi2v.taps import Tap, no_tap, no_taps

from .networks import inputs, tiny_unet

UNET = tiny_unet()


def job() -> tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]:
    z, t, positive = inputs()
    return z, t, inputs(seed=9)[2], positive


def denoiser(negative: torch.Tensor, positive: torch.Tensor, scale: float, **options: Any) -> Denoiser:
    low_memory, taps = options.pop("low_memory", False), options.pop("taps", no_taps)
    config = MethodConfig(guidance_scale=scale, inject_steps=0, **options)
    return Denoiser(UNET, positive, negative, config, low_memory=low_memory, taps=taps)


def step(t: int, index: int = 0) -> Step:
    """The levels do not matter to the network."""
    return Step(index, t, CLEAN, CLEAN)


def predicted(z: torch.Tensor, t: int, *text_and_scale: Any, tap: Tap = no_tap) -> torch.Tensor:
    return denoiser(*text_and_scale)(z, step(t), tap=tap)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_scale_of_one_or_less_makes_one_conditional_pass(scale: float) -> None:
    z, t, negative, positive = job()
    batches = []
    hook = UNET.register_forward_pre_hook(lambda module, args: batches.append(len(args[2])))
    out = predicted(z, t, negative, positive, scale)
    hook.remove()
    assert batches == [1]
    assert torch.equal(out, UNET(z, t, positive))


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_v_is_turned_into_noise(scale: float) -> None:
    z, t, negative, positive = job()
    schedule, config = ScheduleConfig(prediction="v"), MethodConfig(guidance_scale=scale, inject_steps=0)
    v = predicted(z, t, negative, positive, scale)
    found = Denoiser(UNET, positive, negative, config, schedule=schedule)(z, step(t))
    assert torch.equal(found, noise_from_v(v, z, level(schedule, t)))
    assert not torch.allclose(found, v)


@torch.no_grad()
def test_v_of_images_is_turned_into_noise() -> None:
    z, t, _, positive = job()
    z, schedule = z[:, :1], ScheduleConfig(prediction="v")
    v = Denoiser(UNET, positive).images()(z, t)
    found = Denoiser(UNET, positive, schedule=schedule).images()(z, t)
    assert torch.equal(found, noise_from_v(v, z, level(schedule, t)))


@torch.no_grad()
@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_guidance_is_uncond_plus_scale_times_the_difference(scale: float) -> None:
    z, t, negative, positive = job()
    uncond, cond = UNET(z, t, negative), UNET(z, t, positive)
    expected = uncond + scale * (cond - uncond)
    # float64; one batch of two may take other kernels than two batches of one
    torch.testing.assert_close(predicted(z, t, negative, positive, scale), expected)
    identity = predicted(z, t, negative, positive, scale, tap=lambda name, x: x)
    torch.testing.assert_close(identity, expected)


@torch.no_grad()
def test_injection_acts_on_the_conditional_pass_only() -> None:
    z, t, negative, positive = job()

    def edit(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if name == "conv_in" else x

    uncond, cond = UNET(z, t, negative), UNET(z, t, positive, tap=edit)
    out = predicted(z, t, negative, positive, 3.0, tap=edit)
    torch.testing.assert_close(out, uncond + 3 * (cond - uncond))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "low_memory"), [(1.0, False), (3.0, False), (3.0, True)])
def test_features_below_the_finest_level_are_taken_over(scale: float, low_memory: bool) -> None:
    z, t, negative, positive = job()
    plain = denoiser(negative, positive, scale, low_memory=low_memory)(z, step(t))
    names: list[str] = []

    def note(name: str, x: torch.Tensor) -> torch.Tensor:
        names.append(name)
        return x

    sharing = denoiser(
        negative, positive, scale, low_memory=low_memory, deep_every=3, taps=lambda at: note if at.step else no_tap
    )
    assert torch.equal(sharing(z, step(t)), plain)
    # the same latents again: what is taken over is what would be computed
    torch.testing.assert_close(sharing(z, step(t, 1)), plain)
    assert not any(name.startswith(("mid_block", "up_blocks.0", "down_blocks.1")) for name in names)
    # another timestep: an approximation, of the finest level's own features
    other = sharing(z, step(t + 20, 2))
    assert not torch.equal(other, plain)
    assert not any(name.startswith("mid_block") for name in names)
    # the fourth step computes its own again
    exact = denoiser(negative, positive, scale, low_memory=low_memory)(z, step(t + 20))
    torch.testing.assert_close(sharing(z, step(t + 20, 3)), exact)
    assert not torch.equal(other, exact)


@torch.no_grad()
def test_each_prompt_has_edits_of_its_own() -> None:
    z, t, negative, positive = job()
    up, down = (lambda name, x, by=by: x + by if name == "conv_in" else x for by in (1, -1))
    expected = UNET(z, t, negative, tap=down) + 3 * (UNET(z, t, positive, tap=up) - UNET(z, t, negative, tap=down))
    out = denoiser(negative, positive, 3.0)(z, step(t), tap=up, negative_tap=down)
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_without_guidance_the_edit_acts_on_the_only_pass() -> None:
    z, t, negative, positive = job()

    def edit(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if name == "conv_in" else x

    assert torch.equal(predicted(z, t, negative, positive, 1.0, tap=edit), UNET(z, t, positive, tap=edit))


@pytest.mark.parametrize("low_memory", [False, True])
def test_layers_are_recomputed_in_the_backward_pass_where_memory_is_low(low_memory: bool) -> None:
    z, t, negative, positive = job()
    z.requires_grad_()
    calls: list[int] = []
    layer = UNET.get_submodule("up_blocks.0.resnets.0")
    hook = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    seen = denoiser(negative, positive, 1.0, low_memory=low_memory).features(["up_blocks.1.resnets.0"], z, step(t))
    (gradient,) = torch.autograd.grad(seen["up_blocks.1.resnets.0"].square().sum(), z)
    hook.remove()
    assert len(calls) == (2 if low_memory else 1)
    exact = record(UNET, ["up_blocks.1.resnets.0"], z, t, positive)["up_blocks.1.resnets.0"]
    torch.testing.assert_close(gradient, torch.autograd.grad(exact.square().sum(), z)[0])
