"""Guidance, with and without injection."""

import pytest
import torch

from anyi2v.method.denoising import predict_noise

from .networks import inputs, tiny_unet

UNET = tiny_unet()


def job() -> tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]:
    z, t, positive = inputs()
    return z, t, inputs(seed=9)[2], positive


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_scale_of_one_or_less_makes_one_conditional_pass(scale: float) -> None:
    z, t, negative, positive = job()
    batches = []
    hook = UNET.register_forward_pre_hook(lambda module, args: batches.append(len(args[2])))
    out = predict_noise(UNET, z, t, negative, positive, scale)
    hook.remove()
    assert batches == [1]
    assert torch.equal(out, UNET(z, t, positive))


@torch.no_grad()
@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_guidance_is_uncond_plus_scale_times_the_difference(scale: float) -> None:
    z, t, negative, positive = job()
    uncond, cond = UNET(z, t, negative), UNET(z, t, positive)
    expected = uncond + scale * (cond - uncond)
    # float64; one batch of two may take other kernels than two batches of one
    torch.testing.assert_close(predict_noise(UNET, z, t, negative, positive, scale), expected)
    identity = predict_noise(UNET, z, t, negative, positive, scale, lambda name, x: x)
    torch.testing.assert_close(identity, expected)


@torch.no_grad()
def test_injection_acts_on_the_conditional_pass_only() -> None:
    z, t, negative, positive = job()

    def edit(name: str, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if name == "conv_in" else x

    uncond, cond = UNET(z, t, negative), UNET(z, t, positive, tap=edit)
    out = predict_noise(UNET, z, t, negative, positive, 3.0, edit)
    torch.testing.assert_close(out, uncond + 3 * (cond - uncond))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "together"), [(1.0, True), (3.0, True), (3.0, False)])
def test_features_below_the_finest_level_are_taken_over(scale: float, together: bool) -> None:
    z, t, negative, positive = job()
    plain = predict_noise(UNET, z, t, negative, positive, scale, together=together)
    deep: dict[str, torch.Tensor] = {}
    computed = predict_noise(UNET, z, t, negative, positive, scale, together=together, deep=deep)
    assert torch.equal(computed, plain)
    kept = dict(deep)
    names: list[str] = []

    def note(name: str, x: torch.Tensor) -> torch.Tensor:
        names.append(name)
        return x

    # the same latents again: what is taken over is what would be computed
    again = predict_noise(UNET, z, t, negative, positive, scale, together=together, deep=deep, tap=note)
    torch.testing.assert_close(again, plain)
    assert not any(name.startswith(("mid_block", "up_blocks.0", "down_blocks.1")) for name in names)
    # another timestep: an approximation, of the finest level's own features
    other = predict_noise(UNET, z, t + 20, negative, positive, scale, together=together, deep=deep)
    assert not torch.equal(other, plain)
    assert deep == kept
