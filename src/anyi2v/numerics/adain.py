"""Patch-wise adaptive instance normalisation, which removes the appearance from injected features."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError


def patch_adain(
    content: Float[Tensor, "*b c h w"],
    style: Float[Tensor, "*b c h w"],
    patch: int,
    eps: float = 1e-6,
) -> Float[Tensor, "*b c h w"]:
    """Match each patch and channel of `content` to the mean and standard deviation of `style` (Eq. 1 and 2).

    Computes std(style) * (content - mean(content)) / (std(content) + eps) + mean(style) over non-overlapping patches of
    `patch` x `patch` cells; 0 makes the whole map one patch. Standard deviations are unbiased, and `eps` is added in
    the denominator only, as in FudanCVL/AnyI2V. If the patch size does not divide the map, the last row and column of
    patches are smaller, each with its own statistics. A patch of a single cell becomes the style's value; a patch with
    constant content becomes the style's mean.

    Raises InputError for a negative patch.
    """
    if patch < 0:
        raise InputError(f"patch size {patch}; choose 1 or more cells, or 0 for the whole map")
    rows, cols = (_cuts(length, patch) for length in content.shape[-2:])
    bands = zip(content.split(rows, dim=-2), style.split(rows, dim=-2), strict=True)
    return torch.cat(
        [
            torch.cat(
                [
                    _match(c, s, patch, eps)
                    for c, s in zip(band.split(cols, dim=-1), style_band.split(cols, dim=-1), strict=True)
                ],
                dim=-1,
            )
            for band, style_band in bands
        ],
        dim=-2,
    )


def _cuts(length: int, patch: int) -> list[int]:
    """Split a length into the part covered by whole patches and the rest; empty parts are omitted."""
    rest = length % patch if patch else 0
    return [part for part in (length - rest, rest) if part]


def _match(
    content: Float[Tensor, "*b c h w"], style: Float[Tensor, "*b c h w"], patch: int, eps: float
) -> Float[Tensor, "*b c h w"]:
    """Compute `patch_adain` for patches of equal size: `patch`, or the whole side if that is smaller."""
    high, wide = (min(patch or side, side) for side in content.shape[-2:])
    if high * wide == 1:
        return style
    split = "... (y p) (x q) -> ... y p x q"
    content, style = (rearrange(t, split, p=high, q=wide) for t in (content, style))
    std, mean = torch.std_mean(content, dim=(-3, -1), keepdim=True)
    style_std, style_mean = torch.std_mean(style, dim=(-3, -1), keepdim=True)
    matched = style_std * (content - mean) / (std + eps) + style_mean
    return rearrange(matched, "... y p x q -> ... (y p) (x q)")
