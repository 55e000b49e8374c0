"""Accuracy and effect of semantic masks: `python -m benchmarks.masks accuracy ...` and `... effect ...`.

`accuracy` repeats the optimisation with dynamic masks on cases with ground truth, and compares the similarities and
masks of each optimised step, before its first update, with the object's true position. `effect` reads finished folders
of `anyi2v bench micro` and pairs the variants with other masks with the full method, case by case; it runs no jobs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from anyi2v.backbone.networks import Backbone
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.execution.machine import describe, fast_dtype
from anyi2v.files import atomic
from anyi2v.method.alignment import feature_map
from anyi2v.method.boxes import job_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import paste
from anyi2v.method.objective import FeatureAlignment
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.bench_report import Rows, names, values
from anyi2v.micro.benchmark.case import Case
from anyi2v.micro.benchmark.cases import conditions, make_case
from anyi2v.micro.benchmark.statistics import Estimate, difference, estimate
from anyi2v.micro.benchmark.variants import FULL
from anyi2v.micro.benchmark.workers import worker_backbone
from anyi2v.micro.world.world import object_masks
from anyi2v.pipeline import animate
from anyi2v.taps import Pass, Tap, no_tap
from benchmarks.claims import folder
from benchmarks.features import area_under_curve

COLUMNS = ("AUC of M_1", "AUC of later M_j", "IoU of M_1", "IoU of later M_j")
"""Area under the ROC curve of the similarities, and intersection over union of the masks, inside the boxes."""


@dataclass(frozen=True)
class Accuracy:
    """Measure how well similarities and masks separate the object from the rest of its box, step by step."""

    cases: int = 20
    """Number of cases, of kind plain."""
    seed: int = 1000
    """Seed of the first case."""
    backbone: str = "micro"
    """Name or file of a micro backbone."""
    out: Path = Path("docs/claims/mask_accuracy")
    """Path of the output .md and .json files, without suffix."""


@dataclass(frozen=True)
class Effect:
    """Measure the effect of masks on the trajectory error."""

    folders: tuple[Path, ...]
    """Folders of finished benchmarks. The first has plain cases with the variants of "table 2"; those of kinds "user
    mask" and "loose mask" with the same seeds have the same cases with a given mask; others are reported on their
    own."""
    out: Path = Path("docs/claims/masks.md")
    """Output file for the tables."""


class Maps:
    """Taps that record the aligned features in the first pass of each optimised step."""

    def __init__(self, config: MethodConfig):
        self.names, self.steps = config.align, dict[int, dict[str, Tensor]]()

    def __call__(self, at: Pass) -> Tap:
        """Return the tap for a pass of the job."""
        if at.stage != "optimisation" or at.iteration != 0 or at.step is None:
            return no_tap
        return partial(self._keep, self.steps.setdefault(at.step, {}))

    def _keep(self, store: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        if name in self.names:
            store[name] = x.detach().float()
        return x


def measure_case(backbone: Backbone, case: Case, config: MethodConfig) -> dict[int, tuple[float, float, float, float]]:
    """Compute `COLUMNS` for a case with one object, by optimised step."""
    maps = Maps(config)
    result = animate(backbone, case.image, case.prompt, case.tracks, config=config, seed=case.seed, taps=maps)
    crops, objective = job_crops(result.tracks, config, backbone.config.vae.factor), FeatureAlignment(config)
    truth = torch.nn.functional.interpolate(object_masks(case.scene)[0][None].float(), size=crops.lattice, mode="area")
    inside, within = truth[0] > 0.5, paste(crops.valid.float(), crops)[0] > 0
    found = {}
    for step, seen in maps.steps.items():
        made = objective({name: feature_map(name, seen[name]) for name in config.align}, crops)
        similar, mask = (paste(part.mean(0), crops)[0] for part in (made.similarities, made.masks))
        found[step] = (
            separated(similar[:1], inside[:1], within[:1]),
            separated(similar[1:], inside[1:], within[1:]),
            overlap(mask[:1] > 0, inside[:1] & within[:1]),
            overlap(mask[1:] > 0, inside[1:] & within[1:]),
        )
    return found


def separated(score: Float[Tensor, "f h w"], inside: Bool[Tensor, "f h w"], within: Bool[Tensor, "f h w"]) -> float:
    """Return the area under the curve among the cells of each frame's box, averaged over frames."""
    pairs = zip(score, inside, within, strict=True)
    return torch.tensor([area_under_curve(s[box], mask[box]) for s, mask, box in pairs]).nanmean().item()


def overlap(mask: Bool[Tensor, "f h w"], wanted: Bool[Tensor, "f h w"]) -> float:
    """Return the intersection over union, averaged over frames."""
    shared, either = ((a & b).flatten(1).sum(1) for a, b in ((mask, wanted), (mask | wanted, mask | wanted)))
    return (shared / either.clamp(min=1)).mean().item()


def measure_accuracy(args: Accuracy) -> None:
    """Run the measurement, print and write the table."""
    backbone = worker_backbone(args.backbone, fast_dtype())
    config = replace(recipe("paper", read_config(args.backbone).method), mask="dynamic")
    turns, found = conditions("plain"), dict[int, list[tuple[float, ...]]]()
    for number in tqdm(range(args.cases), desc="cases"):
        case = make_case(args.seed + number, turns[number % len(turns)])
        for step, row in measure_case(backbone, case, config).items():
            found.setdefault(step, []).append(row)
    figures = {
        step: dict(zip(COLUMNS, (estimate(torch.tensor(column)) for column in zip(*rows, strict=True)), strict=True))
        for step, rows in sorted(found.items())
    }
    lines = [_row(["before step", *COLUMNS]), _row(["---"] * (1 + len(COLUMNS)))]
    lines += [_row([str(step + 1), *map(str, row.values())]) for step, row in figures.items()]
    text = "\n".join(lines) + f"\n\n{args.cases} plain cases, dynamic masks, {_AT_FIRST}\n"
    plain = {str(step): {name: e._asdict() for name, e in row.items()} for step, row in figures.items()}
    record = {"machine": describe(), "backbone": args.backbone, "cases": args.cases, "seed": args.seed, "steps": plain}
    _write(args.out.with_suffix(".md"), text)
    _write(args.out.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    print(text)


_AT_FIRST = "before the first update of each optimised step; 95 % bootstrap intervals over the cases."


class Row(NamedTuple):
    """Effect of one kind of mask."""

    name: str
    errors: Float[Tensor, " n"]
    """Trajectory errors of the cases in px."""
    gap: Estimate
    """Difference to whole boxes on the same cases."""


def measure_effect(args: Effect) -> None:
    """Print and write the tables."""
    (_, settings, rows), *more = [(path, *folder(path)) for path in args.folders]
    table = effects(rows, settings)
    for _, other, found in more:
        if other["kind"] in _GIVEN:
            table.append(Row(_GIVEN[other["kind"]], *paired_across(found, FULL, rows, FULL)))
    parts = [f"### Tight boxes: plain cases\n\n{_table(table)}\n{_against_static(rows)}"]
    for _, other, found in more:
        if other["kind"] not in _GIVEN:
            title = f"### {other['kind'][0].upper()}{other['kind'][1:]}"
            parts.append(f"{title}\n\n{_table(effects(found, other))}\n{_against_static(found)}")
    text = "\n".join(parts) + f"\n{_PAIRED}\n"
    _write(args.out, text)
    print(text)


_PAIRED = (
    "Differences are paired by case, row minus whole boxes, with 95 % bootstrap intervals. Given masks are known in "
    "frame 1 and carried along with the box."
)
_GIVEN = {"user mask": "true mask of frame 1, given", "loose mask": "true mask and 2 px around it, given"}
"""Kinds whose cases are the plain ones with a mask in the track file."""
_WHOLE = "whole boxes (the default)"
FAR = 2.0
"""Error in pixels above which a case counts as failed."""


def effects(rows: Rows, settings: Mapping[str, Any]) -> list[Row]:
    """Compare the full method with all variants with masks; raises InputError if the full method has masks itself."""
    methods = settings["methods"]
    if methods[FULL]["mask"] != "none":
        raise InputError(f"the full method has mask={methods[FULL]['mask']!r}; masks are compared with whole boxes")
    there = names(rows)
    chosen = [name for name in (FULL, *methods) if name in there and (name == FULL or "mask" in name)]
    labels = {FULL: _WHOLE}
    return [Row(labels.get(name, name), *paired_across(rows, name, rows, FULL)) for name in dict.fromkeys(chosen)]


def paired_across(rows: Rows, name: str, reference: Rows, other: str) -> tuple[Float[Tensor, " n"], Estimate]:
    """Return the errors of `name` on the common cases, and the difference to `other` of the reference.

    Raises:
        InputError: there are no common cases.
    """
    shared = {(row["seed"], row["modality"]) for row in rows} & {(row["seed"], row["modality"]) for row in reference}
    if not shared:
        raise InputError("the folders have no case in common")
    mine, theirs = (
        values([row for row in found if (row["seed"], row["modality"]) in shared], variant, "trajectory_error")
        for found, variant in ((rows, name), (reference, other))
    )
    return mine, difference(mine, theirs)


def _table(found: Sequence[Row]) -> str:
    head = ["masks", "cases", "trajectory error, px", "median", f"more than {FAR:g} px", "difference"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, errors, gap in found:
        far = f"{(errors > FAR).float().mean():.0%}"
        cells = [name, str(len(errors)), str(estimate(errors)), f"{errors.median():.2f}", far]
        lines.append(_row([*cells, "" if name == _WHOLE else _signed(gap)]))
    return "\n".join(lines) + "\n"


def _against_static(rows: Rows) -> str:
    if not {"dynamic mask", "static mask"} <= set(names(rows)):
        return ""
    _, gap = paired_across(rows, "dynamic mask", rows, "static mask")
    return f"Dynamic minus static masks, px: {_signed(gap)}.\n"


def _signed(gap: Estimate) -> str:
    text = f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
    return text if gap.significant else f"{text}, not significant"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write(path: Path, content: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    args = tyro.extras.subcommand_cli_from_dict({"accuracy": Accuracy, "effect": Effect}, description=__doc__)
    measure_accuracy(args) if isinstance(args, Accuracy) else measure_effect(args)
