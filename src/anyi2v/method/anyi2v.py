"""The AnyI2V method: injection of the condition's features, and latent optimisation in the early steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet, points
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.guard import all_finite, bad_layer, failure
from anyi2v.hook_points import check_names
from anyi2v.job import Job, LossRecord, Run
from anyi2v.method.alignment import feature_map
from anyi2v.method.boxes import job_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import video_masks
from anyi2v.method.features import condition_features
from anyi2v.method.injection import Injection, check_injectable
from anyi2v.method.noise import carried, stream
from anyi2v.method.objective import FeatureAlignment, Objective
from anyi2v.method.optimisation import optimise_latents
from anyi2v.taps import Tap, no_tap


@dataclass(frozen=True)
class AnyI2V:
    """The paper's method, with the settings of the job's `MethodConfig`."""

    objective: Objective | None = None
    """The loss that the optimisation minimises; None: the paper's, `FeatureAlignment`."""

    def start(self, job: Job, denoiser: Denoiser) -> "AnyI2VRun":
        """Compute the features of the condition image, unless the job provides them.

        Raises:
            HookError: a point does not exist, or cannot be injected or aligned.
            NumericsError: a feature is not finite.
        """
        objective = self.objective or FeatureAlignment(job.config, stream(job.seed, "pca"))
        check_aligned(objective, job.backbone.unet)
        return AnyI2VRun(job, denoiser, objective)


class AnyI2VRun(Run):
    """One job under AnyI2V."""

    def __init__(self, job: Job, denoiser: Denoiser, objective: Objective):
        config = job.config
        self.job, self.denoiser, self.objective = job, denoiser, objective
        self.crops = None
        if job.tracks.objects and config.optimise_steps > 0:
            self.crops = job_crops(job.tracks, config, job.backbone.config.vae.factor).to(job.backbone.device)
        self.features = job_features(job, denoiser)
        self.injection = injection(self.features, config)
        self.crop_masks = torch.empty(0)
        steps = min(config.optimise_steps, config.steps) if self.crops is not None and config.iterations else 0
        self.optimised_steps, self._report = steps, job.stages.counter("optimisation", steps * config.iterations)

    def initial_latents(self, noise: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "1 f c h w"]:
        """Return the noise, carried along the tracks if the settings say so."""
        return carried(noise, self.job.tracks) if self.job.config.initial_noise == "carried" else noise

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Optimise the latents in the first steps (Section 3.3)."""
        if step.index >= self.optimised_steps or self.crops is None:
            return z
        with self.job.stages.stage("optimisation"):
            done = optimise_latents(
                self.denoiser, z, step, self.objective, self.crops, self.injection, self.job.config, self._report
            )
        new = (LossRecord(step.index, step.t, k, loss) for k, loss in enumerate(done.losses))
        self.losses = (*self.losses, *new)
        self.crop_masks = done.masks
        return done.latents

    def tap(self, step: Step) -> Tap:
        """Return the injection in the first steps (Section 3.2)."""
        return self.injection if step.index < self.job.config.inject_steps else no_tap

    def masks(self) -> list[Float[Tensor, "f h w"]]:
        """Return the masks of the last optimised step, averaged over the layers."""
        if self.crops is None or not self.crop_masks.numel():
            return []
        height, width = self.job.image.shape[1:]
        return video_masks(self.crop_masks, self.crops, (height, width))


def job_features(job: Job, denoiser: Denoiser) -> Mapping[str, Tensor]:
    """Return the features of the condition image, computed unless the job provides them.

    Raises:
        NumericsError: a feature is not finite.
    """
    if job.features is None:
        return condition_features(job, denoiser, job.image[None])
    if not all_finite(*job.features.values()):
        raise failure("a feature that was passed in", "inversion", culprit=bad_layer(job.features))
    return job.features


def injection(features: Mapping[str, Tensor], config: MethodConfig) -> Tap:
    """Return the tap that injects the features; `no_tap` if the settings inject nothing."""
    acts = config.inject_steps + config.optimise_steps > 0
    if not (acts and (config.inject_hidden or config.inject_query or config.share_kv)):
        return no_tap
    return Injection(
        features,
        hiddens=config.inject_hidden,
        queries=config.inject_query,
        share_kv=config.share_kv,
        debias=config.debias,
        patch=config.patch,
    )


def check_settings(config: MethodConfig, unet: UNet) -> None:
    """Raise HookError for a layer that the UNet does not have, or that cannot be injected or aligned."""
    known = points(unet)
    for setting in ("inject_hidden", "inject_query", "share_kv"):
        check_names(getattr(config, setting), known, setting)
    check_injectable(config.inject_hidden, config.inject_query, config.share_kv)
    check_aligned(FeatureAlignment(config), unet)


def check_aligned(objective: Objective, unet: UNet) -> None:
    """Raise HookError for a point of the objective that the UNet lacks, or that is not a spatial feature map."""
    known = points(unet)
    check_names(objective.points, known, "align")
    for name in objective.points:
        feature_map(name, torch.empty(known[name].shape))
