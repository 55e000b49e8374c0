"""The denoising network bound to one job's text, guidance, frame rate, window, memory mode and taps.

Methods call the network only through `Denoiser`. This module alone decides how a pass is executed: as a CUDA graph,
from packed weights, with recomputed layers, or with deep features cached from an earlier step.
"""

import gc
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.backbone.unet import UNet, record
from anyi2v.diffusion import Step, guided, level, noise_from_v
from anyi2v.execution.graphs import Reader, graphed, graphed_reader
from anyi2v.execution.machine import release_memory
from anyi2v.execution.packed import packed
from anyi2v.guard import all_finite, bad_layer, failure, first_bad_layer
from anyi2v.method.config import MethodConfig
from anyi2v.taps import Pass, Recorder, Tap, Taps, chain, no_tap, no_taps

PACK_FROM = 64
"""Number of passes from which packing the weights pays off: packing costs about 5 passes and makes each a sixth
faster."""


def noise(
    output: Float[Tensor, "*shape"], z: Float[Tensor, "*shape"], t: int, schedule: ScheduleConfig
) -> Float[Tensor, "*shape"]:
    """Return the noise in `z` according to the UNet's output at timestep `t`."""
    return output if schedule.prediction == "epsilon" else noise_from_v(output, z, level(schedule, t))


class Denoiser:
    """Predicts the noise of a job's latents.

    Args:
        unet: the network.
        positive: text encoder states of the prompt, one per clip.
        negative: states of the negative prompt; not needed without guidance.
        config: only `guidance_scale`, `guidance_steps`, `deep_every`, `inject_steps` and `window` are used. Default:
            recipe "paper".
        schedule: the backbone's; only needed if its UNet predicts v.
        fps: frames per second, for a UNet that embeds the frame rate.
        low_memory: recompute layers in the backward pass, run the two guidance passes one after the other, and keep no
            packed copy of the weights.
        taps: returns the tap for each pass; it runs after the method's own edits.
    """

    def __init__(
        self,
        unet: UNet,
        positive: Float[Tensor, "b l d"],
        negative: Float[Tensor, "b l d"] | None = None,
        config: MethodConfig | None = None,
        *,
        schedule: ScheduleConfig | None = None,
        fps: float | None = None,
        low_memory: bool = False,
        taps: Taps = no_taps,
    ):
        self.unet, self.positive, self.negative = unet, positive, negative
        self.config, self.schedule = config or MethodConfig(), schedule or ScheduleConfig()
        self.fps, self.low_memory, self.taps = fps, low_memory, taps
        self._deep: dict[str, Tensor] = {}
        self._fast: UNet | None = None  # records graphs of passes without gradients
        self._readers: dict[tuple[tuple[str, ...], int], tuple[Tap, Reader | None]] = {}
        self._features_step = -1
        self._last: tuple[Callable[..., object], Tap] | None = None  # pass and its edits, for `culprit`

    @torch.no_grad()
    def __call__(
        self, z: Float[Tensor, "b f c h w"], step: Step, *, tap: Tap = no_tap, negative_tap: Tap = no_tap
    ) -> Float[Tensor, "b f c h w"]:
        """Predict the noise with classifier-free guidance, without gradients.

        `tap` edits the pass with the prompt, `negative_tap` the one with the negative prompt. With a guidance scale of
        1 or less the negative pass is skipped. With edits the two passes run separately, because an injection into
        frame 1 makes the prompt's pass cheaper; without edits they form one batch, except in low-memory mode. The job's
        taps run after the edits and see both passes: first the negative prompt's, or one batch whose second entry is
        the prompt's (before the first text layer the batch has a single shared entry, see `UNet.forward`).
        """
        if step.index > self._features_step and self._fast is None:
            # only after the last pass of `features`: the graph's memory would add to that pass's peak
            self._release_readers()
            self._fast = graphed(self.unet)
        watch = self.taps(Pass("denoising", step.t, step.index))
        predict = partial(self._predict, z, step, tap, negative_tap)
        self._last = predict, watch
        return noise(predict(tap=watch), z, step.t, self.schedule)

    def features(
        self,
        names: Iterable[str],
        z: Float[Tensor, "b f c h w"],
        step: Step,
        *,
        tap: Tap = no_tap,
        iteration: int | None = None,
    ) -> dict[str, Tensor]:
        """Return differentiable tensors at hook points of the prompt's pass, which stops at the last of them.

        `tap` edits the pass; `iteration` is its number within the step, reported to the job's taps and in error
        messages. On a GPU the second pass with equal `names` and `tap` is captured as a CUDA graph together with its
        backward pass and replayed from then on, except in low-memory mode or when the job has a tap for it.
        """
        if step.index != self._features_step:
            release_memory()  # guided passes leave the memory too fragmented for this pass's tensors
            self._features_step = step.index
        names, watch = tuple(names), self.taps(Pass("optimisation", step.t, step.index, iteration))
        options: dict[str, Any] = {"fps": self.fps, "window": self.config.window}
        self._last = partial(self.unet, z.detach(), step.t, self.positive, **options), chain(tap, watch)
        reader = self._reader(names, z, tap) if watch is no_tap else None
        if reader is not None:
            timesteps = torch.full((1,), step.t, device=z.device)
            return dict(zip(names, reader(z, timesteps, self.positive), strict=True))
        options |= {"edit": chain(tap, watch), "checkpoint": self.low_memory}
        return record(self.unet, names, z, step.t, self.positive, **options)

    def images(self, passes: int = 1) -> "ImageDenoiser":
        """Return the network for independent images, with temporal layers off, for about `passes` calls."""
        return ImageDenoiser(self, passes)

    def guidance(self, step: Step) -> float:
        """The guidance scale of a step; 1 or less where no pass with the negative prompt is made."""
        config = self.config
        return config.guidance_scale if config.guidance_steps is None or step.index < config.guidance_steps else 1.0

    def culprit(self) -> str:
        """Repeat the last pass and describe its first layer whose output is not finite."""
        assert self._last is not None, "no pass has been made"
        return first_bad_layer(*self._last)

    def _predict(self, z: Tensor, step: Step, edit: Tap, negative_edit: Tap, *, tap: Tap) -> Tensor:
        """Compute the guided prediction, with `tap` applied after the edits."""
        scale, deep = self.guidance(step), self._deep_features(step)
        predict = partial(self._pass, step=step, deep=deep)
        if scale <= 1:
            return predict("positive", z, self.positive, chain(edit, tap))
        assert self.negative is not None, "guidance needs the states of a negative prompt"
        if edit is not no_tap or negative_edit is not no_tap or self.low_memory:
            negative = predict("negative", z, self.negative, chain(negative_edit, tap))
            return guided(negative, predict("positive", z, self.positive, chain(edit, tap)), scale)
        both = z if len(z) == 1 else torch.cat([z, z])
        negative, positive = predict("both", both, torch.cat([self.negative, self.positive]), tap).chunk(2)
        return guided(negative, positive, scale)

    def _pass(
        self, kind: str, z: Tensor, text: Tensor, tap: Tap, *, step: Step, deep: dict[str, Tensor] | None
    ) -> Tensor:
        """Run one pass; features below the finest level are read from `deep` if it has them, else stored in it."""
        unet, recorder = self._fast or self.unet, Recorder((self.unet.deep_point,))
        known = None if deep is None else deep.get(kind)
        if deep is not None and known is None:
            tap = chain(tap, recorder)
        output = unet(z, step.t, text, fps=self.fps, window=self.config.window, tap=tap, deep=known)
        if deep is not None and known is None:
            deep[kind] = recorder.seen[self.unet.deep_point]
        return output

    def _deep_features(self, step: Step) -> dict[str, Tensor] | None:
        """Return the deep features, by kind of pass, that steps share under `deep_every`; None if `step` shares
        none."""
        since = step.index - self.config.inject_steps
        if self.config.deep_every == 1 or since < 0:
            return None
        if since % self.config.deep_every == 0:
            self._deep = {}
        return self._deep

    def _reader(self, names: tuple[str, ...], z: Tensor, tap: Tap) -> Reader | None:
        if z.device.type != "cuda" or self.low_memory:
            return None
        key = names, id(tap)
        if key not in self._readers:
            self._readers[key] = tap, None
        elif self._readers[key][1] is None:
            read = partial(self._read, names, tap)
            self._readers[key] = tap, graphed_reader(self.unet, read, z, self.positive)
        return self._readers[key][1]

    def _read(self, names: tuple[str, ...], tap: Tap, z: Tensor, timesteps: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        seen = record(self.unet, names, z, timesteps, text, fps=self.fps, window=self.config.window, edit=tap)
        return tuple(seen[name] for name in names)

    def _release_readers(self) -> None:
        if self._readers:
            self._readers.clear()
            gc.collect()  # reference cycles keep them, and gigabytes, alive


class ImageDenoiser:
    """The network for single images: temporal layers off, prompt only, no guidance. Created by `Denoiser.images`.

    Args:
        denoiser: provides the network, the prompt and the taps.
        passes: expected number of calls; from `PACK_FROM` on a CPU uses packed weights, and from 2 on a GPU uses a CUDA
            graph.
    """

    def __init__(self, denoiser: Denoiser, passes: int = 1):
        unet = denoiser.unet
        self.dtype, self.fps, self.taps = unet.dtype, denoiser.fps, denoiser.taps
        self.schedule = denoiser.schedule
        self.text = denoiser.positive.to(unet.dtype)  # cast once: a packed network recognises the same tensor
        if passes >= PACK_FROM and not denoiser.low_memory:
            unet = packed(unet)
        self.unet = graphed(unet) if passes > 1 else unet

    def __call__(self, z: Float[Tensor, "b 1 c h w"], t: int) -> Float[Tensor, "b 1 c h w"]:
        """Predict the noise at timestep `t`."""
        return noise(self._pass(z, t, tap=self.taps(Pass("inversion", t))), z, t, self.schedule)

    def features(self, names: Iterable[str], z: Float[Tensor, "b 1 c h w"], t: int) -> dict[str, Tensor]:
        """Return the tensors at hook points, without gradients; the pass stops at the last of them.

        Raises:
            HookError: an unknown name.
            NumericsError: a tensor is not finite.
        """
        here = Pass("inversion", t)
        features = record(self.unet, names, z, t, self.text, fps=self.fps, temporal=False, edit=self.taps(here))
        if not all_finite(*features.values()):
            culprit = f"{bad_layer(features)}; {self.culprit(z, t)}"
            raise failure("a recorded feature", here, culprit=culprit, dtype=self.dtype)
        return {name: tensor.detach() for name, tensor in features.items()}

    def culprit(self, z: Float[Tensor, "b 1 c h w"], t: int) -> str:
        """Repeat the pass and describe its first layer whose output is not finite."""
        return first_bad_layer(partial(self._pass, z, t), self.taps(Pass("inversion", t)))

    def _pass(self, z: Tensor, t: int, *, tap: Tap) -> Tensor:
        return self.unet(z, t, self.text, fps=self.fps, temporal=False, tap=tap)
