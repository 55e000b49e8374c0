"""Sparse control network: residuals for a UNet that make a few frames of the video follow a given condition.

References: SparseCtrl (Guo et al. 2023, arXiv:2311.16933), sections 3.2 and 3.3; guoyww/AnimateDiff at e92bd56,
models/sparse_controlnet.py.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyi2v.backbone.blocks import DownBlock, MidBlock
from anyi2v.backbone.call import Call
from anyi2v.backbone.designs import make_design
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.unet import TimeEmbedding
from anyi2v.errors import InputError
from anyi2v.hook_points import skip
from anyi2v.method.config import OperatorKind
from anyi2v.operators import using
from anyi2v.taps import At, Tap, no_tap

MID = "mid_block.resnets.1"
"""Hook point of the mid block's output."""


class SparseControlNetwork(nn.Module):
    """Compute residuals for the skip connections and the mid block of a UNet from conditions of a few frames.

    A copy of the UNet's encoder with its own motion modules, which propagate the conditions to the other frames. The
    noisy latents are not an input ("noised sample inputs eliminated", section 3.2): only the bias of the first
    convolution is left. The residuals therefore depend only on timestep, text and condition.
    """

    operators: OperatorKind = "fast"
    """Implementation of the operators: the fastest available, or the plain formulas."""

    def __init__(self, config: SparseControlConfig):
        super().__init__()
        self.config = config
        unet = config.unet
        channels, levels = unet.channels, len(unet.channels)
        design = make_design(unet.temporal)
        self.max_frames = design.max_frames
        self.condition_embedding = _embedding(config)
        self.bias = nn.Parameter(torch.zeros(channels[0]))
        self.time_embedding = TimeEmbedding(channels[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(i, channels[max(i - 1, 0)], i == levels - 1, unet, design) for i in range(levels)
        )
        self.mid_block = MidBlock(unet, design)
        widths = [channels[0]]
        for i, width in enumerate(channels):
            widths += [width] * (unet.layers + (i < levels - 1))
        self.skip_outs = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.mid_out = nn.Conv2d(channels[-1], channels[-1], 1)
        for out in (*self.skip_outs, self.mid_out):
            for parameter in out.parameters():
                nn.init.zeros_(parameter)  # before training, the residuals are zero and leave the UNet unchanged

    @property
    def points(self) -> tuple[str, ...]:
        """Hook points of the UNet that receive residuals."""
        return (*(skip(i) for i in range(len(self.skip_outs))), MID)

    def forward(
        self,
        condition: Float[Tensor, "#b f c h w"],
        timesteps: int | Int[Tensor, " #b"],
        text: Float[Tensor, "b l d"],
        *,
        temporal: bool = True,
        window: int | None = None,
    ) -> dict[str, Float[Tensor, "#b f e h2 w2"]]:
        """Return the residuals by the hook point of the UNet to which each is added; see `adding`.

        Args:
            condition: conditions of the given frames, with the mask as the last channel; see `masked`.
            timesteps: training timesteps, one for all or one per batch entry.
            text: states of the text tower.
            temporal: False skips the motion modules.
            window: as in `UNet.forward`.

        Raises:
            InputError: more frames than the motion modules have positions for.
        """
        frames = condition.shape[1]
        at_once = frames if window is None else min(frames, window)
        if temporal and self.max_frames is not None and at_once > self.max_frames:
            raise InputError(
                f"{at_once} frames at once, but the sparse control network has positions for at most "
                f"{self.max_frames}; use fewer frames, or a window"
            )
        with using(self.operators):
            timesteps = torch.as_tensor(timesteps, device=condition.device).view(-1)
            embedding = self.time_embedding(timesteps if len(timesteps) == 1 else timesteps.expand(len(text)))
            call = Call(F.silu(embedding), text.to(self.bias.dtype), frames, temporal, no_tap, False, window)
            x = self.condition_embedding(condition.to(self.bias.dtype).flatten(0, 1)) + self.bias[:, None, None]
            skips = [x]
            for block in self.down_blocks:
                skips += block(skips[-1], call)
            outs = [out(x) for x, out in zip(skips, self.skip_outs, strict=True)]
            outs.append(self.mid_out(self.mid_block(skips[-1], call)))
        return {name: x.unflatten(0, (-1, frames)) for name, x in zip(self.points, outs, strict=True)}


class ScribbleEmbedding(nn.Sequential):
    """Map pixels to the latent grid by convolutions, every second one with stride 2.

    Reference: ControlNet (Zhang et al. 2023, arXiv:2302.05543), section 3.3; guoyww/AnimateDiff,
    SparseControlNetConditioningEmbedding, whose `conv_in`, `blocks` and `conv_out` are consecutive entries here.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], channels: int):
        convs: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1), nn.SiLU()]
        for narrow, wide in itertools.pairwise(widths):
            convs += [nn.Conv2d(narrow, narrow, 3, padding=1), nn.SiLU()]
            convs += [nn.Conv2d(narrow, wide, 3, padding=1, stride=2), nn.SiLU()]
        super().__init__(*convs, nn.Conv2d(widths[-1], channels, 3, padding=1))


def _embedding(config: SparseControlConfig) -> nn.Module:
    """Create the module that maps the condition and its mask to the channels of the first level."""
    channels = config.unet.channels[0]
    if config.condition == "rgb":
        return nn.Conv2d(config.unet.latent_channels + 1, channels, 3, padding=1)
    return ScribbleEmbedding(3 + 1, config.widths, channels)


def masked(known: Mapping[int, Float[Tensor, "c h w"]], frames: int) -> Float[Tensor, "1 f c1 h w"]:
    """Stack the conditions of the given frames (0-based) and append the mask as a channel: 1 there, 0 elsewhere.

    Frames without a condition are zero (section 3.3). At least one frame must have one.
    """
    first = next(iter(known.values()))
    condition = first.new_zeros(1, frames, len(first) + 1, *first.shape[1:])
    for frame, image in known.items():
        condition[0, frame] = torch.cat([image, torch.ones_like(image[:1])])
    return condition


def adding(residuals: Mapping[str, Tensor], scale: float = 1.0) -> Tap:
    """Return a tap that adds the residuals, multiplied by `scale`, in a pass of the UNet."""
    return At(residuals, lambda name, x: x + scale * residuals[name].to(x.dtype))
