"""The UNet of SD-1.x with temporal slots and hook points, independent of any particular backbone."""

import math
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyi2v.backbone.attention import sinusoid
from anyi2v.backbone.blocks import DownBlock, MidBlock, UpBlock, run_slot
from anyi2v.backbone.call import Call
from anyi2v.backbone.config import UNetConfig
from anyi2v.backbone.designs import make_design
from anyi2v.backbone.layers import Linear, group_norm_silu
from anyi2v.backbone.slots import Design, Site, Temporal
from anyi2v.errors import HookError, InputError
from anyi2v.hook_points import Point, check_names
from anyi2v.method.config import OperatorKind
from anyi2v.operators import has_values, transformed, using
from anyi2v.taps import Recorder, Stop, StopAt, Tap, chain, handled, no_tap


class UNet(nn.Module):
    """UNet that predicts the noise in video latents.

    Parameters of the spatial part have diffusers' names; temporal layers are at `*.temporals.j` and in the other slots
    of `Design`.

    Args:
        config: the architecture.
        design: fills the temporal slots; by default the one that `config.temporal` describes.
    """

    operators: OperatorKind = "fast"
    """Implementation of the operators: the fastest available, or the plain formulas."""

    def __init__(self, config: UNetConfig, design: Design | None = None):
        super().__init__()
        self.config = config
        self.design = design = design or make_design(config.temporal)
        channels, levels = config.channels, len(config.channels)
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.stem_temporal = design.stem(Site("stem_temporal", channels[0], attention=False))
        self.time_embedding = TimeEmbedding(channels[0])
        self.fps_embedding = TimeEmbedding(channels[0]) if config.fps_embedding else None
        self.down_blocks = nn.ModuleList(
            DownBlock(i, channels[max(i - 1, 0)], i == levels - 1, config, design) for i in range(levels)
        )
        self.mid_block = MidBlock(config, design)
        self.up_blocks = nn.ModuleList(
            UpBlock(i, channels[min(levels - i, levels - 1)], i == levels - 1, config, design) for i in range(levels)
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)
        self._compiled: Callable[..., Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters, in which the forward pass computes."""
        return self.conv_in.weight.dtype

    @property
    def deep_point(self) -> str:
        """Hook point at which features of the levels below the finest enter the last up block."""
        return f"up_blocks.{len(self.up_blocks) - 2}.upsamplers.0"

    @property
    def temporal_names(self) -> tuple[str, ...]:
        """Names of the temporal layers, in the order of the module tree."""
        return tuple(module.name for module in self.modules() if isinstance(module, Temporal))

    def forward(
        self,
        z: Float[Tensor, "#b f c h w"],
        timesteps: int | Int[Tensor, " #b"],
        text: Float[Tensor, "b l d"],
        *,
        fps: float | None = None,
        temporal: bool | Collection[str] = True,
        window: int | None = None,
        tap: Tap = no_tap,
        checkpoint: bool = False,
        deep: Float[Tensor, "b f e h w"] | None = None,
    ) -> Float[Tensor, "b f c h w"]:
        """Return the noise prediction for `z`, in the dtype of `z`.

        Args:
            z: noisy latents of `f` frames; any height and width, unless the configuration requires even grids. One clip
                can serve several texts: everything before the first text cross-attention is then computed once, and
                hook points there see a batch of one.
            timesteps: training timesteps, one for all or one per batch entry.
            text: states of the text tower, one per prediction.
            fps: frames per second of the video; required if the configuration has an `fps_embedding`, otherwise
                ignored.
            temporal: False skips every temporal layer, so that each frame is an independent image; a collection of
                names (see `temporal_names`) enables only those.
            window: number of frames that temporal layers see at once, in windows that overlap by half; their hook
                points are then called once per window.
            tap: receives and may replace the tensor at every hook point; see `anyi2v.taps`.
            checkpoint: recompute layers in the backward pass to save memory; gradients are unchanged.
            deep: tensor at hook point `deep_point` from another timestep; the levels below the finest are then skipped
                (DeepCache, Ma et al. 2024, section 3.2).

        Raises:
            InputError: more frames than the temporal layers have positions for, a missing `fps`, or a grid that cannot
                be halved often enough, or `z` of another number of axes.
            HookError: a name in `temporal` is not a temporal layer, or the tap handles a name that is not a hook point.
        """
        self._check(z, temporal, window)
        names = handled(tap)
        if names and has_values(z) and not transformed():  # `points` makes a meta pass, which must not recurse
            check_names(names, points(self), "tap")
        with using(self.operators):
            timesteps = torch.as_tensor(timesteps, device=z.device).view(-1)
            embedding = self.time_embedding(timesteps if len(timesteps) == 1 else timesteps.expand(len(z)))
            if self.fps_embedding is not None:
                if fps is None:
                    raise InputError("this UNet embeds the frame rate: pass fps=")
                embedding = embedding + self.fps_embedding(torch.full((1,), fps, dtype=torch.float32, device=z.device))
            on = temporal if isinstance(temporal, bool) else frozenset(temporal)
            call = Call(F.silu(embedding), text.to(self.dtype), z.shape[1], on, tap, checkpoint, window)
            plain = tap is no_tap and not checkpoint and deep is None
            predict = self._compiled if self._compiled and plain else UNet._predict
            return predict(self, z, call, deep)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile passes without taps or checkpointing: inversion, denoising after the injection, training.

        Other passes run uncompiled. The first pass of each shape takes minutes. Arguments are those of `torch.compile`.
        Register module hooks before compiling: a compiled pass does not check for new ones.
        """
        # not bound to this network: a deep copy of it must compute with its own weights
        self._compiled = torch.compile(UNet._predict, *args, **options)

    def _predict(
        self, z: Float[Tensor, "#b f c h w"], call: Call, deep: Float[Tensor, "b f e h w"] | None
    ) -> Float[Tensor, "b f c h w"]:
        x = call.at_map("conv_in", self.conv_in(z.to(self.dtype).flatten(0, 1)))
        x = run_slot(self.stem_temporal, "stem_temporal", x, call)
        skips = [x]
        if deep is None:
            for block in self.down_blocks:
                skips += block(skips[-1], call)
            x = self.mid_block(skips[-1], call)
            up_blocks = self.up_blocks
        else:
            skips += self.down_blocks[0](x, call)[: self.config.layers]  # without the downsampled output
            x, up_blocks = deep.to(self.dtype).flatten(0, 1), self.up_blocks[-1:]
        for block in up_blocks:
            x = block(x, skips, call)
        x = group_norm_silu(self.conv_norm_out, x, call.frames_of(self.config.norm_over))
        return call.at_map("noise", self.conv_out(x)).unflatten(0, (-1, call.frames)).to(z.dtype)

    def _check(self, z: Tensor, temporal: bool | Collection[str], window: int | None) -> None:
        if z.ndim != 5:
            raise InputError(f"the latents have shape {tuple(z.shape)}; expected [b f c h w]")
        frames, (height, width) = z.shape[1], z.shape[-2:]
        unit = self.config.downscale
        if self.config.even_grids and (height % unit or width % unit):
            raise InputError(f"latents of {width}x{height} cells; this UNet needs multiples of {unit} along both sides")
        limit = self.design.max_frames
        at_once = frames if window is None else min(window, frames)
        if temporal and limit is not None and at_once > limit:
            raise InputError(
                f"{at_once} frames at once, but the temporal layers have positions for at most {limit}; use fewer "
                "frames, or a window"
            )
        if at_once < 1:
            raise InputError(f"a window of {window} frames; it must have at least 1")
        if not isinstance(temporal, bool):
            check_names(temporal, self.temporal_names, "temporal")


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep (or the frame rate) followed by two linear layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear_1 = Linear(channels, 4 * channels)
        self.linear_2 = Linear(4 * channels, 4 * channels)

    def forward(self, timesteps: Int[Tensor, " b"] | Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Embed values with frequencies that fall geometrically from 1 to 1/10000, computed in float32."""
        half = self.linear_1.in_features // 2
        index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        waves = sinusoid(timesteps.float(), torch.exp(index * (-math.log(10000.0) / half)))
        return self.linear_2(F.silu(self.linear_1(waves.to(self.linear_1.weight.dtype))))


def record(
    unet: UNet,
    names: Iterable[str],
    z: Float[Tensor, "b f c h w"],
    timesteps: int | Int[Tensor, " b"],
    text: Float[Tensor, "b l d"],
    *,
    edit: Tap = no_tap,
    stop: StopAt = "point",
    **options: Any,
) -> dict[str, Tensor]:
    """Run the UNet up to the last of `names` and return these tensors, still attached to the autograd graph.

    `edit` is applied before recording. `stop="layer"` ends at the next layer output instead of exactly at the point,
    which a compiled UNet requires. `options` are further arguments of `UNet.forward`: `fps`, `temporal`, `window` and
    `checkpoint`.

    Raises:
        HookError: a name is unknown, or the pass does not reach it because its temporal layer is off or `edit` raised
            Stop.
    """
    recorder = Recorder(names, stop=stop)
    try:
        unet(z, timesteps, text, tap=chain(edit, recorder), **options)
    except Stop:
        ended = "`edit` has stopped the pass before"
    else:
        ended = "the temporal layer that holds it is off in this pass"
    if missing := [name for name in recorder.names if name not in recorder.seen]:
        raise HookError(f"hook point {min(missing)!r} was not reached: {ended}")
    return recorder.seen


def points(unet: UNet, *, frames: int = 2, height: int = 8, width: int = 8, tokens: int = 77) -> dict[str, Point]:
    """Return every hook point by name, in execution order, with the shape that its tap sees for a batch of one.

    Includes costly ones (`Point.costly`). Shapes come from one pass of an identical network on the meta device, without
    arithmetic. It takes about a third of a second, so the result is cached for all networks of the architecture.

    Args:
        unet: the network.
        frames: number of frames of the latents.
        height: rows of the latents.
        width: columns of the latents.
        tokens: length of the text.
    """
    return dict(_points(unet.config, unet.design, frames, height, width, tokens))


@lru_cache(maxsize=64)
def _points(config: UNetConfig, design: Design, frames: int, height: int, width: int, tokens: int) -> dict[str, Point]:
    with torch.device("meta"):
        shadow = UNet(config, design).to("meta")
        z = torch.empty(1, frames, config.latent_channels, height, width)
        lister = _Lister()
        text = torch.empty(1, tokens, config.context_dim)
        shadow(z, torch.zeros(1, dtype=torch.long), text, fps=1.0, tap=lister)
    return {name: Point(name, shape) for name, shape in lister.shapes.items()}


class _Lister:
    """A tap that records every point, including costly ones."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        self.shapes[name] = tuple(tensor.shape)
        return tensor

    def wants(self, name: str) -> bool:
        return True
