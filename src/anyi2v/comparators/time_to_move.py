"""Time-to-Move (Singer et al. 2025, arXiv:2511.08633): sampling from a crude animation, with two noise levels.

Objects are cut from the condition image and dragged along the boxes (section 3.1), and the animation is noised to
t_weak. Until t_strong, the boxes are reset to the noised animation (section 3.3). Reference: time-to-move/TTM.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.backbone.unet import UNet
from anyi2v.comparators.boxes import check_tracks
from anyi2v.comparators.injected import Injected
from anyi2v.comparators.settings import TimeToMoveSettings
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step, add_noise
from anyi2v.errors import InputError
from anyi2v.guard import all_finite, failure
from anyi2v.job import Job
from anyi2v.method.config import MethodConfig
from anyi2v.method.footprint import Footprint
from anyi2v.tracks import Box, Track, Tracks


class TimeToMove(TimeToMoveSettings):
    """Time-to-Move with its settings. In the paper, image-to-video models are given the first frame.

    A text-to-video backbone sees it only through the animation, so the video takes the condition's colours: use photos.
    With `injection`, frame 1 also gets the condition's features in the injection steps that remain.
    """

    def check(self, config: MethodConfig, unet: UNet, tracks: Tracks, prompt: str, frames: int) -> None:
        """Raise InputError for inputs that cannot work, before any computation."""
        check_tracks("time-to-move", tracks)
        weak, strong = clocks(self, config.steps)
        if not weak <= strong < config.steps:
            raise InputError(
                f"time-to-move: weak_step={weak} and strong_step={strong} of steps={config.steps}; they must be in "
                "this order, and smaller than steps"
            )

    def footprint(self, config: MethodConfig) -> Footprint:
        """Return the settings of plain denoising; nothing is optimised."""
        return Footprint(replace(config, optimise_steps=0))

    def start(self, job: Job, denoiser: Denoiser) -> "TimeToMoveRun":
        """Prepare a job: draw and encode the animation. Raises the errors of `check`."""
        self.check(job.config, job.backbone.unet, job.tracks, job.prompt, job.frames)
        return TimeToMoveRun(self, job, denoiser)


class TimeToMoveRun(Injected):
    """A job with Time-to-Move."""

    def __init__(self, method: TimeToMove, job: Job, denoiser: Denoiser):
        super().__init__(job, denoiser, inject=method.injection)
        self.first_step, self.strong_step = clocks(method, job.config.steps)
        frames, moved = cut_and_drag(job.image, job.tracks)
        grid, device = job.latent_shape[-2:], job.backbone.device
        self.held = F.interpolate(moved[:, None].float(), grid, mode="nearest-exact").bool().to(device)
        with job.stages.stage("encode"), torch.no_grad():
            chunks = (2 * frames - 1).split(1 if job.low_memory else 8)
            self.animation = torch.cat([job.backbone.vae.encode(chunk.to(device)) for chunk in chunks])[None]
        if not all_finite(self.animation):
            raise failure("the latents of the animation", "encode", dtype=job.backbone.vae.dtype)
        self.noise = torch.empty(0)

    def initial_latents(self, noise: Float[Tensor, "1 f c h w"]) -> Float[Tensor, "1 f c h w"]:
        """Return the animation at the noise level of t_weak."""
        self.noise = noise.to(self.animation.device)
        return add_noise(self.animation, self.noise, self.job.steps[self.first_step].at)

    def guide(self, z: Float[Tensor, "1 f c h w"], step: Step) -> Float[Tensor, "1 f c h w"]:
        """Between t_weak and t_strong: x <- (1 - M) x + M x^w, with the animation x^w at this step's noise level."""
        if not self.first_step < step.index <= self.strong_step:
            return z
        return torch.where(self.held, add_noise(self.animation, self.noise, step.at), z)


def clocks(settings: TimeToMoveSettings, steps: int) -> tuple[int, int]:
    """Return the denoising steps from which the outside and the inside of the boxes are denoised freely."""
    weak, strong = (min(round(count * steps / 50), steps - 1) for count in (14, 25))
    weak = weak if settings.weak_step is None else settings.weak_step
    strong = max(strong, weak) if settings.strong_step is None else settings.strong_step
    return weak, strong


def cut_and_drag(
    image: Float[Tensor, "3 h w"], tracks: Tracks
) -> tuple[Float[Tensor, "f 3 h w"], Bool[Tensor, "f h w"]]:
    """Drag and scale each object of frame 1 with its box; uncovered regions are filled from their surroundings.

    The object is its mask, or without a mask its whole first box. Later objects are drawn over earlier ones.

    Args:
        image: frame 1.
        tracks: in pixels of the image, one box per frame.

    Returns:
        The frames, and a mask of the dragged objects in each.
    """
    height, width = image.shape[1:]
    objects = [_object(track, (height, width)) for track in tracks.objects]
    background = filled(image, torch.stack(objects).any(0))
    count = len(tracks.objects[0].boxes)
    frames, moved = background.repeat(count, 1, 1, 1), torch.zeros(count, height, width, dtype=torch.bool)
    for track, pixels in zip(tracks.objects, objects, strict=True):
        for f, box in enumerate(track.boxes):
            grid = _sources(track.boxes[0], box, (height, width))
            there = F.grid_sample(pixels[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0] > 0.5
            colours = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
            frames[f] = torch.where(there, colours, frames[f])
            moved[f] |= there
    return frames, moved


def filled(image: Float[Tensor, "c h w"], holes: Bool[Tensor, "h w"]) -> Float[Tensor, "c h w"]:
    """Fill holes with the nearest pixel outside along rows and columns; if everything is a hole, return the image."""
    known, image = ~holes, image.clone()
    while known.any() and not known.all():
        before, values = known, image
        for axis in (0, 1):
            for shift in (1, -1):
                there, moved = before.roll(shift, axis), values.roll(shift, axis + 1)
                edge = 0 if shift == 1 else -1  # pixels wrapped around by `roll`
                there.select(axis, edge).fill_(False)
                new = there & ~known
                image, known = torch.where(new, moved, image), known | new
    return image


def _object(track: Track, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Mark the pixels of the object in frame 1."""
    x0, y0, x1, y1 = track.boxes[0]
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    pixels = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    if track.mask is not None:
        mask = torch.tensor(track.mask)[None, None].float()
        pixels &= F.interpolate(mask, size, mode="nearest-exact")[0, 0] > 0.5
    return pixels


def _sources(first: Box, box: Box, size: tuple[int, int]) -> Float[Tensor, "1 h w 2"]:
    """Return the source position in frame 1 of each pixel, in `grid_sample` coordinates from -1 to 1."""
    (a0, b0, a1, b1), (x0, y0, x1, y1) = first, box
    x, y = _axis((a0, a1), (x0, x1), size[1]), _axis((b0, b1), (y0, y1), size[0])
    return torch.stack([x.expand(size), y[:, None].expand(size)], -1)[None]


def _axis(first: tuple[float, float], box: tuple[float, float], n: int) -> Float[Tensor, " n"]:
    scale = (first[1] - first[0]) / (box[1] - box[0])
    places = (torch.arange(n, dtype=torch.float64) + 0.5 - box[0]) * scale + first[0]
    return (2 * places / n - 1).float()
