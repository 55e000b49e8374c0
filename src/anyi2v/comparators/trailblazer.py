"""TrailBlazer (Ma et al. 2024, arXiv:2401.00896): text and temporal attention edited by boxes.

Reference: hohonu-vicml/TrailBlazer at de2696e, whose backbone is ZeroScope. Its scheduler and the text that it appends
to prompts are not part of the method here. Boxes are clipped to the frame, where the published code raises errors.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.comparators.attention_maps import MapPoint, check_maps, map_points
from anyi2v.comparators.boxes import Cells, Grid, check_tracks, fractions, gaussian, inside, place
from anyi2v.comparators.injected import Injected
from anyi2v.comparators.settings import TrailBlazerSettings, share
from anyi2v.comparators.subjects import subject_tokens, subject_words, trailing_tokens
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.samplers import ddim
from anyi2v.taps import At, Tap, chain, no_tap
from anyi2v.tracks import Box, Tracks


class TrailBlazer(TrailBlazerSettings):
    """TrailBlazer with its settings: boxes in the attention of a text-to-video model.

    With one object, the job's own passes are edited. With several, each object is first sampled alone by DDIM, with its
    words as the prompt, and its boxes are blended into the job's latents. The condition image has an effect only with
    `injection`, which adds its features to frame 1 in the pass with the prompt.
    """

    def check(self, config: MethodConfig, unet: UNet, tracks: Tracks, prompt: str, frames: int) -> None:
        """Raise InputError for inputs that cannot work, before any computation."""
        check_tracks("trailblazer", tracks)
        check_maps("trailblazer", config, temporal=self.temporal_steps != 0)
        subject_words("trailblazer", self.subjects, tracks, prompt)

    def footprint(self, config: MethodConfig) -> Footprint:
        """Return the attention maps that the edits materialise; nothing is optimised."""
        edits: dict[tuple[Kind, AttentionKind], bool] = {
            ("probs", "text"): self.spatial_steps != 0,
            ("probs", "temporal"): self.temporal_steps != 0,
        }
        return Footprint(replace(config, optimise_steps=0), frozenset(kind for kind, on in edits.items() if on))

    def start(self, job: Job, denoiser: Denoiser) -> "TrailBlazerRun | SeveralSubjects":
        """Prepare a job. Raises the errors of `check`."""
        self.check(job.config, job.backbone.unet, job.tracks, job.prompt, job.frames)
        words = subject_words("trailblazer", self.subjects, job.tracks, job.prompt)
        if len(words) > 1:
            return SeveralSubjects(self, job, denoiser, words)
        edits = BoxEdits(self, job, fractions(job.tracks.objects[0], job.tracks), job.prompt, words[0])
        return TrailBlazerRun(self, job, denoiser, edits)


class TrailBlazerRun(Injected):
    """A job with one object."""

    def __init__(self, method: TrailBlazer, job: Job, denoiser: Denoiser, edits: "BoxEdits"):
        super().__init__(job, denoiser, inject=method.injection)
        self.edits = edits

    def tap(self, step: Step) -> Tap:
        """The injection, and the edits of the first steps."""
        return chain(self.injection(step), self.edits.tap(step))

    def negative_tap(self, step: Step) -> Tap:
        """The temporal edits, if the setting `temporal_pass` is "negative"."""
        return self.edits.negative_tap(step)


class BoxEdits:
    """Attention edits that draw one object into its boxes.

    Args:
        method: the settings.
        job: provides the network, the size and the number of steps.
        boxes: as fractions of the frame, one per frame.
        prompt: prompt of the edited pass.
        words: words of the prompt that describe the object.
    """

    def __init__(self, method: TrailBlazer, job: Job, boxes: Sequence[Box], prompt: str, words: str):
        self.method, self.job, self.boxes = method, job, boxes
        text, known, steps = job.backbone.config.text, job.backbone.embeddings, job.config.steps
        trailing = trailing_tokens(text, prompt, method.trailing, known, count_words=method.count_words)
        self.tokens = sorted({*subject_tokens(text, prompt, words, known), *trailing})
        published = share(5, 40, steps)
        self.spatial_steps = published if method.spatial_steps is None else method.spatial_steps
        self.temporal_steps = published if method.temporal_steps is None else method.temporal_steps

    def tap(self, step: Step) -> Tap:
        """The edits of the pass with the prompt."""
        spatial = self._edit(step, "text") if step.index < self.spatial_steps else no_tap
        return chain(spatial, self._temporal(step, "prompt"))

    def negative_tap(self, step: Step) -> Tap:
        """The edits of the pass with the negative prompt."""
        return self._temporal(step, "negative")

    def _temporal(self, step: Step, of: str) -> Tap:
        on = step.index < self.temporal_steps and self.method.temporal_pass == of
        return self._edit(step, "temporal") if on else no_tap

    def _edit(self, step: Step, attention: AttentionKind) -> Tap:
        names = [name for name, point in self._points.items() if point.attention == attention]
        return At(names, self._edited) if names else no_tap

    @cached_property
    def _points(self) -> dict[str, MapPoint]:
        _, frames, _, height, width = self.job.latent_shape
        kinds, tokens = self.method.footprint(self.job.config).maps, self.job.backbone.config.text.length
        return map_points(self.job.backbone.unet, kinds, frames=frames, height=height, width=width, tokens=tokens)

    def _edited(self, name: str, probs: Tensor) -> Tensor:
        point, method = self._points[name], self.method
        cells = box_cells(self.boxes, point.grid, method)
        if point.attention == "text":
            return edit_words(probs, cells, point.grid, self.tokens, method)
        edited = edit_frames(probs, cells, point.grid, method)
        return edited.abs() if method.absolute else edited


def box_cells(boxes: Sequence[Box], grid: Grid, settings: TrailBlazerSettings) -> list[Cells]:
    """Convert fractional boxes to grid cells: int((x0 + margin) w) to int((x1 - margin) w), rows likewise.

    A box thinner than a cell occupies one cell, unless `thin_boxes` is "nothing".
    """
    made, margin = [], settings.margin
    for x0, y0, x1, y1 in boxes:
        top, left = int((y0 + margin) * grid[0]), int((x0 + margin) * grid[1])
        bottom, right = int((y1 - margin) * grid[0]), int((x1 - margin) * grid[1])
        if settings.thin_boxes == "cell":
            bottom, right = max(bottom, top + 1), max(right, left + 1)
        made.append(Cells(top, left, max(bottom, top), max(right, left)))
    return made


def edit_words(
    probs: Float[Tensor, "b f n q l"],
    cells: Sequence[Cells],
    grid: Grid,
    tokens: Sequence[int],
    settings: TrailBlazerSettings,
) -> Float[Tensor, "b f n q l"]:
    """Spatial edit: A (1 where g is not 0, else c_w) + c_s g for the edited tokens, with g = max(A) G in the box.

    The maximum is taken over the whole map. Rows are not renormalised.
    """
    g = _patches(cells, grid, probs.max(), settings).to(probs.device)
    weaken = _rounded(torch.tensor(settings.weaken), settings).to(probs)
    factor = torch.where(g != 0, 1.0, weaken).flatten(1)[:, None, :, None]
    added = _rounded(settings.strengthen * g, settings).flatten(1)[:, None, :, None]
    out = probs.clone()
    out[..., list(tokens)] = (probs[..., list(tokens)] * factor + added).to(probs.dtype)
    return out


def edit_frames(
    probs: Float[Tensor, "b h w n f f"], cells: Sequence[Cells], grid: Grid, settings: TrailBlazerSettings
) -> Float[Tensor, "b h w n f f"]:
    """Temporal edit of query frame i and key frame j: T (1 where p is not 0, else c_w) + c_s p.

    p = (1 - d) g + d (g - max g) with d = |i - j| / F inside B_i, then inside B_j, which takes precedence where they
    overlap: nearby frames attract each other, distant frames repel.
    """
    frames, top = len(cells), probs.max()
    g, there = _patches(cells, grid, top, settings).to(probs.device), inside(cells, grid).to(probs.device)
    peaks = torch.stack([_peak(box, top, settings) for box in cells]).to(probs.device)
    below = _rounded(g - peaks[:, None, None], settings)
    index = torch.arange(frames, device=probs.device)
    d = ((index[:, None] - index).abs() / frames)[..., None, None]

    def patches(g: Tensor, below: Tensor) -> Tensor:
        return _rounded(_rounded((1 - d) * g, settings) + _rounded(d * below, settings), settings)

    of_query = torch.where(there[:, None], patches(g[:, None], below[:, None]), 0.0)
    patch = torch.where(there[None], patches(g[None], below[None]), of_query).permute(2, 3, 0, 1)[:, :, None]
    weaken = _rounded(torch.tensor(settings.weaken), settings).to(probs)
    factor = torch.where(patch != 0, 1.0, weaken)
    return (probs * factor + _rounded(settings.strengthen * patch, settings)).to(probs.dtype)


def blend(
    z: Float[Tensor, "1 f c h w"],
    subjects: Sequence[Float[Tensor, "1 f c h w"]],
    boxes: Sequence[Sequence[Cells]],
    a: float,
) -> Float[Tensor, "1 f c h w"]:
    """Blend each subject's latents into its boxes: a z + (1 - a) subject; later subjects cover earlier ones."""
    out = z
    for subject, cells in zip(subjects, boxes, strict=True):
        there = inside(cells, (z.shape[-2], z.shape[-1])).to(z.device)[:, None]
        out = torch.where(there, a * z + (1 - a) * subject, out)
    return out


def subject_cells(boxes: Sequence[Box], grid: Grid, settings: TrailBlazerSettings) -> list[Cells]:
    """Return the cells in which a subject's latents are blended; see the setting `subject_cells`."""
    if settings.subject_cells == "box":
        return box_cells(boxes, grid, settings)
    square = box_cells(boxes, (grid[1], grid[1]), settings)
    return [Cells(max(box.top - 1, 0), max(box.left - 1, 0), box.bottom, box.right) for box in square]


class SeveralSubjects(Injected):
    """A job with several objects: each is sampled alone, in lockstep with the job, and blended into its latents."""

    def __init__(self, method: TrailBlazer, job: Job, denoiser: Denoiser, words: Sequence[str]):
        super().__init__(job, denoiser, inject=method.injection)
        self.method, self.boxes = method, [fractions(track, job.tracks) for track in job.tracks.objects]
        steps = method.integration_steps
        self.integration_steps = share(20, 40, job.config.steps) if steps is None else steps
        with torch.no_grad():
            texts = job.backbone.encode_text(list(words)).float()
        self.denoisers = [
            Denoiser(
                job.backbone.unet,
                text[None],
                denoiser.negative,
                job.config,
                schedule=denoiser.schedule,
                fps=job.fps,
                low_memory=job.low_memory,
            )
            for text in texts
        ]
        self.edits = [BoxEdits(method, job, boxes, word, word) for boxes, word in zip(self.boxes, words, strict=True)]
        self.latents: list[Tensor] = []
        self.before: Step | None = None

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Blend the subjects' latents after the previous step into `z`; the job's own weight grows from a = 0."""
        if self.before is None:
            self.latents = [z] * len(self.boxes)
        elif self.before.index < self.integration_steps:
            self._advance(self.before)
            grid, a = (z.shape[-2], z.shape[-1]), self.before.index / self.integration_steps
            z = blend(z, self.latents, [subject_cells(boxes, grid, self.method) for boxes in self.boxes], a)
        self.before = step
        return z

    @torch.no_grad()
    def _advance(self, step: Step) -> None:
        with self.job.stages.stage("subjects"):
            for o, (denoiser, edits) in enumerate(zip(self.denoisers, self.edits, strict=True)):
                taps = {"tap": edits.tap(step), "negative_tap": edits.negative_tap(step)}
                self.latents[o] = ddim(self.latents[o], denoiser(self.latents[o], step, **taps), step)


def _patches(cells: Sequence[Cells], grid: Grid, top: Tensor, settings: TrailBlazerSettings) -> Float[Tensor, "f h w"]:
    patches = [_patch(box, top, settings) for box in cells]
    return place(patches, cells, torch.zeros(len(cells), *grid), wrap=False)


def _patch(box: Cells, top: Tensor, settings: TrailBlazerSettings) -> Float[Tensor, "y x"]:
    """Return g = max(A) G for one box."""
    return _rounded(_rounded(gaussian(box.size), settings) * top.float().cpu(), settings)


def _peak(box: Cells, top: Tensor, settings: TrailBlazerSettings) -> Float[Tensor, ""]:
    patch = _patch(box, top, settings)
    return patch.max() if patch.numel() else patch.new_zeros(())


def _rounded(x: Tensor, settings: TrailBlazerSettings) -> Tensor:
    return x.half().float() if settings.half else x
