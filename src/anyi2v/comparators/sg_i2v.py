"""SG-I2V (Namekata et al. 2024, arXiv:2411.04989): latents are optimised until box contents match frame 1's.

Reference: Kmcode1/SG-I2V at 52977a2, whose backbone is Stable Video Diffusion. The aligned features are the
self-attention outputs before the output projection, computed with frame 1's keys and values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.config import UNetConfig
from anyi2v.backbone.unet import UNet, points
from anyi2v.comparators.boxes import Cells, check_tracks
from anyi2v.comparators.frequencies import low_pass, mix
from anyi2v.comparators.injected import Injected
from anyi2v.comparators.settings import SGI2VSettings
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.errors import HookError, InputError
from anyi2v.guard import all_finite, failure
from anyi2v.hook_points import Kind, Point, check_names
from anyi2v.hook_points import place as point_at
from anyi2v.job import Job, LossRecord
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.operators import attention
from anyi2v.taps import Pass, Tap
from anyi2v.tracks import Tracks

PROJECTIONS: tuple[Kind, ...] = ("query", "key", "value")


class SGI2V(SGI2VSettings):
    """SG-I2V with its settings. In the paper, the condition is the first frame of an image-to-video model.

    With a text-to-video backbone, the prompt determines frame 1; with `injection` it also has the condition's
    structure.
    """

    def check(self, config: MethodConfig, unet: UNet, tracks: Tracks, prompt: str, frames: int) -> None:
        """Raise InputError or HookError for inputs that cannot work, before any computation."""
        check_tracks("sg-i2v", tracks)
        check_names(self.layers, points(unet), "sg-i2v: layers")
        for layer in self.layers:
            if not Point(layer).attends:
                like = "name a layer like up_blocks.2.attentions.1"
                raise HookError(f"sg-i2v: layers: {layer} has no spatial self-attention; {like}")
        if not self.layers:
            raise InputError("sg-i2v: layers=() leaves nothing to align; name a layer")
        first, last = optimised_steps(self, config.steps)
        if first > last:
            raise InputError(f"sg-i2v: first_step={first} comes after last_step={last}; give a later last_step")

    def footprint(self, config: MethodConfig) -> Footprint:
        """Return settings with which AnyI2V optimises the same number of steps on the same layers."""
        first, last = optimised_steps(self, config.steps)
        align = tuple(point_at(layer, part) for layer in self.layers for part in PROJECTIONS)
        return Footprint(replace(config, align=align, optimise_steps=last - first + 1, iterations=self.iterations))

    def start(self, job: Job, denoiser: Denoiser) -> "SGI2VRun":
        """Prepare a job.

        Raises:
            InputError: `check` fails, or no frame has anything to align.
        """
        self.check(job.config, job.backbone.unet, job.tracks, job.prompt, job.frames)
        return SGI2VRun(self, job, denoiser)


class SGI2VRun(Injected):
    """A job with SG-I2V."""

    def __init__(self, method: SGI2V, job: Job, denoiser: Denoiser):
        super().__init__(job, denoiser, inject=method.injection)
        self.method, self.grid = method, job.latent_shape[-2:]
        self.boxes = box_cells(job.tracks, self.grid)
        for track, cells in zip(job.tracks.objects, self.boxes, strict=True):
            if not method.stretch_first_box and not _visible(cells[0], self.grid):
                raise InputError(
                    f"sg-i2v: object {track.name!r} is outside of frame 1, so there is nothing to align with; move its "
                    "first box into the frame"
                )
        self.points = [point_at(layer, part) for layer in method.layers for part in PROJECTIONS]
        self.first_step_optimised, self.last_step = optimised_steps(method, job.config.steps)
        count = max(min(self.last_step, job.config.steps - 1) - self.first_step_optimised + 1, 0)
        self._report = job.stages.counter("optimisation", count * method.iterations)

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Optimise the latents, then restore their original high frequencies."""
        if not self.first_step_optimised <= step.index <= self.last_step:
            return z
        with self.job.stages.stage("optimisation"):
            optimised, losses = self._optimised(z, step)
            if losses:
                z = merged(optimised, z, self.method)
        new = (LossRecord(step.index, step.t, k, loss) for k, loss in enumerate(losses))
        self.losses = (*self.losses, *new)
        return z

    def _optimised(self, z: Tensor, step: Step) -> tuple[Tensor, list[float]]:
        method, losses = self.method, []
        z = z.detach().clone()
        optimiser = adamw(z, method)
        for iteration in range(method.iterations):
            start = z.detach().requires_grad_()
            loss = self._loss(start, step, iteration)
            if loss is None:  # no box is visible after frame 1
                break
            (z.grad,) = torch.autograd.grad(loss, start)
            optimiser.step()
            if not all_finite(loss, z):
                at = Pass("optimisation", step.t, step.index, iteration)
                what = "the alignment loss, or the updated latents,"
                raise failure(what, at, culprit=f"lr={method.lr:g}", dtype=self.denoiser.unet.dtype)
            losses.append(loss.item())
            self._report(1)
        return z, losses

    def _loss(self, z: Tensor, step: Step, iteration: int) -> Float[Tensor, ""] | None:
        edit: Tap = self.injection(step)
        seen = self.denoiser.features(self.points, z, step, tap=edit, iteration=iteration)
        features = [with_first_keys(seen, layer, self.job.backbone.unet.config) for layer in self.method.layers]
        return loss(resized(features, self.grid), self.boxes, self.method)


def optimised_steps(settings: SGI2VSettings, steps: int) -> tuple[int, int]:
    """Return the first and last denoising steps before which latents are optimised."""
    first = round(5 * steps / 50) if settings.first_step is None else settings.first_step
    last = max(first, round(20 * steps / 50)) if settings.last_step is None else settings.last_step
    return first, last


def adamw(z: Tensor, settings: SGI2VSettings) -> torch.optim.Optimizer:
    """Create the optimiser of one denoising step; its weight decay shrinks the latents."""
    return torch.optim.AdamW([z], lr=settings.lr, weight_decay=settings.weight_decay)


def box_cells(tracks: Tracks, grid: Sequence[int]) -> list[list[Cells]]:
    """Return the cells of each object's box per frame: corners rounded down, at least one row and column."""
    across, down = grid[1] / tracks.width, grid[0] / tracks.height
    made = []
    for track in tracks.objects:
        cells = []
        for x0, y0, x1, y1 in track.boxes:
            top, left = math.floor(y0 * down), math.floor(x0 * across)
            bottom, right = max(math.floor(y1 * down), top + 1), max(math.floor(x1 * across), left + 1)
            cells.append(Cells(top, left, bottom, right))
        made.append(cells)
    return made


def with_first_keys(
    seen: Mapping[str, Float[Tensor, "1 _ h w c"]], layer: str, config: UNetConfig
) -> Float[Tensor, "f h w c"]:
    """Return softmax(Q_f K_1^T / sqrt(d)) V_1 with frame 1's keys and values, detached."""
    query, key, value = (seen[point_at(layer, part)] for part in PROJECTIONS)
    key, value = (x[:, :1].detach().flatten(1, 3) for x in (key, value))
    return attention(query.flatten(1, 3), key, value, config.heads_of(query.shape[-1])).view_as(query)[0]


def resized(features: Sequence[Float[Tensor, "f _ _ _"]], grid: Sequence[int]) -> Float[Tensor, "f h w c"]:
    """Concatenate the maps along channels after bilinear resizing to the latent grid; float32."""
    maps = [x.permute(0, 3, 1, 2).float() for x in features]
    size = [*grid]
    resized = [x if [*x.shape[2:]] == size else F.interpolate(x, size, mode="bilinear") for x in maps]
    return torch.cat(resized, 1).permute(0, 2, 3, 1)


def loss(
    features: Float[Tensor, "f h w c"], boxes: Sequence[Sequence[Cells]], settings: SGI2VSettings
) -> Float[Tensor, ""] | None:
    """Sum of G mean_c (target - source)^2 divided by the sum of G, over all objects and all frames after the first.

    The target is frame 1's crop of the same features, detached and resized to the box's cells. Returns None if no box
    lies in the frame.
    """
    errors, weights = [], []
    x, grid = features.permute(0, 3, 1, 2), features.shape[1:3]
    for first, *others in boxes:
        target, known = _first_crop(x[0].detach(), first, grid, stretch=settings.stretch_first_box)
        for source, box in zip(x[1:], others, strict=True):
            if not (spans := _visible(box, grid)) or not target.numel():
                continue
            rows, columns = (
                slice(low - start, high - start) for (low, high), start in zip(spans, box[:2], strict=True)
            )
            here = _bilinear(target, box.size)[:, rows, columns]
            there = source[:, spans[0][0] : spans[0][1], spans[1][0] : spans[1][1]]
            # a cell only partly visible in frame 1 would be compared with the padded edge
            seen = _bilinear(known, box.size)[0, rows, columns] > 1 - 1e-6
            g = weight(box.size, settings.sigma).to(x.device)[rows, columns] * seen
            errors.append((g * (here - there).square().mean(0)).sum())
            weights.append(g.sum())
    if not weights or not (total := torch.stack(weights).sum()) > 0:
        return None
    return torch.stack(errors).sum() / total


def weight(size: tuple[int, int], sigma: float) -> Float[Tensor, "y x"]:
    """Gaussian of a box at the cell centres, with sigma relative to half the box size and its maximum scaled to 1."""
    rows, columns = (
        torch.exp(-((torch.arange(n, dtype=torch.float64) + 0.5 - n / 2) / (sigma * n / 2)).square() / 2) for n in size
    )
    bell = rows[:, None] * columns
    return (bell / bell.max()).float()


def merged(
    new: Float[Tensor, "1 f c h w"], old: Float[Tensor, "1 f c h w"], settings: SGI2VSettings
) -> Float[Tensor, "1 f c h w"]:
    """Combine low frequencies of the optimised latents with high frequencies of the original ones."""
    if settings.merge:
        new = mix(new, old, low_pass(new.shape[-2:], (settings.d_s, settings.d_s)))
    return new.half().float() if settings.half else new


def _first_crop(
    first: Float[Tensor, "c h w"], box: Cells, grid: Sequence[int], *, stretch: bool
) -> tuple[Tensor, Tensor]:
    """Return frame 1's crop `c y x` and a mask `1 y x` of its known cells.

    Cells beyond the frame repeat its edge, unless the visible part is to be stretched.
    """
    if stretch:
        spans = _visible(box, grid)
        (top, bottom), (left, right) = spans or ((0, 0), (0, 0))
        crop = first[:, top:bottom, left:right]
        return crop, torch.ones_like(crop[:1])
    rows = torch.arange(box.top, box.bottom, device=first.device)
    columns = torch.arange(box.left, box.right, device=first.device)
    known = ((rows >= 0) & (rows < grid[0]))[:, None] & ((columns >= 0) & (columns < grid[1]))
    crop = first[:, rows.clamp(0, grid[0] - 1)[:, None], columns.clamp(0, grid[1] - 1)]
    return crop, known[None].to(crop)


def _visible(box: Cells, grid: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the rows and columns of a box that lie on the grid, or None if there are none."""
    rows = max(box.top, 0), min(box.bottom, grid[0])
    columns = max(box.left, 0), min(box.right, grid[1])
    return (rows, columns) if rows[0] < rows[1] and columns[0] < columns[1] else None


def _bilinear(x: Float[Tensor, "c y x"], size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[1:]) == size else F.interpolate(x[None], size, mode="bilinear")[0]
