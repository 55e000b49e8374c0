"""The layers and blocks of the SD-1.x UNet, on feature maps with frames folded into the batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.attention import SpatialTransformer
from anyi2v.backbone.call import Call, repeat_clip
from anyi2v.backbone.config import NormOver, UNetConfig
from anyi2v.backbone.layers import Conv2d, Linear, group_norm_silu
from anyi2v.backbone.slots import Design, Site, Slot
from anyi2v.hook_points import skip
from anyi2v.operators import plain


class ResBlock(nn.Module):
    """Residual block with time embedding; its hook point `.hidden` is the paper's residual hidden."""

    def __init__(self, name: str, in_channels: int, channels: int, config: UNetConfig, temporal: Slot):
        super().__init__()
        self.name = name
        self.norm_over: NormOver = config.norm_over
        self.norm1 = nn.GroupNorm(config.groups, in_channels)
        self.conv1 = Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb_proj = Linear(4 * config.channels[0], channels)
        self.norm2 = nn.GroupNorm(config.groups, channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.temporal = temporal

    def forward(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "n d h w"]:
        """Return shortcut + hidden, where hidden = conv(norm(conv(norm(x)) + time))."""
        frames = call.frames_of(self.norm_over)
        hidden = group_norm_silu(self.norm1, x, frames)
        time = self.time_emb_proj(call.embedding)
        if len(time) == 1 and plain(self.conv1, Conv2d):  # added to the bias it costs nothing
            hidden = self.conv1(hidden, time[0])
        else:
            hidden = self.conv1(hidden) + time.repeat_interleave(call.frames, dim=0)[:, :, None, None]
        hidden = self.conv2(group_norm_silu(self.norm2, hidden, frames))
        hidden = call.at_map(f"{self.name}.hidden", hidden)
        return self.temporal(self.conv_shortcut(x) + hidden, call)


class Downsample(nn.Module):
    """Convolution with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "n c h2 w2"]:
        """Halve height and width, rounding up."""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to the size of the next skip connection, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "n c h w"], like: Float[Tensor, "m d h2 w2"], call: Call
    ) -> Float[Tensor, "n c h2 w2"]:
        """Upsample `x` to the grid of `like`, which may have odd sizes."""
        return self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))


class Block(nn.Module):
    """One level of the UNet: layers of ResBlock, spatial transformer (optional) and temporal slot."""

    def __init__(
        self,
        name: str,
        widths: list[tuple[int, int]],
        attention: bool,
        config: UNetConfig,
        design: Design,
    ):
        super().__init__()
        self.name = name
        self.resnets, self.attentions, self.temporals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for j, (in_channels, channels) in enumerate(widths):
            slot = design.after_resnet(Site(f"{name}.resnets.{j}.temporal", channels, attention))
            self.resnets.append(ResBlock(f"{name}.resnets.{j}", in_channels, channels, config, slot))
            if attention:
                self.attentions.append(make_transformer(f"{name}.attentions.{j}", channels, config, design))
            self.temporals.append(design.after_layer(Site(f"{name}.temporals.{j}", channels, attention)))

    def layer(self, j: int, x: Tensor, call: Call) -> Tensor:
        """Run layer `j`: ResBlock, then spatial transformer, then temporal slot."""
        x = call.run(self.resnets[j], f"{self.name}.resnets.{j}", x)
        if self.attentions:
            x = call.run(self.attentions[j], f"{self.name}.attentions.{j}", x)
        return run_slot(self.temporals[j], f"{self.name}.temporals.{j}", x, call)


class DownBlock(Block):
    """A level of the downsampling path; its layer outputs become skip connections."""

    def __init__(self, i: int, in_channels: int, last: bool, config: UNetConfig, design: Design):
        channels = config.channels[i]
        widths = [(in_channels if j == 0 else channels, channels) for j in range(config.layers)]
        super().__init__(f"down_blocks.{i}", widths, config.attention[i], config, design)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels)])

    def forward(self, x: Tensor, call: Call) -> list[Tensor]:
        """Return the outputs of all layers and of the downsampler."""
        outputs = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, call)
            outputs.append(x)
        for downsample in self.downsamplers:
            x = call.run(downsample, f"{self.name}.downsamplers.0", x)
            outputs.append(x)
        return outputs


class UpBlock(Block):
    """A level of the upsampling path; each layer also receives a skip connection."""

    def __init__(self, i: int, in_channels: int, last: bool, config: UNetConfig, design: Design):
        level = len(config.channels) - 1 - i
        channels, below = config.channels[level], config.channels[max(level - 1, 0)]
        widths = []
        for j in range(config.layers + 1):
            skip = below if j == config.layers else channels
            widths.append(((in_channels if j == 0 else channels) + skip, channels))
        super().__init__(f"up_blocks.{i}", widths, config.attention[level], config, design)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(self, x: Tensor, skips: list[Tensor], call: Call) -> Tensor:
        """Run the level, popping its skip connections off the end of `skips`."""
        for j in range(len(self.resnets)):
            entering = repeat_clip(skips.pop(), len(x))
            x = self.layer(j, torch.cat([x, call.at_map(skip(len(skips)), entering)], dim=1), call)
        for upsample in self.upsamplers:
            x = call.run(upsample, f"{self.name}.upsamplers.0", x, skips[-1])
        return x


class MidBlock(nn.Module):
    """The coarsest level: ResBlock, spatial transformer, temporal slot, ResBlock."""

    def __init__(self, config: UNetConfig, design: Design):
        super().__init__()
        channels = config.channels[-1]

        def resnet(j: int) -> ResBlock:
            slot = design.after_resnet(Site(f"mid_block.resnets.{j}.temporal", channels, True, mid=True))
            return ResBlock(f"mid_block.resnets.{j}", channels, channels, config, slot)

        self.resnets = nn.ModuleList([resnet(0), resnet(1)])
        self.attentions = nn.ModuleList([make_transformer("mid_block.attentions.0", channels, config, design)])
        self.temporals = nn.ModuleList([design.after_layer(Site("mid_block.temporals.0", channels, True, mid=True))])

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """Run the block; the shape is unchanged."""
        x = call.run(self.resnets[0], "mid_block.resnets.0", x)
        x = call.run(self.attentions[0], "mid_block.attentions.0", x)
        x = run_slot(self.temporals[0], "mid_block.temporals.0", x, call)
        return call.run(self.resnets[1], "mid_block.resnets.1", x)


def make_transformer(name: str, channels: int, config: UNetConfig, design: Design) -> SpatialTransformer:
    """Create a spatial transformer whose temporal slot is filled by the design."""
    slot = design.in_transformer(Site(f"{name}.temporal", channels, True))
    return SpatialTransformer(name, channels, config, slot)


def run_slot(slot: nn.Module, name: str, x: Tensor, call: Call) -> Tensor:
    """Run a filled slot as a layer of its own; an empty slot is skipped and has no hook point."""
    return x if type(slot) is Slot else call.run(slot, name, x)
