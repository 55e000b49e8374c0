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
    hook = UNET.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
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
