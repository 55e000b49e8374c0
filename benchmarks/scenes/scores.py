"""Scores of a video of a case: where its objects are, by their known look, their outline, colour and surroundings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.micro.benchmark.measure import displacements
from anyi2v.numerics.template_matching import peak_offset
from benchmarks.scenes.cases import Case, boxes_of
from benchmarks.scenes.drawing import Sprites, tinted
from benchmarks.scenes.measure import align, templates
from benchmarks.scenes.scenes import SIZE, TINTS, Thing
from benchmarks.scenes.segmenter import Segmenter
from benchmarks.scenes.world import Placement, paint

LARGEST_ERROR = 0.05
"""Largest mean squared error of the colours, in [0, 1], of a place that counts as the object."""
LEAST_IOU = 0.5
"""Smallest intersection over union of an outline's place that counts as the object."""
REACH = 6.0
"""Largest displacement of the scenery between two frames that is tried, in pixels."""


@dataclass(frozen=True)
class Scores:
    """Scores of one object."""

    trajectory_error: float
    """Mean distance in pixels between the object's centre and the requested one; a frame without the object counts as
    half the picture. The look of an object prompted for a cut-out is not known: there it is the outline's error."""
    outline_error: float
    """The same, found by the outline alone."""
    found: float
    """Share of frames with the object."""
    first_frame_iou: float
    """Intersection over union of the segmenter's mask of frame 1, near the object, and the object's."""
    tint_right: bool
    """Whether the colours inside the object's mask in frame 1 are nearer to the prompted tint than to other ones."""


@dataclass(frozen=True)
class Surroundings:
    """Scores of the scenery, which should stand still."""

    drift: float
    """Mean displacement between two frames, in pixels, of the scenery far from boxes and objects."""
    dragged: float
    """The same of the scenery inside of the boxes but outside of the objects; NaN if there is hardly any."""


def locate(
    video: Float[Tensor, "f 3 h w"], thing: Thing, sprites: Sprites
) -> tuple[Float[Tensor, "f 2"], Bool[Tensor, " f"]]:
    """Return the centre (x, y) of an object in each frame, in pixels, and whether it is there.

    The place with the smallest mean squared error between the frame and the object as rendered in the requested size
    and angle, weighted by its alpha.
    """
    sprite = tinted(sprites[thing.name], thing.tint)[:4]
    centres, errors = [], []
    for frame, place in zip(video, thing.places, strict=True):
        error = _error(frame, paint(sprite, Placement(0.5, 0.5, place.scale, place.angle), SIZE))
        row, column = divmod(int(error.argmin()), error.shape[1])
        centre = []
        for line, at in ((error[row], column), (error[:, column], row)):
            inner = 0 < at < len(line) - 1
            centre.append(at + (peak_offset(*(-line[at - 1 : at + 2]).tolist()) if inner else 0.0))
        centres.append(centre)
        errors.append(error.min())
    return torch.tensor(centres), torch.stack(errors) <= LARGEST_ERROR


def outlined(
    masks: Bool[Tensor, "f h w"], thing: Thing, sprites: Sprites
) -> tuple[Float[Tensor, "f 2"], Bool[Tensor, " f"]]:
    """Return the middle (x, y) of an object's box in each frame, in pixels, and whether it is there, by its outline.

    The place with the largest intersection over union of the frame's mask and the object's outline in the requested
    angle and about the requested size, which do not change in the cases.
    """
    place = thing.places[0]
    fit = align(masks, templates(sprites[thing.name][:4], SIZE, (place.angle,), (place.scale, place.scale)))
    return middles(fit.painted[:, 3] > 0.5), fit.iou >= LEAST_IOU


def middles(masks: Bool[Tensor, "f h w"]) -> Float[Tensor, "f 2"]:
    """Return the middle (x, y) of the box around each mask, in pixels."""
    boxes = torch.tensor(boxes_of(masks))
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _error(frame: Float[Tensor, "3 h w"], drawn: Float[Tensor, "4 h w"]) -> Float[Tensor, "h2 w2"]:
    """Return the error for every centre of the object from 0 to the picture's side; `drawn` is at the centre.

    sum alpha (I - C)^2 = sum alpha I^2 - 2 (alpha C) I + alpha C^2, each a correlation.
    """
    alpha, colour = drawn[3], drawn[:3]
    own = (colour.square() / alpha.clamp(min=1e-3)).sum(0)
    canvas = (2 * SIZE, 2 * SIZE)

    def correlated(image: Tensor, kernel: Tensor) -> Tensor:
        product = torch.fft.rfft2(image, s=canvas) * torch.fft.rfft2(kernel, s=canvas).conj()
        full = torch.fft.irfft2(product, s=canvas)
        half = SIZE // 2
        return full.roll((half, half), dims=(-2, -1))[..., : SIZE + 1, : SIZE + 1]

    seen = correlated(torch.ones_like(alpha), alpha)
    total = correlated(frame.square().sum(0), alpha) - 2 * correlated(frame, colour).sum(0)
    total = total + correlated(torch.ones_like(own), own)
    error = total / (3 * seen.clamp(min=1e-3))
    return error.masked_fill(seen < 0.5 * alpha.sum(), torch.inf)


def score(video: Float[Tensor, "f 3 h w"], case: Case, sprites: Sprites, segmenter: Segmenter) -> list[Scores]:
    """Score a video, one entry per object; `sprites` are the world's."""
    masks = segmenter.masks(video)
    mask, lost = masks[0], torch.tensor(SIZE / 2)
    found = []
    for i, thing in enumerate(case.scene.things):
        centres, there = locate(video, thing, sprites)
        asked = SIZE * torch.tensor([[place.x, place.y] for place in thing.places])
        distance = torch.where(there, (centres - asked).norm(dim=1), lost)
        places, outlines = outlined(masks, thing, case.shapes)
        apart = torch.where(outlines, (places - middles(case.masks[i])).norm(dim=1), lost)
        if case.kind == "cut-out":
            distance, there = apart, outlines
        own, others = case.masks[i, 0], case.masks[[k for k in range(len(case.masks)) if k != i], 0].any(0)
        near = F.max_pool2d(own[None].float(), 17, stride=1, padding=8)[0] > 0
        ours = mask & near & ~others
        found.append(
            Scores(
                trajectory_error=distance.mean().item(),
                outline_error=apart.mean().item(),
                found=there.float().mean().item(),
                first_frame_iou=((ours & own).sum() / (ours | own).sum()).item(),
                tint_right=tint(video[0], own, thing, sprites) == thing.tint,
            )
        )
    return found


def tint(frame: Float[Tensor, "3 h w"], mask: Bool[Tensor, "h w"], thing: Thing, sprites: Sprites) -> str | None:
    """Return the tint, or None for the object's own colours, whose mean colour is nearest to that inside the mask."""
    mean = frame[:, mask].mean(1)
    own = {t: tinted(sprites[thing.name], t) for t in (None, *TINTS)}
    means = {t: one[:3].sum((1, 2)) / one[3].sum() for t, one in own.items()}
    return min(means, key=lambda t: float((means[t] - mean).norm()))


def surroundings(video: Float[Tensor, "f 3 h w"], case: Case) -> Surroundings:
    """Score the scenery of a video."""
    objects = F.max_pool2d(case.masks.any(0)[:, None].float(), 9, stride=1, padding=4)[:, 0] > 0
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    inside = torch.zeros_like(objects)
    for track in case.tracks.objects:
        for f, (x0, y0, x1, y1) in enumerate(track.boxes):
            inside[f] |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    far = displacements(video, objects | inside, reach=REACH).norm(dim=1).mean().item()
    scenery = inside & ~objects
    if scenery.flatten(1).float().mean(1).min() < 0.06:
        return Surroundings(far, float("nan"))
    return Surroundings(far, displacements(video, ~scenery, reach=REACH).norm(dim=1).mean().item())
