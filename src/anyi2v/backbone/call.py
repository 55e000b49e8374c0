"""Arguments shared by all layers in one forward pass of the UNet."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyi2v.backbone.config import NormOver
from anyi2v.errors import HookError
from anyi2v.operators import chosen, using
from anyi2v.taps import Tap, no_tap


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass that any layer may need.

    Inside the UNet, frames are folded into the batch, `(b f) c h w`, because most layers are spatial; taps see the
    unfolded tensor.
    """

    embedding: Float[Tensor, "#b e"]
    """SiLU of the time embedding, the input of every ResBlock's projection; one row if the whole batch has one
    timestep."""
    text: Float[Tensor, "b l d"]
    frames: int
    temporal: bool | frozenset[str]
    """True or False for all temporal layers, or the names of those to run."""
    tap: Tap
    checkpoint: bool
    """Recompute each layer in the backward pass instead of keeping its activations."""
    window: int | None = None
    """Number of frames that a temporal layer sees at once; None: all."""

    def temporal_on(self, name: str) -> bool:
        """Return whether the temporal layer `name` runs in this pass."""
        return self.temporal if isinstance(self.temporal, bool) else name in self.temporal

    def frames_of(self, norm_over: NormOver) -> int:
        """Return how many maps share the statistics of a norm: one, or all frames of a clip."""
        return self.frames if norm_over == "clip" else 1

    def at(self, layer: str, part: str, x: Tensor) -> Tensor:
        """Pass `x`, which has its full axes, through the hook point `layer.part`."""
        return x if self.tap is no_tap else self._offered(f"{layer}.{part}", x)

    def changed(self, layer: str, part: str, x: Tensor) -> Tensor | None:
        """Like `at`, for a tensor that was computed for the tap alone; None if the tap did not change it."""
        version = None if x.is_inference() else x._version
        seen = self.at(layer, part, x)
        return None if seen is x and version is not None and x._version == version else seen

    def _offered(self, name: str, x: Tensor) -> Tensor:
        seen = self.tap(name, x)
        if not isinstance(seen, Tensor):
            raise HookError(
                f"the tap returned {type(seen).__name__} at {name}; it must return a tensor: its input "
                "where nothing is to be changed"
            )
        return seen

    def at_map(self, name: str, x: Float[Tensor, "n c h w"]) -> Tensor:
        """Pass a feature map with folded frames through a hook point; the tap sees `b f c h w`.

        An unchanged tensor keeps its strides as well: PyTorch selects kernels, which round differently, by strides, and
        (un)flattening axes of length one would change them.
        """
        if self.tap is no_tap:
            return x
        clips = x.unsqueeze(1) if self.frames == 1 else x.unflatten(0, (-1, self.frames))
        seen = self._offered(name, clips)
        if seen is clips:
            return x
        return seen.squeeze(1) if self.frames == 1 else seen.flatten(0, 1)

    def run(self, layer: Callable[..., Tensor], name: str, *inputs: Tensor) -> Tensor:
        """Call `layer(*inputs, call)`, checkpointed if `checkpoint` is set, and pass its output to the tap as
        `name`."""
        if self.checkpoint:
            out = checkpoint(layer, *inputs, self, use_reentrant=False, **_same_operators())
            assert isinstance(out, Tensor)
        else:
            out = layer(*inputs, self)
        return self.at_map(name, out)


def _same_operators() -> dict[str, Any]:
    """Return options of `checkpoint` that make the recomputation use the same operators, in any thread.

    Empty under `torch.compile`, which neither supports nor needs the context.
    """
    if torch.compiler.is_compiling():
        return {}
    kind = chosen()
    return {"context_fn": lambda: (nullcontext(), using(kind))}


def repeat_clip(x: Float[Tensor, "n c h w"], maps: int) -> Float[Tensor, "maps c h w"]:
    """Repeat the folded maps of one clip to a batch of `maps` maps; a full batch is returned unchanged."""
    return x if len(x) == maps else torch.cat([x] * (maps // len(x)))
