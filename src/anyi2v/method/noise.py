"""What a job draws at random: generators by purpose, and the initial noise, which may be carried along the tracks."""

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.tracks import Box, Tracks
from anyi2v.tracks.model import centre


def stream(seed: int, purpose: Literal["inversion", "pca", "eta", "method"]) -> torch.Generator:
    """A generator on the CPU for one purpose of a job, independent of how much was drawn for any other.

    So a job that leaves one of them out, because its features are given, draws the same for the rest. The initial
    noise comes from `torch.Generator().manual_seed(seed)` itself.
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def carried(noise: Float[Tensor, "1 f c h w"], tracks: Tracks) -> Float[Tensor, "1 f c h w"]:
    """The noise, where each later frame's box holds what frame 1's box holds, as far as both are in the image.

    A box moves by whole latent cells, the nearest to the way of its centre, and keeps frame 1's size. What lies
    outside, and what comes into the image, stays independent. Later objects lie in front. Each frame by itself is
    white noise, as long as no two boxes of frame 1 overlap and then part. After FreeTraj (arXiv:2406.16863),
    without its mixing of frequencies.

    Args:
        noise: independent in every frame.
        tracks: one box per frame.
    """
    out = noise.clone()
    height, width = noise.shape[-2:]
    across, down = width / tracks.width, height / tracks.height
    for track in tracks.objects:
        x0, y0, x1, y1 = track.boxes[0]
        left, right, top, bottom = round(x0 * across), round(x1 * across), round(y0 * down), round(y1 * down)
        for f, box in enumerate(track.boxes):
            dx, dy = (round(way * scale) for way, scale in zip(_way(track.boxes[0], box), (across, down), strict=True))
            columns = range(max(left, 0, -dx), min(right, width, width - dx))
            rows = range(max(top, 0, -dy), min(bottom, height, height - dy))
            if rows and columns:
                to = (slice(rows.start + dy, rows.stop + dy), slice(columns.start + dx, columns.stop + dx))
                out[:, f, :, *to] = noise[:, 0, :, rows.start : rows.stop, columns.start : columns.stop]
    return out


def _way(start: Box, end: Box) -> tuple[float, float]:
    (x0, y0), (x1, y1) = centre(start), centre(end)
    return x1 - x0, y1 - y0
