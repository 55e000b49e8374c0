"""The feed-forward layer of transformers: norm, GEGLU and a linear layer, added to its input."""

from jaxtyping import Float
from torch import Tensor, nn

from anyi2v import operators
from anyi2v.backbone.layers import LayerNorm, Linear
from anyi2v.operators import plain


class FeedForward(nn.Module):
    """GEGLU feed-forward; parameters `net.0.proj` and `net.2` as in diffusers."""

    def __init__(self, channels: int):
        super().__init__()
        # index 1 is a dropout in the published code; it has no parameters
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x: Float[Tensor, "*n c"], norm: nn.Module) -> Float[Tensor, "*n c"]:
        """Return x + feed_forward(norm(x))."""
        layers = self._layers(norm)
        if layers is None:
            return x + self.net(norm(x))
        norm, proj, out = layers
        return operators.feed_forward(x, norm.weight, norm.bias, proj.weight, proj.bias, out.weight, out.bias, norm.eps)

    def _layers(self, norm: nn.Module) -> tuple[nn.LayerNorm, Linear, Linear] | None:
        """Return norm and linear layers if all are the original ones without hooks, so that they can be fused; else
        None."""
        net = self.net
        if not (plain(net, nn.Sequential) and plain(net[1], nn.Identity) and plain(geglu := net[0], GEGLU)):
            return None
        if plain(norm, LayerNorm, nn.LayerNorm) and plain(geglu.proj, Linear) and plain(out := net[2], Linear):
            return norm, geglu.proj, out
        return None


class GEGLU(nn.Module):
    """Gated linear unit, value * gelu(gate), both linear in the input (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = Linear(channels, 2 * out_channels)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """Map `c` channels to `d = out_channels`."""
        return operators.geglu(self.proj(x))
