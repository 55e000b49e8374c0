"""The autoencoder of SD-1.x (AutoencoderKL), which maps images to latents and back, frame by frame.

Parameter names follow diffusers' AutoencoderKL. Its blocks share no code with the UNet's: they have neither time
embeddings nor hook points, and their norms use another epsilon.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.config import VAEConfig
from anyi2v.backbone.layers import group_norm, group_norm_silu
from anyi2v.errors import InputError
from anyi2v.method.config import OperatorKind
from anyi2v.operators import using


class AutoencoderKL(nn.Module):
    """Encodes images as diagonal Gaussians over latents, and decodes latents.

    Reference: Rombach et al. 2022 (arXiv:2112.10752), appendix G; diffusers, autoencoder_kl.py.
    """

    operators: OperatorKind = "fast"
    """Implementation of the operators: the fastest ("fast"), or only the formulas ("reference")."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters; images and latents are converted to it."""
        return self.quant_conv.weight.dtype

    def moments(self, image: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n c h2 w2"], Float[Tensor, "n c h2 w2"]]:
        """Compute mean and log-variance of the unscaled latents of images in [-1, 1].

        `h2 = h / factor`, `w2 = w / factor`; the log-variance is clamped to [-30, 20].

        Raises InputError if the height or width is not a multiple of `config.factor`.
        """
        height, width = image.shape[-2:]
        factor = self.config.factor
        if height % factor or width % factor:
            raise InputError(
                f"image of {height} x {width} pixels: this autoencoder needs multiples of {factor} along "
                f"both axes; crop or resize it, e.g. to {_round(height, factor)} x {_round(width, factor)}"
            )
        with using(self.operators):
            mean, logvar = self.quant_conv(self.encoder(image.to(self.dtype))).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Encode images in [-1, 1] to latents for the UNet, scale * mean; raises InputError as `moments` does."""
        return self.config.scale * self.moments(image)[0]

    def decode(self, latents: Float[Tensor, "n c h2 w2"], *, chunk: int = 8) -> Float[Tensor, "n 3 h w"]:
        """Decode the UNet's latents to images, roughly in [-1, 1] but not clipped.

        Decodes `chunk` images at a time to bound the memory; images do not depend on each other.
        """
        latents = latents.to(self.dtype) / self.config.scale
        with using(self.operators):
            return torch.cat([self.decoder(self.post_quant_conv(part)) for part in latents.split(chunk)])


def _round(size: int, factor: int) -> int:
    return max(factor, size // factor * factor)


class Encoder(nn.Module):
    """Maps images to the stacked mean and log-variance of the latents, before `quant_conv`."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.channels
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], width, config.layers, config.groups)
            level.downsamplers = nn.ModuleList([Downsample(width)] if i < len(channels) - 1 else [])
            self.down_blocks.append(level)
        self.mid_block = MidBlock(channels[-1], config.groups)
        self.conv_norm_out = nn.GroupNorm(config.groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Encode images; `c2` is twice the number of latent channels."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(group_norm_silu(self.conv_norm_out, x, large=True))


class Decoder(nn.Module):
    """Maps latents, after `post_quant_conv`, to images."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels = config.channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], config.groups)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(channels):
            level = Level(channels[max(i - 1, 0)], width, config.layers + 1, config.groups)
            level.upsamplers = nn.ModuleList([Upsample(width)] if i < len(channels) - 1 else [])
            self.up_blocks.append(level)
        self.conv_norm_out = nn.GroupNorm(config.groups, channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n 3 h w"]:
        """Decode latents to pixels, not clipped."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(group_norm_silu(self.conv_norm_out, x, large=True))


class Level(nn.Module):
    """The ResBlocks of one resolution, followed by a resampling layer if its owner adds one."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResBlock(in_channels if j == 0 else channels, channels, groups) for j in range(layers)
        )
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Run the level; one of the two lists of samplers is empty."""
        for module in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = module(x)
        return x


class MidBlock(nn.Module):
    """ResBlock, single-head attention, ResBlock."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Run the block; the shape is unchanged."""
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)


class ResBlock(nn.Module):
    """Residual block x + conv(norm(conv(norm(x)))), with a 1x1 convolution on the shortcut if the width changes."""

    def __init__(self, in_channels: int, channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Run the block; the resolution is unchanged."""
        hidden = self.conv1(group_norm_silu(self.norm1, x, large=True))
        hidden = self.conv2(group_norm_silu(self.norm2, hidden, large=True))
        return self.conv_shortcut(x) + hidden


class Attention(nn.Module):
    """Single-head self-attention over all positions, pre-normed with a residual connection."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Apply the attention; the shape is unchanged."""
        tokens = rearrange(group_norm(self.group_norm, x), "n c h w -> n (h w) c")
        mixed = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out(mixed), "n (h w) c -> n c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Convolution with stride 2; unlike the UNet's, padded only at the bottom and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Halve height and width."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Double height and width."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
