"""FreeTraj (Qiu et al. 2024, arXiv:2406.16863): initial noise that moves with the boxes, and edited attention.

Reference: arthur-qiu/FreeTraj at 1e0f64b, which supports a single object. With several, two cells count as on the same
side if they lie in exactly the same boxes, and noise of later objects is pasted over that of earlier ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.comparators.attention_maps import MapPoint, check_maps, map_points
from anyi2v.comparators.boxes import Cells, Grid, check_tracks, fractions, gaussian, inside, place
from anyi2v.comparators.frequencies import low_pass, mix
from anyi2v.comparators.injected import Injected
from anyi2v.comparators.settings import FreeTrajSettings, share
from anyi2v.comparators.subjects import subject_tokens, subject_words
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.errors import InputError
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.method.noise import stream
from anyi2v.taps import At, Tap, chain, no_tap
from anyi2v.tracks import Box, Tracks


class FreeTraj(FreeTrajSettings):
    """FreeTraj with its settings: boxes in the noise and attention of a text-to-video model.

    The condition image has an effect only with `injection`, which adds its features to frame 1 in the pass with the
    prompt.
    """

    def check(self, config: MethodConfig, unet: UNet, tracks: Tracks, prompt: str, frames: int) -> None:
        """Raise InputError for inputs that cannot work, before any computation."""
        check_tracks("freetraj", tracks)
        check_maps("freetraj", config, temporal=self.edit_temporal)
        if self.edit_cross:
            subject_words("freetraj", self.subjects, tracks, prompt)
        if config.initial_noise != "independent":
            raise InputError("freetraj makes its own initial noise; leave initial_noise at independent")

    def footprint(self, config: MethodConfig) -> Footprint:
        """Return the attention maps that the edits materialise; nothing is optimised."""
        edits: dict[tuple[Kind, AttentionKind], bool] = {
            ("logits", "spatial"): self.edit_self,
            ("logits", "temporal"): self.edit_temporal,
            ("logits", "text"): self.edit_cross,
            ("probs", "text"): self.edit_cross,
        }
        maps = frozenset(kind for kind, on in edits.items() if on and self.edit_steps != 0)
        return Footprint(replace(config, optimise_steps=0), maps)

    def start(self, job: Job, denoiser: Denoiser) -> "FreeTrajRun":
        """Prepare a job. Raises the errors of `check`."""
        self.check(job.config, job.backbone.unet, job.tracks, job.prompt, job.frames)
        return FreeTrajRun(self, job, denoiser)


class FreeTrajRun(Injected):
    """A job with FreeTraj."""

    def __init__(self, method: FreeTraj, job: Job, denoiser: Denoiser):
        super().__init__(job, denoiser, inject=method.injection)
        self.method, self.boxes = method, [fractions(track, job.tracks) for track in job.tracks.objects]
        count = method.edit_steps
        self.edit_steps = share(6, 50, job.config.steps) if count is None else count
        config, known = job.backbone.config.text, job.backbone.embeddings
        self.tokens: list[list[int]] = []
        if method.edit_cross:
            words = subject_words("freetraj", method.subjects, job.tracks, job.prompt)
            self.tokens = [subject_tokens(config, job.prompt, subject, known) for subject in words]

    def initial_latents(self, noise: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "1 f c h w"]:
        """Combine low frequencies of noise that moves with the boxes with high frequencies of independent noise."""
        if not self.method.noise:
            return noise
        generator, grid = stream(self.job.seed, "method"), (noise.shape[-2], noise.shape[-1])
        pasted = noise[0].transpose(0, 1)
        for boxes in self.boxes:
            cells = box_cells(boxes, grid)
            patch = torch.randn(len(pasted), *cells[0].size, generator=generator)
            pasted = place([patch] * len(cells), cells, pasted, wrap=self.method.wrap)
        high = torch.randn(pasted.shape, generator=generator)
        lpf = low_pass(pasted.shape[1:], (self.method.d_t, self.method.d_s, self.method.d_s))
        return mix(pasted, high, lpf).transpose(0, 1)[None]

    def tap(self, step: Step) -> Tap:
        """The injection, and the edits during the first steps."""
        return chain(self.injection(step), self.negative_tap(step))

    def negative_tap(self, step: Step) -> Tap:
        """The edits, which also apply to the pass with the negative prompt."""
        return self._edit if step.index < self.edit_steps else no_tap

    @cached_property
    def _points(self) -> dict[str, MapPoint]:
        _, frames, _, height, width = self.job.latent_shape
        kinds, tokens = self.method.footprint(self.job.config).maps, self.job.backbone.config.text.length
        return map_points(self.job.backbone.unet, kinds, frames=frames, height=height, width=width, tokens=tokens)

    @cached_property
    def _edit(self) -> Tap:
        return At(self._points, self._edited) if self._points else no_tap

    def _edited(self, name: str, x: Tensor) -> Tensor:
        method, point = self.method, self._points[name]
        cells = [box_cells(boxes, point.grid, size=method.box_size) for boxes in self.boxes]
        sides = torch.stack([inside(boxes, point.grid, wrap=method.wrap) for boxes in cells]).to(x.device)
        if point.attention == "spatial":
            return isolate(x, sides.flatten(2), method.isolation)
        if point.attention == "temporal":
            return isolate_frames(x, sides, method.isolation)
        if point.kind == "logits":
            return mask_words(x, sides.flatten(2), self.tokens)
        bumps = [
            bump(boxes, cell, point.grid, len(tokens), method)
            for boxes, cell, tokens in zip(self.boxes, cells, self.tokens, strict=True)
        ]
        return add_subjects(x, torch.stack(bumps).flatten(2), self.tokens)


def box_cells(boxes: Sequence[Box], grid: Grid, *, size: Literal["first", "own"] = "first") -> list[Cells]:
    """Convert fractional boxes to grid cells: corners and sizes are rounded towards 0, with at least one cell.

    Args:
        boxes: x0, y0, x1, y1 of each frame.
        grid: rows and columns.
        size: "first" gives all boxes the size of the first, "own" keeps each box's own size.
    """
    made = []
    for box in boxes:
        x0, y0, x1, y1 = boxes[0] if size == "first" else box
        rows, columns = max(int((y1 - y0) * grid[0]), 1), max(int((x1 - x0) * grid[1]), 1)
        top, left = int(box[1] * grid[0]), int(box[0] * grid[1])
        made.append(Cells(top, left, top + rows, left + columns))
    return made


def isolate(logits: Float[Tensor, "b f n q k"], sides: Bool[Tensor, "o f q"], factor: float) -> Tensor:
    """Scale spatial self-attention logits by `factor` unless query and key lie in the same boxes of their frame.

    `sides` marks the cells inside each object's box.
    """
    same = (sides[..., :, None] == sides[..., None, :]).all(0)
    return torch.where(same[:, None], logits, logits * factor)


def isolate_frames(logits: Float[Tensor, "b h w n f f"], sides: Bool[Tensor, "o f h w"], factor: float) -> Tensor:
    """Scale temporal attention logits by `factor` unless the cell lies in the same boxes in both frames."""
    at = sides.permute(0, 2, 3, 1)
    same = (at[..., :, None] == at[..., None, :]).all(0)
    return torch.where(same[:, :, None], logits, logits * factor)


def mask_words(
    logits: Float[Tensor, "b f n q l"], sides: Bool[Tensor, "o f q"], tokens: Sequence[Sequence[int]]
) -> Tensor:
    """Mask text cross-attention logits: objects' words everywhere, all other words inside any box.

    Masked logits are the smallest finite number, not minus infinity: inside a box, where all are masked, the softmax is
    uniform.
    """
    subject = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    subject[[position for positions in tokens for position in positions]] = True
    masked = subject | sides.any(0)[:, None, :, None]
    return logits.masked_fill(masked, torch.finfo(logits.dtype).min)


def add_subjects(
    probs: Float[Tensor, "b f n q l"], bumps: Float[Tensor, "o f q"], tokens: Sequence[Sequence[int]]
) -> Tensor:
    """Add each object's bump to the attention of its tokens; rows are not renormalised, as published."""
    out = probs.clone()
    for positions, added in zip(tokens, bumps.to(probs), strict=True):
        out[..., list(positions)] += added[:, None, :, None]
    return out


def bump(
    boxes: Sequence[Box], cells: Sequence[Cells], grid: Grid, tokens: int, settings: FreeTrajSettings
) -> Float[Tensor, "f h w"]:
    """Return c G in each frame's box: c = strength / (first box's share of the frame) / number of tokens."""
    x0, y0, x1, y1 = boxes[0]
    c = settings.strength / ((y1 - y0) * (x1 - x0)) / tokens
    patches = [gaussian(box.size) for box in cells]
    patches = [(c * g.half()).half().float() if settings.half else c * g for g in patches]
    return place(patches, cells, torch.zeros(len(cells), *grid), wrap=settings.wrap)
