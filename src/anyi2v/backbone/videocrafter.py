"""VideoCrafter2's temporal layers, convolutions over frames in ResBlocks and transformers after spatial ones.

Reference: AILab-CVC/VideoCrafter, lvdm/modules/networks/openaimodel3d.py and lvdm/modules/attention.py.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anyi2v.backbone.animatediff import MotionModule
from anyi2v.backbone.call import Call
from anyi2v.backbone.config import FactorisedConfig
from anyi2v.backbone.layers import group_norm
from anyi2v.backbone.slots import Design, Site, Slot, Temporal


class Factorised(Design):
    """The VideoCrafter2 design; only its convolutions see the order of frames, the attentions have no positions."""

    def __init__(self, config: FactorisedConfig):
        self.config = config

    def stem(self, site: Site) -> Slot:
        """Return a transformer with its own width."""
        c = self.config
        return self._transformer(site, c.stem_heads * c.stem_head_dim, c.stem_heads)

    def after_resnet(self, site: Site) -> Slot:
        """Return a temporal convolution, in every ResBlock."""
        return TemporalConvolution(site, self.config.groups)

    def after_layer(self, site: Site) -> Slot:
        """Return a transformer if a spatial one precedes it, else an empty slot."""
        if not site.attention:
            return Slot()
        return self._transformer(site, site.channels, site.channels // self.config.head_dim)

    def _transformer(self, site: Site, width: int, heads: int) -> MotionModule:
        return MotionModule(site, width=width, heads=heads, groups=self.config.groups, norm_over="clip")


class TemporalConvolution(Temporal):
    """Residual stack of four convolutions over three frames, each after a norm over the clip; the last starts at
    zero."""

    def __init__(self, site: Site, groups: int):
        super().__init__(site.name)
        self.norms = nn.ModuleList([nn.GroupNorm(groups, site.channels) for _ in range(4)])
        self.convs = nn.ModuleList(
            [nn.Conv3d(site.channels, site.channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(4)]
        )
        for parameter in self.convs[-1].parameters():
            nn.init.zeros_(parameter)

    def mix(self, x: Float[Tensor, "n c h w"], call: Call) -> Float[Tensor, "n c h w"]:
        """Apply the convolutions; frames before the first and after the last are zero."""
        clip = hidden = rearrange(x, "(b f) c h w -> b c f h w", f=call.frames)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(F.silu(group_norm(norm, hidden)))
        return rearrange(clip + hidden, "b c f h w -> (b f) c h w")
