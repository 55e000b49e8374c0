"""The method on cases of the scenes with ground truth: `python -m benchmarks.scenes.bench --backbone FILE ...`.

The folder keeps the frames of every case and variant, from which the scores are computed; existing ones are reused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import InputError
from anyi2v.execution.machine import describe
from anyi2v.files import atomic, read_json
from anyi2v.images.media import from_bytes, to_bytes, write_image
from anyi2v.method.config import MethodConfig
from anyi2v.micro.benchmark.statistics import difference, estimate
from anyi2v.micro.benchmark.variants import FULL, GIVEN, variants
from anyi2v.pipeline import animate
from anyi2v.reports.plots import contact_sheet, overlay_boxes
from anyi2v.reports.record import weights_sha256
from benchmarks.scenes.cases import Case, Kind, make_case
from benchmarks.scenes.drawing import MODALITIES, Sprites, cut_outs, sprites
from benchmarks.scenes.scenes import SIZE
from benchmarks.scenes.scores import score, surroundings
from benchmarks.scenes.segmenter import Segmenter, load_segmenter

METRICS = {
    "trajectory_error": "trajectory error, px",
    "outline_error": "by outline, px",
    "found": "object found",
    "first_frame_iou": "first-frame IoU",
    "tint_right": "tint right",
    "drift": "drift of the scenery, px",
    "dragged": "scenery dragged in the box, px",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Args:
    """Options of the benchmark."""

    backbone: Path
    """Backbone to measure."""
    package: Path
    """Unpacked npm package @lobehub/fluent-emoji-3d."""
    out: Path
    """Output folder; an earlier run of the same kind, backbone and settings is continued."""
    cases: int = 60
    """Number of cases, whose condition images have the modalities in turn; those of cut-outs are photos."""
    kind: Kind = "tight"
    """Boxes around the object, boxes as a user draws them, two objects with scenery between them, or photographic
    cut-outs as conditions."""
    stamps: Path = Path("/usr/share/tuxpaint/stamps")
    """Folder of the stamps of Debian's package tuxpaint-stamps-default, for cut-outs."""
    ablate: tuple[str, ...] = ("baselines",)
    """Groups of ablations or single variants, as for `anyi2v bench micro`."""
    settings: tuple[str, ...] = ()
    """Changes to the method's settings for all variants, each NAME=VALUE in JSON, such as steps=16."""
    scratch: Path = Path("runs/scenes")
    """Folder of the segmenter, which is trained once."""


def config(backbone: Backbone, args: Args) -> MethodConfig:
    """Return the full method's settings; raises InputError for a change that is not NAME=VALUE."""
    changes: dict[str, Any] = {}
    for text in args.settings:
        name, found, value = text.partition("=")
        if not found:
            raise InputError(f"--settings {text}: write NAME=VALUE")
        changes[name] = json.loads(value)
    return MethodConfig.from_dict({**backbone.method().to_dict(), **changes})


def prepare(args: Args, methods: Mapping[str, MethodConfig]) -> None:
    """Create the folder, or check that it can be continued; raises InputError if not."""
    path = args.out / "bench.json"
    head = {"sha256": weights_sha256(str(args.backbone)), "kind": args.kind}
    settings = {name: method.to_dict() for name, method in methods.items()}
    if path.exists():
        former = read_json(path)
        known = former.pop("methods")
        if former != head or any(known.get(name, values) != values for name, values in settings.items()):
            raise InputError(f"{args.out} has another backbone, kind or settings; give another folder")
        settings = known | settings
    elif args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"{args.out} has files that are not a benchmark; give a new or empty folder")
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({**head, "methods": settings}, indent=1) + "\n")


def cases(args: Args, known: Sprites) -> list[Case]:
    """Return the cases."""
    photographed = args.kind == "cut-out"
    shown, turns = (cut_outs(args.stamps), MODALITIES[:1]) if photographed else (known, MODALITIES)
    return [make_case(i, turns[i % len(turns)], args.kind, shown) for i in range(args.cases)]


def file(args: Args, case: Case, name: str) -> Path:
    """Return the file of a variant's frames."""
    return args.out / "cases" / f"{case.seed}-{case.modality}" / f"{name.replace(' ', '_').replace('&', '')}.npz"


def run(backbone: Backbone, case: Case, name: str, method: MethodConfig, path: Path) -> None:
    """Make and keep the video of a case."""
    tracks = case.tracks
    if name in GIVEN:
        objects = zip(tracks.objects, case.masks, strict=True)
        given = tuple(type(track)(track.name, track.boxes, mask=masks[0].numpy()) for track, masks in objects)
        tracks = type(tracks)(SIZE, SIZE, given)
    image = from_bytes(to_bytes(case.image))
    result = animate(backbone, image, case.prompt, tracks, config=method, seed=case.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, temporary.open("wb") as target:
        seconds = np.array(sum(result.timings.values()))
        np.savez_compressed(target, allow_pickle=False, frames=to_bytes(result.video), seconds=seconds)


def video(path: Path) -> tuple[Float[Tensor, "f 3 h w"], float]:
    """Read the frames in [0, 1] and the seconds of a job."""
    with np.load(path) as data:
        return torch.stack([from_bytes(frame) for frame in data["frames"]]), float(data["seconds"])


def row(case: Case, name: str, path: Path, known: Sprites, segmenter: Segmenter) -> dict[str, Any]:
    """Return the scores of one video, averaged over its objects."""
    frames, seconds = video(path)
    objects = [asdict(scores) for scores in score(frames, case, known, segmenter)]
    means = {key: sum(float(one[key]) for one in objects) / len(objects) for key in objects[0]}
    about = {"seed": case.seed, "modality": case.modality, "variant": name}
    return about | means | asdict(surroundings(frames, case)) | {"seconds": seconds}


def column(rows: Sequence[Mapping[str, Any]], name: str, metric: str, modality: str | None = None) -> Tensor:
    """Return one value per case of a variant."""
    chosen = [r for r in rows if r["variant"] == name and modality in (None, r["modality"])]
    return torch.tensor([float(r[metric]) for r in chosen])


def markdown(args: Args, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Format means with intervals per variant, and the first-frame IoU of the full method per modality."""
    head = ["variant", *METRICS.values(), "difference of trajectory error to full"]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    for name in names:
        cells = [str(estimate(column(rows, name, metric))) for metric in METRICS]
        gap = difference(column(rows, name, "trajectory_error"), column(rows, FULL, "trajectory_error"))
        note = "" if name == FULL else f"{gap}{'' if gap.significant else ' (not significant)'}"
        lines.append(f"| {' | '.join([name, *cells, note])} |")
    lines += ["", "| condition | trajectory error, px | first-frame IoU | tint right |", "|---|---|---|---|"]
    for modality in MODALITIES:
        if len(column(rows, FULL, "found", modality)):
            found = [
                estimate(column(rows, FULL, m, modality)) for m in ("trajectory_error", "first_frame_iou", "tint_right")
            ]
            lines.append(f"| {' | '.join([modality, *map(str, found)])} |")
    note = f"{args.cases} cases ({args.kind}) of 8 frames of {SIZE} x {SIZE} px; brackets are 95 % bootstrap intervals."
    return "\n".join([*lines, "", note]) + "\n"


def picture(args: Args, made: Sequence[Case], rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the best, median and worst case of the full method beside their truth."""
    ranked = column(rows, FULL, "trajectory_error").argsort().tolist()
    shown: dict[str, Tensor] = {}
    for rank, index in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])):
        case = made[index]
        frames = video(file(args, case, FULL))[0]
        shown[f"{rank}: {case.modality}"] = case.image[None]
        shown[f"{rank}: truth"] = case.truth
        shown[f"{rank}: {case.prompt}"] = overlay_boxes(frames, case.tracks)
    return contact_sheet(shown, cell=128)


def main(args: Args) -> None:
    """Run what is missing, score everything, write scores.json, table.md and cases.png, and print the table."""
    backbone, known = load(args.backbone), sprites(args.package)
    methods = variants(config(backbone, args), args.ablate)
    prepare(args, methods)
    segmenter = load_segmenter(args.package, args.scratch, SIZE)
    made = cases(args, known)
    for case in tqdm(made, desc="cases", mininterval=10):
        for name, method in methods.items():
            if not (path := file(args, case, name)).exists():
                run(backbone, case, name, method, path)
    rows = [row(case, name, file(args, case, name), known, segmenter) for case in made for name in methods]
    summary = {name: {m: estimate(column(rows, name, m))._asdict() for m in METRICS} for name in methods}
    record = {"machine": describe(), "kind": args.kind, "cases": args.cases, "summary": summary, "rows": rows}
    with atomic(args.out / "scores.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    with atomic(args.out / "table.md") as temporary:
        temporary.write_text(text := markdown(args, rows, list(methods)))
    write_image(args.out / "cases.png", picture(args, made, rows))
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args))
