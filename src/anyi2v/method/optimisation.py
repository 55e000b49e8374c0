"""Section 3.3: the latent is optimised so that later frames' features follow frame 1's inside the boxes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet, record
from anyi2v.config import MethodConfig
from anyi2v.errors import NumericsError
from anyi2v.method.alignment import Alignment, align, feature_map, reduce
from anyi2v.method.crops import Crops
from anyi2v.method.guard import all_finite, bad_errors, bad_map, failure, first_bad_layer, frames_text
from anyi2v.method.inversion import no_report
from anyi2v.taps import Pass, Tap, Taps, chain, no_taps


class Optimised(NamedTuple):
    """What the iterations of one denoising step gave."""

    latents: Float[Tensor, "1 f c h w"]
    losses: list[float]
    masks: Float[Tensor, "l o f y x"]
    """Masks of the last iteration, as crops."""


def alignment_gradient(
    unet: UNet,
    z: Float[Tensor, "1 f c h w"],
    timestep: int,
    text: Float[Tensor, "1 n d"],
    injection: Tap,
    crops: Crops,
    config: MethodConfig,
    generator: torch.Generator | None = None,
    fps: float | None = None,
    at: Pass | None = None,
    checkpoint: bool = False,
) -> tuple[Float[Tensor, "1 f c h w"], Float[Tensor, ""], Float[Tensor, "l o f y x"]]:
    """Gradient of the alignment loss with respect to `z`, the loss, and the masks.

    The pass uses the conditional text and ends at the last aligned point; nothing beyond it is computed. `at` is
    its place in the job, for messages. With `checkpoint`, layers are computed again on the way back instead of kept.

    Raises:
        NumericsError: an aligned feature, the loss or its gradient is not finite.
    """
    at = at or Pass("optimisation", timestep)
    z = z.detach().requires_grad_()
    seen = record(
        unet, config.align, z, timestep, text, fps=fps, window=config.window, edit=injection, checkpoint=checkpoint
    )
    found = {name: feature_map(name, seen[name]) for name in config.align}
    if not all_finite(*found.values()):
        # before the PCA, whose eigenvalue solver would fail without naming a cause
        again = partial(unet, z.detach(), timestep, text, fps=fps, window=config.window)
        first = first_bad_layer(again, injection)
        raise failure("an aligned feature", at, culprit=f"{bad_map(found, crops)}; {first}", dtype=unet.dtype)
    made = align_maps(list(found.values()), crops, config, generator)
    (gradient,) = torch.autograd.grad(made.loss, z)
    if not all_finite(made.loss, gradient):
        raise _loss_failure(made, gradient, at, config, crops, unet.dtype)
    return gradient, made.loss.detach(), made.masks


def align_maps(
    features: Sequence[Float[Tensor, "f _ _ _"]],
    crops: Crops,
    config: MethodConfig,
    generator: torch.Generator | None = None,
) -> Alignment:
    """The alignment of the maps of `config.align`, channels last, under all settings of `config`."""
    features = [reduce(x, config.pca_dim, solver=config.pca_solver, generator=generator) for x in features]
    return align(
        features,
        crops,
        [crops.maps(*x.shape[1:3]) for x in features],
        mask=config.mask,
        clustering=config.clustering,
        first_frame_mask=config.first_frame_mask,
        anchors=config.anchors,
        normalise=config.normalise,
    )


def optimise_latents(
    unet: UNet,
    z: Float[Tensor, "1 f c h w"],
    timestep: int,
    text: Float[Tensor, "1 n d"],
    injection: Tap,
    crops: Crops,
    config: MethodConfig,
    *,
    generator: torch.Generator | None = None,
    fps: float | None = None,
    step: int | None = None,
    taps: Taps = no_taps,
    checkpoint: bool = False,
    report: Callable[[int], object] = no_report,
) -> Optimised:
    """`config.iterations` AdamW steps on the latents of one timestep.

    `step` is the denoising step that they belong to; `taps` gives the tap of each pass, which acts after the
    injection. With `checkpoint`, layers are computed again on the way back, which takes time and saves memory.

    Raises:
        NumericsError: an aligned feature, the loss, its gradient or the updated latents are not finite.
    """
    losses, masks = [], torch.empty(0)
    z = z.detach().clone()
    optimiser = _adamw(z, config)
    for iteration in range(config.iterations):
        at = Pass("optimisation", timestep, step, iteration)
        edit = chain(injection, taps(at))
        gradient, loss, masks = alignment_gradient(
            unet, z, timestep, text, edit, crops, config, generator, fps, at, checkpoint
        )
        losses.append(loss.item())
        if config.optimiser_state == "iteration":
            optimiser = _adamw(z, config)
        before = z.clone()
        z.grad = gradient
        optimiser.step()
        if config.remove_update_mean:
            z -= (z - before).mean(dim=(-2, -1), keepdim=True)
        if not all_finite(z):
            raise failure("the updated latents", at, culprit=f"lr={config.lr:g}", dtype=unet.dtype)
        report(1)
    return Optimised(z, losses, masks)


def _loss_failure(
    made: Alignment, gradient: Tensor, at: Pass, config: MethodConfig, crops: Crops, dtype: torch.dtype
) -> NumericsError:
    if not all_finite(made.loss):
        return failure("the alignment loss", at, culprit=bad_errors(made.errors, config.align, crops), dtype=dtype)
    bad = frames_text(~gradient[0].isfinite().flatten(1).all(-1))
    return failure("the gradient of the alignment loss", at, culprit=f"{bad} of the latents", dtype=dtype)


def _adamw(z: Tensor, config: MethodConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW([z], lr=config.lr, weight_decay=config.weight_decay)
