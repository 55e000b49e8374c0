"""Optimisation of the latents, so that later frames' features match frame 1's inside the boxes (Section 3.3)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.errors import InputError
from anyi2v.execution.grad_modes import own_modes
from anyi2v.guard import all_finite, failure, frames_text
from anyi2v.method.alignment import Alignment, feature_map, without_masks
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import Crops
from anyi2v.method.guard import bad_errors, bad_map
from anyi2v.method.inversion import no_report
from anyi2v.method.objective import Objective
from anyi2v.taps import Pass, Tap


class Optimised(NamedTuple):
    """Result of the iterations before one denoising step."""

    latents: Float[Tensor, "1 f c h w"]
    losses: list[float]
    masks: Float[Tensor, "l o f y x"]
    """Masks of the last iteration, as crops; empty if the objective has none."""


@own_modes
def alignment_gradient(
    denoiser: Denoiser,
    z: Float[Tensor, "1 f c h w"],
    step: Step,
    objective: Objective,
    crops: Crops,
    tap: Tap,
    iteration: int = 0,
) -> tuple[Float[Tensor, "1 f c h w"], Alignment]:
    """Compute the gradient of the objective with respect to `z`, and the alignment, detached from its graph.

    The pass uses the prompt's text and the edits of `tap`. The gradient is not checked to be finite, because that would
    synchronise with a GPU.

    Raises:
        InputError: the loss does not depend on the latents.
        NumericsError: a feature is not finite.
    """
    z = z.detach().requires_grad_()
    seen = denoiser.features(objective.points, z, step, tap=tap, iteration=iteration)
    features = {name: feature_map(name, seen[name]) for name in objective.points}
    if not all_finite(*features.values()):
        # before the PCA, whose eigenvalue solver would fail without naming a cause
        at = Pass("optimisation", step.t, step.index, iteration)
        culprit = f"{bad_map(features, crops)}; {denoiser.culprit()}"
        raise failure("an aligned feature", at, culprit=culprit, dtype=denoiser.unet.dtype)
    made = objective(features, crops)
    if isinstance(made, Tensor):
        made = without_masks(made)
    if not made.loss.requires_grad:
        raise InputError("the objective's loss does not depend on the features, so it cannot move the latents")
    (gradient,) = torch.autograd.grad(made.loss, z)
    return gradient, made._replace(loss=made.loss.detach())


@own_modes
def optimise_latents(
    denoiser: Denoiser,
    z: Float[Tensor, "1 f c h w"],
    step: Step,
    objective: Objective,
    crops: Crops,
    tap: Tap,
    config: MethodConfig,
    report: Callable[[int], object] = no_report,
) -> Optimised:
    """Run `config.iterations` AdamW updates on the latents of one denoising step.

    Raises:
        InputError: the loss does not depend on the latents.
        NumericsError: a feature, the loss, its gradient or the updated latents are not finite.
    """
    losses: list[Tensor] = []
    masks = torch.empty(0)
    z = z.detach().clone()
    optimiser = _adamw(z, config)
    for iteration in range(config.iterations):
        gradient, made = alignment_gradient(denoiser, z, step, objective, crops, tap, iteration)
        losses.append(made.loss)
        masks = made.masks
        if config.optimiser_state == "iteration":
            optimiser = _adamw(z, config)
        before = z.clone()
        z.grad = gradient
        optimiser.step()
        if config.remove_update_mean:
            z -= (z - before).mean(dim=(-2, -1), keepdim=True)
        if not all_finite(made.loss, gradient, z):
            what, culprit = _first_failure(made, gradient, objective, crops, config)
            at = Pass("optimisation", step.t, step.index, iteration)
            raise failure(what, at, culprit=culprit, dtype=denoiser.unet.dtype)
        report(1)
    return Optimised(z, [loss.item() for loss in losses], masks)


def _first_failure(
    made: Alignment, gradient: Tensor, objective: Objective, crops: Crops, config: MethodConfig
) -> tuple[str, str]:
    """Name the first value of an update that is not finite, and its cause."""
    if not all_finite(made.loss):
        return "the alignment loss", bad_errors(made.errors, objective.points, crops)
    if not all_finite(gradient):
        bad = frames_text(~gradient[0].isfinite().flatten(1).all(-1))
        return "the gradient of the alignment loss", f"{bad} of the latents"
    return "the updated latents", f"lr={config.lr:g}"


def _adamw(z: Tensor, config: MethodConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW([z], lr=config.lr, weight_decay=config.weight_decay)
