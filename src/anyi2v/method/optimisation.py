"""Section 3.3: the latent is optimised so that later frames' features follow frame 1's inside the boxes."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyi2v.backbone.layers import hooked
from anyi2v.backbone.unet import UNet, record
from anyi2v.config import MethodConfig
from anyi2v.errors import NumericsError
from anyi2v.grad_modes import own_modes
from anyi2v.method.alignment import Alignment, align, feature_map, reduce
from anyi2v.method.crops import Crops
from anyi2v.method.guard import all_finite, bad_errors, bad_map, failure, first_bad_layer, frames_text
from anyi2v.method.inversion import no_report
from anyi2v.method.parts import align_in_parts
from anyi2v.taps import Pass, Tap, Taps, chain, no_tap, no_taps

GRAPH_FROM = 8
"""Iterations of a job from which on a GPU gains time by recording a pass and replaying it."""
Reader = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""The aligned features, in the order of `config.align`, of latents, timesteps and text."""


class Optimised(NamedTuple):
    """What the iterations of one denoising step gave."""

    latents: Float[Tensor, "1 f c h w"]
    losses: list[float]
    masks: Float[Tensor, "l o f y x"]
    """Masks of the last iteration, as crops."""


@own_modes
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
    reader: Reader | None = None,
) -> tuple[Float[Tensor, "1 f c h w"], Alignment]:
    """Gradient of the alignment loss with respect to `z`, and the alignment, without its graph.

    Whether the gradient is finite is not asked, as the host would have to wait for a GPU. The pass uses the
    conditional text and ends at the last aligned point; nothing beyond it is computed. `at` is its place in the job,
    for messages. With `checkpoint`, layers are computed again on the way back instead of kept. `reader` is
    `graphed_reader` of the same arguments, and then makes the pass.

    Raises:
        NumericsError: an aligned feature is not finite.
    """
    at = at or Pass("optimisation", timestep)
    z = z.detach().requires_grad_()
    if reader is None:
        reader = partial(_read, unet, injection, config, fps, checkpoint)
    seen = reader(z, torch.full((1,), timestep, device=z.device), text)
    found = {name: feature_map(name, x) for name, x in zip(config.align, seen, strict=True)}
    if not all_finite(*found.values()):
        # before the PCA, whose eigenvalue solver would fail without naming a cause
        again = partial(unet, z.detach(), timestep, text, fps=fps, window=config.window)
        first = first_bad_layer(again, injection)
        raise failure("an aligned feature", at, culprit=f"{bad_map(found, crops)}; {first}", dtype=unet.dtype)
    made = align_maps(list(found.values()), crops, config, generator)
    (gradient,) = torch.autograd.grad(made.loss, z)
    return gradient, made._replace(loss=made.loss.detach())


def graphed_reader(
    unet: UNet,
    z: Float[Tensor, "1 f c h w"],
    text: Float[Tensor, "1 n d"],
    injection: Tap,
    config: MethodConfig,
    fps: float | None = None,
) -> Reader | None:
    """The pass to the aligned features and back as CUDA graphs, for latents like `z`; None unless these are on a GPU.

    None as well for a network whose modules have hooks, which would run only while it is recorded.

    Started kernel by kernel from Python, a pass takes twice as long as its kernels. What the backward pass needs stays
    allocated as long as the reader lives. To record takes as long as two iterations.
    """
    if z.device.type != "cuda" or any(map(hooked, unet.modules())):
        return None
    read = partial(_read, unet, injection, config, fps, False)
    samples = (z.detach().clone().requires_grad_(), torch.zeros(1, dtype=torch.long, device=z.device), text.clone())
    with warnings.catch_warnings():
        # the first pass runs on a stream of its own, as it has to
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        graphs = torch.cuda.make_graphed_callables(read, samples, num_warmup_iters=1)
    return cast(Reader, graphs)


def _read(
    unet: UNet,
    injection: Tap,
    config: MethodConfig,
    fps: float | None,
    checkpoint: bool,
    z: Float[Tensor, "1 f c h w"],
    timesteps: Int[Tensor, " 1"],
    text: Float[Tensor, "1 n d"],
) -> tuple[Tensor, ...]:
    seen = record(
        unet, config.align, z, timesteps, text, fps=fps, window=config.window, edit=injection, checkpoint=checkpoint
    )
    return tuple(seen[name] for name in config.align)


def align_maps(
    features: Sequence[Float[Tensor, "f _ _ _"]],
    crops: Crops,
    config: MethodConfig,
    generator: torch.Generator | None = None,
) -> Alignment:
    """The alignment of the maps of `config.align`, channels last, under all settings of `config`."""
    features = [reduce(x, config.pca_dim, solver=config.pca_solver, generator=generator) for x in features]
    settings = ("mask", "mask_margin", "clustering", "first_frame_mask", "anchors", "normalise")
    options: Any = {name: getattr(config, name) for name in settings}
    if len(crops.parts) > 1:
        return align_in_parts(features, crops, **options)
    return align(features, crops, [crops.maps(*x.shape[1:3]) for x in features], **options)


@own_modes
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
    reader: Reader | None = None,
    report: Callable[[int], object] = no_report,
) -> Optimised:
    """`config.iterations` AdamW steps on the latents of one timestep.

    `step` is the denoising step that they belong to; `taps` gives the tap of each pass, which acts after the
    injection. With `checkpoint`, layers are computed again on the way back, which takes time and saves memory.
    A `reader`, see `graphed_reader`, is used where `taps` do not watch.

    Raises:
        NumericsError: an aligned feature, the loss, its gradient or the updated latents are not finite.
    """
    losses: list[Tensor] = []
    masks = torch.empty(0)
    z = z.detach().clone()
    optimiser = _adamw(z, config)
    for iteration in range(config.iterations):
        at = Pass("optimisation", timestep, step, iteration)
        watch = taps(at)
        gradient, made = alignment_gradient(
            unet,
            z,
            timestep,
            text,
            chain(injection, watch),
            crops,
            config,
            generator,
            fps,
            at,
            checkpoint,
            reader if watch is no_tap else None,
        )
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
            raise _update_failure(made, gradient, at, config, crops, unet.dtype)
        report(1)
    return Optimised(z, [loss.item() for loss in losses], masks)


def _update_failure(
    made: Alignment, gradient: Tensor, at: Pass, config: MethodConfig, crops: Crops, dtype: torch.dtype
) -> NumericsError:
    if not all_finite(made.loss):
        return failure("the alignment loss", at, culprit=bad_errors(made.errors, config.align, crops), dtype=dtype)
    if not all_finite(gradient):
        bad = frames_text(~gradient[0].isfinite().flatten(1).all(-1))
        return failure("the gradient of the alignment loss", at, culprit=f"{bad} of the latents", dtype=dtype)
    return failure("the updated latents", at, culprit=f"lr={config.lr:g}", dtype=dtype)


def _adamw(z: Tensor, config: MethodConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW([z], lr=config.lr, weight_decay=config.weight_decay)
