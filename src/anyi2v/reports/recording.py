"""Selection of what to inspect, and the taps that record it while the run is repeated.

`Selection` defines layers, steps and frames, `Recording` collects them during `animate(..., taps=recording)`, and
`inspection` draws them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anyi2v.diffusion import Step
from anyi2v.errors import InputError
from anyi2v.hook_points import paper_layer, place, spatial_layer
from anyi2v.method.config import MethodConfig
from anyi2v.taps import Pass, Tap, no_tap

SHOWN = 8
"""Default number of frames in a picture."""


@dataclass(frozen=True)
class Selection:
    """Layers, steps and frames to inspect."""

    layers: tuple[str, ...]
    """Layers in the paper's numbering: "1.0" is spatial layer 0 of up block 1."""
    steps: tuple[int, ...]
    """Denoising steps, from 0."""
    frames: tuple[int, ...]
    """Frames of the video, from 0."""

    def points(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the layers' hook points hidden, query and key, as far as the UNet has them."""
        known = set(known)
        names = [name for layer in self.layers for name in layer_points(layer)]
        return tuple(name for name in names if name in known)


def select(
    config: MethodConfig,
    known: Iterable[str],
    frames: int,
    *,
    layers: Sequence[str] = (),
    steps: Sequence[int] = (),
    show: Sequence[int] = (),
) -> Selection:
    """Build a selection.

    By default: the layers that the run injects or aligns; the first, the last optimised and the last step; frames
    spread over the video.

    Args:
        config: settings of the run.
        known: hook points of the UNet.
        frames: number of frames of the video.
        layers: layers such as "1.0".
        steps: denoising steps, from 0.
        show: frames to show, numbered from 1 as in all pictures.

    Raises InputError for a layer, step or frame that the run does not have.
    """
    there = sorted({layer for name in known if (layer := paper_layer(name))})
    if not layers:
        used = (*config.inject_hidden, *config.inject_query, *config.share_kv, *config.align)
        layers = sorted({layer for name in used if (layer := paper_layer(name))}) or there
    if not steps:
        last = min(config.optimise_steps, config.steps) - 1
        steps = sorted({0, max(last, 0), config.steps - 1})
    if not show:
        count = min(frames, SHOWN)
        show = [1 + round(k * (frames - 1) / max(count - 1, 1)) for k in range(count)]
    _check("layer", layers, there)
    _check("step", steps, range(config.steps))
    _check("frame", show, range(1, frames + 1))
    return Selection(tuple(layers), tuple(steps), tuple(number - 1 for number in show))


def layer_points(layer: str) -> tuple[str, str, str]:
    """Return the hook points hidden, query and key of a layer in the paper's numbering."""
    attention, resnet = spatial_layer(layer, "attentions"), spatial_layer(layer, "resnets")
    return place(resnet, "hidden"), place(attention, "query"), place(attention, "key")


def _check(what: str, asked: Sequence[Any], known: Sequence[Any] | range) -> None:
    for value in asked:
        if value not in known:
            allowed = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
            raise InputError(f"{what} {value} is not in this run; it has {allowed}")


class Recording:
    """Provides taps that copy the tensors of a selection to the CPU, without changing anything.

    `denoising[step]` holds the selected layers' hidden, query and key of the conditional pass, `optimisation[step]`
    the aligned features of the last iteration before that step.
    """

    def __init__(self, selection: Selection, config: MethodConfig, known: Iterable[str]):
        self.selection, self.config = selection, config
        self.names = selection.points(known)
        self.denoising: dict[int, dict[str, Tensor]] = {}
        self.optimisation: dict[int, dict[str, Tensor]] = {}
        self.latents: dict[int, Float[Tensor, "f c h w"]] = {}

    def observe(self, step: Step, z: Float[Tensor, "1 f c h w"]) -> None:
        """Store the latents after a step; an observer for `animate`."""
        self.latents[step.index] = z[0].detach().cpu()

    def __call__(self, at: Pass) -> Tap:
        """Return the tap for a pass of the job."""
        if at.step not in self.selection.steps:
            return no_tap
        if at.stage == "denoising":
            return _keeper(self.names, self.denoising.setdefault(at.step, {}))
        if at.iteration == self.config.iterations - 1:
            return _keeper(self.config.align, self.optimisation.setdefault(at.step, {}))
        return no_tap


def _keeper(names: Iterable[str], store: dict[str, Tensor]) -> Tap:
    names = frozenset(names)

    def keep(name: str, x: Tensor) -> Tensor:
        if name in names:
            # the conditional pass comes last, as a separate pass or as the second entry of the batch
            store[name] = x[-1:].detach().float().cpu()
        return x

    return keep
