"""Features and similarities as pictures: principal components as colours, values as a scale of colours."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.backbone.attention import probabilities
from anyi2v.numerics import pca

GREY = 0.85
"""Of places that have no value."""


def reduced(feature: Float[Tensor, "f h w c"], components: int) -> Float[Tensor, "f h w m"]:
    """Projected on the principal components of all frames together."""
    flat = feature.flatten(0, 2)
    return pca.project(flat, pca.fit(flat, components)).unflatten(0, feature.shape[:3])


def colours(feature: Float[Tensor, "f h w c"]) -> Float[Tensor, "f 3 h w"]:
    """The first three principal components of all frames together as red, green and blue in [0, 1] (Fig. 5).

    A component that holds nothing but rounding is one half everywhere.
    """
    three = reduced(feature, 3)
    low, high = three.flatten(0, 2).quantile(torch.tensor([0.02, 0.98]), dim=0)
    spread = high - low
    scaled = ((three - low) / spread).clamp(0, 1)
    # float32 leaves about 1e-6 of the largest component where there is nothing
    return rearrange(scaled.where(spread > 1e-5 * spread.max(), 0.5), "f h w c -> f c h w")


def attention_map(
    query: Float[Tensor, "f h w c"], key: Float[Tensor, "g h w c"], heads: int
) -> Float[Tensor, "f h w m"]:
    """Where each place of each frame looks: probabilities over the m = h w places, averaged over heads.

    `key` has one frame (g = 1) where all frames look at frame 1. Frame by frame, because the probabilities of
    all heads at once are large.
    """
    maps = []
    for q, k in zip(query, key.expand_as(query), strict=True):
        maps.append(probabilities(q.flatten(0, 1), k.flatten(0, 1), heads).mean(0).unflatten(0, q.shape[:2]))
    return torch.stack(maps)


def heat(values: Float[Tensor, "f h w"], valid: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 3 h w"]:
    """From dark blue to yellow (viridis) over the range of the valid values; grey elsewhere."""
    from matplotlib import colormaps  # loaded late: it takes a while

    shown = values[valid]
    low, high = (shown.min(), shown.max()) if len(shown) else (values.new_tensor(0.0), values.new_tensor(1.0))
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    rgb = torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3]).float()
    return rearrange(torch.where(valid[..., None], rgb, GREY), "f h w c -> f c h w")
