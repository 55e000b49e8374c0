"""Pictures of features and similarities: principal components as colours, and values on a colour scale."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.backbone.attention import probabilities
from anyi2v.numerics import pca

GREY = 0.85
"""Grey level of positions without a value."""


def reduced(feature: Float[Tensor, "f h w c"], components: int) -> Float[Tensor, "f h w m"]:
    """Project features onto the principal components of all frames together."""
    flat = feature.flatten(0, 2)
    return pca.project(flat, pca.fit(flat, components)).unflatten(0, feature.shape[:3])


def colours(feature: Float[Tensor, "f h w c"]) -> Float[Tensor, "f 3 h w"]:
    """Map the first three principal components of all frames together to red, green and blue in [0, 1] (Fig. 5).

    A component that is only rounding error becomes one half everywhere.
    """
    three = reduced(feature, 3)
    low, high = three.flatten(0, 2).quantile(torch.tensor([0.02, 0.98]), dim=0)
    spread = high - low
    scaled = ((three - low) / spread).clamp(0, 1)
    # float32 rounding error is about 1e-6 of the largest component
    return rearrange(scaled.where(spread > 1e-5 * spread.max(), 0.5), "f h w c -> f c h w")


def attention_map(
    query: Float[Tensor, "f h w c"], key: Float[Tensor, "g h w c"], heads: int
) -> Float[Tensor, "f h w m"]:
    """Compute where each position attends: probabilities over the m = h w positions, averaged over heads.

    `key` has one frame (g = 1) if all frames attend to frame 1. Computed frame by frame, because the probabilities of
    all heads are large.
    """
    maps = []
    for q, k in zip(query, key.expand_as(query), strict=True):
        maps.append(probabilities(q.flatten(0, 1), k.flatten(0, 1), heads).mean(0).unflatten(0, q.shape[:2]))
    return torch.stack(maps)


def heat(values: Float[Tensor, "f h w"], valid: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 3 h w"]:
    """Colour values from dark blue to yellow (viridis) over the range of the valid ones; grey elsewhere."""
    from matplotlib import colormaps  # imported late, because it is slow

    shown = values[valid]
    low, high = (shown.min(), shown.max()) if len(shown) else (values.new_tensor(0.0), values.new_tensor(1.0))
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    rgb = torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3]).float()
    return rearrange(torch.where(valid[..., None], rgb, GREY), "f h w c -> f c h w")
