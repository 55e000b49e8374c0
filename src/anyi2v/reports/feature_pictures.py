"""Pictures of features and similarities: principal components as colours, and values on a colour scale."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anyi2v.backbone.attention import probabilities
from anyi2v.images.media import to_bytes
from anyi2v.numerics import pca

GREY = 0.85
"""Grey level of positions without a value."""

BAR, LETTER = 14, 12
"""Width of a colour bar and size of the letters of its values, in pixels."""


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

    low, high = value_range(values, valid)
    scaled = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    rgb = torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3]).float()
    return rearrange(torch.where(valid[..., None], rgb, GREY), "f h w c -> f c h w")


def value_range(values: Float[Tensor, "f h w"], valid: Bool[Tensor, "f h w"]) -> tuple[float, float]:
    """Return the least and the largest of the valid values; 0 and 1 if there are none."""
    shown = values[valid]
    return (shown.min().item(), shown.max().item()) if len(shown) else (0.0, 1.0)


def colour_bar(low: float, high: float, height: int) -> Image.Image:
    """Draw the scale of `heat` as a vertical bar with its least, middle and largest value beside it."""
    column = torch.linspace(1, 0, height).view(1, height, 1).expand(1, height, BAR)
    bar = Image.fromarray(to_bytes(heat(column, torch.ones_like(column, dtype=torch.bool))[0]))
    font = ImageFont.load_default(LETTER)
    picture = Image.new("RGB", (BAR + 4 * LETTER, height), "white")
    picture.paste(bar, (0, 0))
    draw = ImageDraw.Draw(picture)
    for value, y, anchor in ((high, 0, "lt"), ((low + high) / 2, height / 2, "lm"), (low, height - 1, "lb")):
        draw.text((BAR + 4, y), f"{value:.2f}", "black", font, anchor=anchor)
    return picture
