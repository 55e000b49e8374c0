"""SparseCtrl (Guo et al. 2023, arXiv:2311.16933): a trained encoder adds residuals for a few given frames to the UNet.

Reference: guoyww/AnimateDiff at e92bd56, pipelines/pipeline_animation.py and models/unet.py.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.sparse_control import SparseControlNetwork, adding, masked
from anyi2v.backbone.unet import UNet
from anyi2v.checkpoints.header import DEFAULT_CONTROL
from anyi2v.checkpoints.sparse_control import load_control, read_control_config
from anyi2v.comparators.injected import Injected
from anyi2v.comparators.settings import SparseCtrlSettings
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.errors import InputError
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.taps import Tap, chain, no_tap
from anyi2v.tracks import Tracks


class SparseCtrl(SparseCtrlSettings):
    """SparseCtrl with its settings. It controls the content of frames, not motion, so tracks have no effect."""

    def check(self, config: MethodConfig, unet: UNet, tracks: Tracks, prompt: str, frames: int) -> None:
        """Raise InputError for inputs that cannot work, or CheckpointError for an unusable file, before any work."""
        known_frames(self, frames)
        control = read_control_config(self.control or DEFAULT_CONTROL)
        try:
            control.check_fits(unet.config)
        except InputError as error:
            hint = "; it is the default, give another with --sparsectrl.control" if self.control is None else ""
            raise InputError(f"sparsectrl: {error}{hint}") from error

    def footprint(self, config: MethodConfig) -> Footprint:
        """Return the control network's size. Its passes need less memory than the UNet's; nothing is optimised."""
        with torch.device("meta"):
            network = SparseControlNetwork(read_control_config(self.control or DEFAULT_CONTROL))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return Footprint(replace(config, optimise_steps=0), parameters=parameters)

    def start(self, job: Job, denoiser: Denoiser) -> "SparseCtrlRun":
        """Prepare a job: load the network and encode the condition. Raises the errors of `check`."""
        self.check(job.config, job.backbone.unet, job.tracks, job.prompt, job.frames)
        return SparseCtrlRun(self, job, denoiser)


class SparseCtrlRun(Injected):
    """A job with SparseCtrl."""

    def __init__(self, method: SparseCtrl, job: Job, denoiser: Denoiser):
        super().__init__(job, denoiser, inject=method.injection)
        backbone, image = job.backbone, job.image.to(job.backbone.device)
        self.scale = method.scale
        self.control = load_control(method.control or DEFAULT_CONTROL, device=backbone.device, dtype=backbone.dtype)
        self.control.operators = backbone.operators
        if self.control.config.condition == "rgb":
            with job.stages.stage("encode"), torch.no_grad():
                image = backbone.vae.encode(2 * image[None] - 1)[0]
        self.condition = masked(dict.fromkeys(known_frames(method, job.frames), image), job.frames)

    def tap(self, step: Step) -> Tap:
        """The injection and the residuals."""
        return chain(self.injection(step), self._adding(step, self.denoiser.positive))

    def negative_tap(self, step: Step) -> Tap:
        """The residuals for the negative prompt, if guidance makes a pass with it."""
        negative = self.denoiser.negative
        return no_tap if negative is None or self.denoiser.guidance(step) <= 1 else self._adding(step, negative)

    @torch.no_grad()
    def _adding(self, step: Step, text: Float[Tensor, "1 l d"]) -> Tap:
        """Compute the residuals once per step; they do not depend on the latents."""
        return adding(self.control(self.condition, step.t, text, window=self.job.config.window), self.scale)


def known_frames(settings: SparseCtrlSettings, count: int) -> list[int]:
    """Return the 0-based frames with a condition in a video of `count` frames.

    Raises:
        InputError: a frame is not in the video; the message names the first one.
    """
    if not settings.frames:
        raise InputError("sparsectrl: frames is empty; name at least one frame that the condition is given for")
    for frame in settings.frames:
        if not 1 <= abs(frame) <= count:
            raise InputError(
                f"sparsectrl: frames has {frame}, but the video has {count} frames: 1 to {count}, or -1 to -{count} "
                "from the end"
            )
    return [frame - 1 if frame > 0 else count + frame for frame in settings.frames]
