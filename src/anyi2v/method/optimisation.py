"""Section 3.3: the latent is optimised so that later frames' features follow frame 1's inside the boxes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet, record
from anyi2v.config import MethodConfig
from anyi2v.errors import NumericsError
from anyi2v.method.alignment import align, feature_map, reduce
from anyi2v.method.crops import Crops
from anyi2v.method.inversion import no_report
from anyi2v.taps import Tap


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
) -> tuple[Float[Tensor, "1 f c h w"], Float[Tensor, ""], Float[Tensor, "l o f y x"]]:
    """Gradient of the alignment loss with respect to `z`, the loss, and the masks.

    The pass uses the conditional text and ends at the last aligned point; nothing beyond it is computed.

    Raises:
        NumericsError: an aligned feature is not finite.
    """
    z = z.detach().requires_grad_()
    seen = record(unet, config.align, z, timestep, text, fps=fps, window=config.window, edit=injection)
    features = [
        reduce(_finite(name, seen[name], timestep), config.pca_dim, solver=config.pca_solver, generator=generator)
        for name in config.align
    ]
    maps = [crops.maps(*x.shape[1:3]) for x in features]
    loss, masks = align(
        features,
        crops,
        maps,
        mask=config.mask,
        clustering=config.clustering,
        first_frame_mask=config.first_frame_mask,
        anchors=config.anchors,
        normalise=config.normalise,
    )
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient, loss.detach(), masks


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
    report: Callable[[int], object] = no_report,
) -> Optimised:
    """`config.iterations` AdamW steps on the latents of one timestep.

    Raises:
        NumericsError: an aligned feature, the loss or its gradient is not finite.
    """
    losses, masks = [], torch.empty(0)
    z = z.detach().clone()
    optimiser = _adamw(z, config)
    for iteration in range(config.iterations):
        gradient, loss, masks = alignment_gradient(unet, z, timestep, text, injection, crops, config, generator, fps)
        losses.append(loss.item())
        if not (loss.isfinite() & gradient.isfinite().all()):
            raise NumericsError(
                f"the alignment loss or its gradient is not finite (timestep {timestep}, iteration {iteration}, "
                f"loss {losses[-1]}); try float32 or a lower learning rate than {config.lr}"
            )
        if config.optimiser_state == "iteration":
            optimiser = _adamw(z, config)
        before = z.clone()
        z.grad = gradient
        optimiser.step()
        if config.remove_update_mean:
            z -= (z - before).mean(dim=(-2, -1), keepdim=True)
        report(1)
    return Optimised(z, losses, masks)


def _finite(name: str, x: Tensor, timestep: int) -> Float[Tensor, "f h w c"]:
    """The feature map, checked before the PCA, whose eigenvalue solver would fail without naming a cause."""
    x = feature_map(name, x)
    if not x.isfinite().all():
        raise NumericsError(f"{name} is NaN or infinite at timestep {timestep}; try float32 or a lower learning rate")
    return x


def _adamw(z: Tensor, config: MethodConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW([z], lr=config.lr, weight_decay=config.weight_decay)
