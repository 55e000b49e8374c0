"""Random generators of a job, by purpose, and initial noise that is carried along the tracks."""

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.tracks import Box, Tracks
from anyi2v.tracks.model import centre


def stream(seed: int, purpose: Literal["inversion", "pca", "eta", "method"]) -> torch.Generator:
    """Return a CPU generator for one purpose of a job, independent of the draws for other purposes.

    A job that skips one purpose, for example because its features are given, therefore draws the same numbers for the
    others. The initial noise comes from `torch.Generator().manual_seed(seed)` itself.
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def carried(noise: Float[Tensor, "1 f c h w"], tracks: Tracks) -> Float[Tensor, "1 f c h w"]:
    """Copy the noise inside each object's box in frame 1 to its box in every later frame.

    A box moves by the displacement of its centre, rounded to whole latent cells, and keeps frame 1's size. Noise
    outside the boxes, and in parts of a box outside the image in either frame, stays independent. Later objects are in
    front. Each frame by itself is white noise unless two boxes overlap in frame 1 and then separate. Follows FreeTraj
    (arXiv:2406.16863), without its mixing of frequencies.

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
