"""The benchmark `anyi2v bench backbone` of the micro backbone itself, without the method.

Measures plain text-to-video (presence of the named object, background and shape, and smooth motion), and how exactly
sampling undoes DDIM inversion.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.backbone.networks import Backbone
from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import inversion_pairs
from anyi2v.errors import InputError, ResourceError
from anyi2v.execution.cluster import Death, Workers, spread
from anyi2v.files import atomic, read_json
from anyi2v.method.config import MethodConfig
from anyi2v.method.inversion import round_trip
from anyi2v.micro.benchmark.measure import NAMES, centroids, find_object, nearest_colours
from anyi2v.micro.benchmark.provenance import provenance
from anyi2v.micro.benchmark.workers import worker_backbone
from anyi2v.micro.world.modalities import caption, render
from anyi2v.micro.world.world import (
    MODALITIES,
    SHAPES,
    Scene,
    Sprite,
    distance,
    sample_scene,
    split_generator,
    still,
)
from anyi2v.pipeline import animate
from anyi2v.reports.record import weights_sha256
from anyi2v.timing import counted
from anyi2v.tracks import Tracks

LONGEST_JUMP = 6
"""Maximum step between two frames in pixels that is not a jump; the world's own objects move at most 4.5."""
BATCH = 10
"""Number of images inverted together."""
PLAIN = MethodConfig(
    inject_hidden=(), inject_query=(), share_kv=(), optimise_steps=0, steps=100, guidance_scale=2.5, eta=1.0
)
"""Settings of plain sampling. The noise added in each step (`eta`) and the many steps help frames to agree on
positions. Strong guidance has the opposite effect, because it commits each frame to the position suggested by its own
noise."""


def best_shape(mask: Bool[Tensor, "h w"], angles: int = 8) -> str:
    """Return the shape whose rendering, with the mask's area and centre, has the largest overlap with the mask."""
    size = mask.shape[-1]
    area, (x, y) = mask.sum().item(), centroids(mask[None])[0].tolist()
    best, found = -1.0, ""
    for shape in SHAPES:
        for turn in range(angles):
            angle = -0.4 + 0.8 * turn / max(angles - 1, 1)
            template = _template(shape, angle, area, x, y, size)
            iou = ((template & mask).sum() / (template | mask).sum()).item()
            if iou > best:
                best, found = iou, shape
    return found


def _template(shape: str, angle: float, area: float, x: float, y: float, size: int) -> Bool[Tensor, "h w"]:
    share, shift_x, shift_y = _moments(shape, angle)
    radius = math.sqrt(area / share)
    centre = (x - radius * shift_x, y - radius * shift_y)
    return distance(Sprite(shape, "red", (centre,), (radius,), angle), size)[0] < 0


@cache
def _moments(shape: str, angle: float) -> tuple[float, float, float]:
    """Return area and centre of mass of a shape of radius 1 around the origin."""
    mask = distance(Sprite(shape, "red", ((64.0, 64.0),), (50.0,), angle), 128) < 0
    x, y = centroids(mask)[0].tolist()
    return mask.sum().item() / 50**2, (x - 64) / 50, (y - 64) / 50


@dataclass(frozen=True)
class Sample:
    """Measurements of one text-to-video clip."""

    object_found: float
    """Share of frames with the object; frames after it has left through an edge are ignored."""
    background_found: float
    """Share of frames in which most pixels outside the object have the named colour."""
    shape_right: float
    """Share of frames, with an object that touches no edge, in which the best template is the named shape."""
    largest_jump: float
    """Largest step of the object in pixels, between consecutive frames in which it is found and touches no edge, which
    may cut it into pieces."""


def measure_sample(video: Float[Tensor, "f 3 h w"], scene: Scene) -> Sample:
    """Measure a clip against its prompt; of two objects only the first is used."""
    sprite = scene.sprites[0]
    masks = find_object(video, sprite.colour)
    found = [bool(mask.any()) for mask in masks]
    at_edge = [_touches_edge(mask) for mask in masks]
    left = [not found[f] and any(at_edge[:f]) for f in range(len(masks))]
    colours = nearest_colours(video)
    outside = [colours[f][~masks[f]].bincount(minlength=len(NAMES)).argmax().item() for f in range(len(video))]
    whole = [mask for mask, seen, edge in zip(masks, found, at_edge, strict=True) if seen and not edge]
    centres = centroids(masks)
    jumps = (centres[1:] - centres[:-1]).norm(dim=-1)
    jumps[torch.tensor(at_edge[1:]) | torch.tensor(at_edge[:-1])] = math.nan
    return Sample(
        object_found=sum(found) / max(len(found) - sum(left), 1),
        background_found=sum(i == NAMES.index(scene.background) for i in outside) / len(outside),
        shape_right=sum(best_shape(m) == sprite.shape for m in whole) / len(whole) if whole else math.nan,
        largest_jump=jumps[jumps.isfinite()].max().item() if jumps.isfinite().any() else math.nan,
    )


def _touches_edge(mask: Bool[Tensor, "h w"]) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def sample_case(seed: int) -> Scene:
    """Sample a scene of the test split with one object, used as a prompt."""
    generator = split_generator("test", seed)
    scene = sample_scene(generator)
    while len(scene.sprites) > 1:
        scene = sample_scene(generator)
    return scene


@torch.no_grad()
def reconstruction_error(
    backbone: Backbone, latent: Float[Tensor, "b 1 c h w"], prompts: Sequence[str], *, until: int, stride: int
) -> Float[Tensor, " b"]:
    """Compute each latent's relative error after inversion to timestep `until` and sampling back along the same steps.

    No guidance, temporal layers off. Each sampling step evaluates the network at the timestep it starts from.
    """
    text = backbone.encode_text(list(prompts)).float()
    steps = inversion_pairs(backbone.config.schedule, until=until, stride=stride)
    z = round_trip(Denoiser(backbone.unet, text, schedule=backbone.config.schedule).images(), latent, steps)
    return (z - latent).flatten(1).norm(dim=1) / latent.flatten(1).norm(dim=1)


Measurement = tuple[Any, ...]
"""Kind of a measurement, "clip" or "inversion", and the arguments of `_sample` or `_reconstruct`."""


def _sample(name: str, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    backbone, scene = worker_backbone(name, dtype), sample_case(seed)
    size = (backbone.config.height, backbone.config.width)
    prompt = caption(scene, "photo")
    result = animate(backbone, torch.zeros(3, *size), prompt, Tracks(size[1], size[0]), config=PLAIN, seed=seed)
    return {"seed": seed, "prompt": prompt, **vars(measure_sample(result.video, scene))}


def _reconstruct(name: str, dtype: torch.dtype, first: int, count: int, until: int, stride: int) -> list[float]:
    """Compute the errors of a batch of test images, of all modalities in turn."""
    backbone = worker_backbone(name, dtype)
    images, prompts = [], []
    for seed in range(first, first + count):
        scene, modality = sample_case(seed), MODALITIES[seed % len(MODALITIES)]
        images.append(render(still(scene, 0), modality)[0])
        prompts.append(caption(scene, modality))
    with torch.no_grad():
        latent = backbone.vae.encode(2 * torch.stack(images) - 1)[:, None]
    return reconstruction_error(backbone, latent, prompts, until=until, stride=stride).tolist()


def _measure(job: Measurement) -> Any:
    kind, *arguments = job
    return _sample(*arguments) if kind == "clip" else _reconstruct(*arguments)


def measure_backbone(
    name: str, dtype: torch.dtype, cases: int, seed: int, *, workers: Workers | None, progress: bool, kept: Path
) -> dict[str, Any]:
    """Measure a backbone: "summary", one row per clip ("clips"), and relative errors ("reconstruction").

    Clips are sampled with `PLAIN`. Inversion goes to timestep 201 with stride 1, as in the method, and to 981 with
    stride 20. Finished measurements are stored in file `kept`, from which an interrupted run with the same code
    resumes.

    Raises InputError if `kept` is an unrelated file, ResourceError if a measurement's workers died repeatedly, and what
    `anyi2v.execution.cluster.spread` raises.
    """
    config = worker_backbone(name, dtype).config
    run = json.dumps([weights_sha256(name), str(dtype), PLAIN.to_dict(), provenance()])
    finished = read_json(kept) if kept.exists() else {}
    if not all(key.startswith('["[') for key in finished):  # lists that start with a quoted list, see `key`
        raise InputError(f"{kept} exists and is not from an interrupted measurement; move it away")

    def key(job: Measurement) -> str:
        return json.dumps([run, job[0], *job[3:]])

    clips: list[Measurement] = [("clip", name, dtype, seed + i) for i in range(cases)]
    ways = {"to 201, stride 1": (201, 1), "to 981, stride 20": (981, 20)}
    inversions: dict[str, list[Measurement]] = {
        way: [("inversion", name, dtype, seed + i, min(BATCH, cases - i), *until) for i in range(0, cases, BATCH)]
        for way, until in ways.items()
    }
    work = [*clips, *(job for jobs in inversions.values() for job in jobs)]
    missing = [job for job in work if key(job) not in finished]
    made = spread(lambda: _measure, missing, workers)
    for job, result in counted(made, len(missing), "measurements", bar=progress):
        if isinstance(result, Death):
            raise ResourceError(f"{job[0]} of seed {job[3]}: {result.message}")
        finished[key(job)] = result
        with atomic(kept) as temporary:
            temporary.write_text(json.dumps(finished), encoding="utf-8")
    rows = [finished[key(job)] for job in clips]
    errors = {way: [error for job in jobs for error in finished[key(job)]] for way, jobs in inversions.items()}
    return {
        "backbone": name,
        "dtype": str(dtype).removeprefix("torch."),
        "cases": cases,
        "frames": config.frames,
        "width": config.width,
        "height": config.height,
        "sampler": {name: getattr(PLAIN, name) for name in ("steps", "guidance_scale", "eta")},
        "summary": summary(rows, errors),
        "clips": rows,
        "reconstruction": errors,
    }


def summary(clips: Sequence[Mapping[str, Any]], errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Compute means over the clips that have a value."""
    columns = {key: torch.tensor([float(clip[key]) for clip in clips]) for key in Sample.__dataclass_fields__}
    jumps = columns.pop("largest_jump")
    smooth = jumps[jumps.isfinite()] <= LONGEST_JUMP
    figures = {f"{key.replace('_', ' ')}, share of frames": value.nanmean().item() for key, value in columns.items()}
    figures[f"clips without a jump above {LONGEST_JUMP} px"] = smooth.float().mean().item()
    for way, values in errors.items():
        figures[f"relative error of inversion {way}"] = sum(values) / len(values)
    return figures
