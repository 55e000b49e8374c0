"""The network bound to one job: text, guidance, frame rate, window, memory mode and the taps that watch.

`Denoiser` is what a method sees of the network. How a pass is executed - as a CUDA graph, from packed weights, with
recomputed layers, or with features taken over from an earlier step - is decided here and nowhere else.
"""

import gc
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet, record
from anyi2v.diffusion import Step, guided
from anyi2v.execution.graphs import Reader, graphed, graphed_reader
from anyi2v.execution.machine import release_memory
from anyi2v.execution.packed import packed
from anyi2v.guard import all_finite, bad_layer, failure, first_bad_layer
from anyi2v.method.config import MethodConfig
from anyi2v.taps import Pass, Recorder, Tap, Taps, chain, no_tap, no_taps

PACK_FROM = 64
"""Passes from which on packing the weights gains time; it takes that of 5 passes and saves a sixth of each."""


class Denoiser:
    """Predicts the noise of a job's latents.

    Args:
        unet: the network.
        positive: states of the prompt, one per clip.
        negative: those of the negative prompt; not needed without guidance.
        config: of which `guidance_scale`, `guidance_steps`, `deep_every`, `inject_steps` and `window` count; by default
            recipe "paper".
        fps: frames per second, for a UNet that embeds the frame rate.
        low_memory: layers are recomputed in the backward pass, the two passes of the guidance run one after the other,
            and the weights are kept once.
        taps: gives a tap for each pass, which acts after the edits of the method.
    """

    def __init__(
        self,
        unet: UNet,
        positive: Float[Tensor, "b l d"],
        negative: Float[Tensor, "b l d"] | None = None,
        config: MethodConfig | None = None,
        *,
        fps: float | None = None,
        low_memory: bool = False,
        taps: Taps = no_taps,
    ):
        self.unet, self.positive, self.negative = unet, positive, negative
        self.config = config or MethodConfig()
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
        """The noise prediction with classifier-free guidance; no gradient.

        `tap` edits the pass with the prompt, `negative_tap` the one with the negative prompt. A guidance scale of 1 or
        less needs no pass with the negative prompt, and none is made. With edits the two passes are separate, as an
        injection into frame 1 lets the prompt's compute less; without they are one batch, unless memory is low. The
        job's own taps act after the edits, on both passes: on the negative prompt's first, or on a batch whose second
        entry is the prompt's (until the first text both are one entry, see `UNet.forward`).
        """
        if step.index > self._features_step and self._fast is None:
            # not before the last pass of `features`: what a graph keeps would lie beside that pass's tensors
            self._release_readers()
            self._fast = graphed(self.unet)
        watch = self.taps(Pass("denoising", step.t, step.index))
        predict = partial(self._predict, z, step, tap, negative_tap)
        self._last = predict, watch
        return predict(tap=watch)

    def features(
        self,
        names: Iterable[str],
        z: Float[Tensor, "b f c h w"],
        step: Step,
        *,
        tap: Tap = no_tap,
        iteration: int | None = None,
    ) -> dict[str, Tensor]:
        """The tensors at hook points in the pass with the prompt, which ends at the last of them; differentiable.

        `tap` edits the pass; `iteration` is its number within the step, for the job's taps and for messages. On a GPU
        the second pass of a kind is recorded together with its backward pass and replayed from then on, unless memory
        is low or somebody watches.
        """
        if step.index != self._features_step:
            release_memory()  # gaps that guided passes have left are too small for the tensors of this one
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
        """The network for so many passes of frames that are images of their own: its temporal layers are off."""
        return ImageDenoiser(self, passes)

    def guidance(self, step: Step) -> float:
        """The guidance scale of a step; 1 or less where no pass with the negative prompt is made."""
        config = self.config
        return config.guidance_scale if config.guidance_steps is None or step.index < config.guidance_steps else 1.0

    def culprit(self) -> str:
        """The first layer of the last pass that is not finite, in words; repeats the pass."""
        assert self._last is not None, "no pass has been made"
        return first_bad_layer(*self._last)

    def _predict(self, z: Tensor, step: Step, edit: Tap, negative_edit: Tap, *, tap: Tap) -> Tensor:
        """The guided prediction, with `tap` after the edits."""
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
        """One pass; features below the finest level that are in `deep` are taken from there, others put there."""
        unet, recorder = self._fast or self.unet, Recorder((self.unet.deep_point,))
        known = None if deep is None else deep.get(kind)
        if deep is not None and known is None:
            tap = chain(tap, recorder)
        noise = unet(z, step.t, text, fps=self.fps, window=self.config.window, tap=tap, deep=known)
        if deep is not None and known is None:
            deep[kind] = recorder.seen[self.unet.deep_point]
        return noise

    def _deep_features(self, step: Step) -> dict[str, Tensor] | None:
        """Features by kind of pass that steps share under `deep_every`; None where each step computes its own."""
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
            gc.collect()  # cycles hold them, and gigabytes


class ImageDenoiser:
    """The network for single images, see `Denoiser.images`: temporal layers off, the prompt alone, no guidance.

    Args:
        denoiser: whose network, prompt and taps.
        passes: how many will follow; for many the CPU reads the weights from a faster copy, a GPU records them.
    """

    def __init__(self, denoiser: Denoiser, passes: int = 1):
        unet = denoiser.unet
        self.dtype, self.fps, self.taps = unet.dtype, denoiser.fps, denoiser.taps
        self.text = denoiser.positive.to(unet.dtype)  # once: a packed network knows it again
        if passes >= PACK_FROM and not denoiser.low_memory:
            unet = packed(unet)
        self.unet = graphed(unet) if passes > 1 else unet

    def __call__(self, z: Float[Tensor, "b 1 c h w"], t: int) -> Float[Tensor, "b 1 c h w"]:
        """The noise prediction at timestep `t`."""
        return self._pass(z, t, tap=self.taps(Pass("inversion", t)))

    def features(self, names: Iterable[str], z: Float[Tensor, "b 1 c h w"], t: int) -> dict[str, Tensor]:
        """The tensors at hook points, without gradient; the pass ends at the last of them.

        Raises:
            HookError: an unknown name.
            NumericsError: one is not finite.
        """
        here = Pass("inversion", t)
        features = record(self.unet, names, z, t, self.text, fps=self.fps, temporal=False, edit=self.taps(here))
        if not all_finite(*features.values()):
            culprit = f"{bad_layer(features)}; {self.culprit(z, t)}"
            raise failure("a recorded feature", here, culprit=culprit, dtype=self.dtype)
        return {name: tensor.detach() for name, tensor in features.items()}

    def culprit(self, z: Float[Tensor, "b 1 c h w"], t: int) -> str:
        """The first layer of the pass that is not finite, in words."""
        return first_bad_layer(partial(self._pass, z, t), self.taps(Pass("inversion", t)))

    def _pass(self, z: Tensor, t: int, *, tap: Tap) -> Tensor:
        return self.unet(z, t, self.text, fps=self.fps, temporal=False, tap=tap)
