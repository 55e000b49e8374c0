"""The command `anyi2v demo`, which animates and measures three condition images of the synthetic world."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.execution.machine import fast_dtype
from anyi2v.files import expanded
from anyi2v.images.media import from_bytes, magnify, to_bytes, write_image
from anyi2v.job import Result
from anyi2v.method.config import MethodConfig
from anyi2v.method.recipes import recipe
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.benchmark.measure import Scores
from anyi2v.micro.benchmark.variants import FULL, variants
from anyi2v.micro.benchmark.workers import PROCESSES, START, quiet, uninterrupted, worker_backbone
from anyi2v.micro.world.world import Modality
from anyi2v.pipeline import animate
from anyi2v.reports.folder import RECORD, check_out, claimed
from anyi2v.reports.overview import check_overview, write_overview
from anyi2v.reports.plots import contact_sheet, overlay_boxes, stacked
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import impossible_outputs, write_run
from anyi2v.timing import counted

CASES: tuple[tuple[Modality, int], ...] = (("edge", 1126), ("depth", 1141), ("segmentation", 1100))
"""Condition and seed of the median case by trajectory error of each modality in `anyi2v bench micro --cases 200`."""
SHEET = "comparison.png"
"""Name of the picture that compares all variants, in the demo's folder."""
GENERATOR = "anyi2v demo"
"""Mark of the page of all cases."""
CELL = 128
"""Size of a frame in the picture, in pixels."""
Job = tuple[str, torch.dtype, Modality, int, MethodConfig]
"""A backbone and its dtype, a case, and a variant."""


def _image(modality: Modality, seed: int) -> torch.Tensor:
    """Return the condition as read back from condition.png, so that the run can be repeated exactly."""
    return from_bytes(to_bytes(make_case(seed, modality).image))


def _animate(job: Job) -> Result:
    backbone, dtype, modality, seed, config = job
    case = make_case(seed, modality)
    return animate(
        worker_backbone(backbone, dtype), _image(modality, seed), case.prompt, case.tracks, config=config, seed=seed
    )


def run(out: Path, *, backbone: str = "micro", overwrite: bool = False, progress: bool = True) -> str:
    """Run each case with the full method, without optimisation, and without injection.

    Writes one run folder per case (of the full method, see `anyi2v.reports.writing`), a sheet that compares all
    variants, and index.html, which joins all of it. Returns a table of trajectory error and first-frame IoU.

    Raises InputError for an unknown backbone, or if `out` has files that must not be replaced; ResourceError if another
    process is writing to it.
    """
    out = expanded(out)
    _check(out, overwrite=overwrite)
    with ExitStack() as claims:
        for folder in (out, *(out / modality for modality, _ in CASES)):
            claims.enter_context(claimed(folder))
        _check(out, overwrite=overwrite)  # another process may have written it meanwhile
        return _run(out, backbone, overwrite=overwrite, progress=progress)


def _check(out: Path, *, overwrite: bool) -> None:
    """Check the output folder; raises as `run` does."""
    folders = [out / modality for modality, _ in CASES]
    for folder in folders:
        check_out(folder, overwrite=overwrite)
    if (out / SHEET).exists() and not any((folder / RECORD).is_file() for folder in folders):
        raise InputError(f"{out / SHEET} exists, but none of its runs; move it away, or give another folder")
    check_overview(out, GENERATOR)


def _run(out: Path, backbone: str, *, overwrite: bool, progress: bool) -> str:
    impossible = impossible_outputs()
    configs = variants(recipe("paper", read_config(backbone).method))
    # longest variants first, so that no process waits at the end
    order = sorted(configs, key=lambda name: -configs[name].optimise_steps)
    dtype = fast_dtype()
    keys: list[tuple[Modality, int, str]] = [(modality, seed, name) for name in order for modality, seed in CASES]
    jobs: list[Job] = [(backbone, dtype, modality, seed, configs[name]) for modality, seed, name in keys]
    worker_backbone(backbone, dtype)  # before the workers are forked
    results: dict[tuple[Modality, str], Result] = {}
    with uninterrupted():
        workers = get_context(START).Pool(PROCESSES, initializer=quiet)
    with workers as pool:
        made = counted(pool.imap(_animate, jobs), len(jobs), "demo", bar=progress)
        for (modality, seed, name), result in zip(keys, made, strict=True):
            results[modality, name] = result
            if name == FULL:
                origin = Origin(backbone, dtype=str(dtype).removeprefix("torch."))
                image = _image(modality, seed)
                write_run(out / modality, result, image, origin, overwrite=overwrite, impossible=impossible)

    return _write_summary(out, list(configs), results)


def _write_summary(out: Path, names: Sequence[str], results: Mapping[tuple[Modality, str], Result]) -> str:
    """Measure all results; write the picture and the page of them; return the table."""
    scores: dict[str, list[Scores]] = {name: [] for name in names}
    sheets: dict[str, UInt8[np.ndarray, "_ _ 3"]] = {}
    runs: dict[str, list[str]] = {}
    for modality, seed in CASES:
        case = make_case(seed, modality)
        videos = {name: results[modality, name].video for name in names}
        for name, video in videos.items():
            scores[name] += case.scores(video)
        errors = {name: f"{found[-1].trajectory_error:.1f} px" for name, found in scores.items()}
        rows = {f"{name}, {errors[name]} off": overlay_boxes(video, case.tracks) for name, video in videos.items()}
        sheets[f"Condition: {modality}. Prompt: {case.prompt}"] = _sheet(case.image, rows)
        runs[modality] = [
            f"condition: {modality}",
            f"trajectory error {errors[FULL]}, without optimisation {errors['no optimisation']}",
        ]
    sheet = stacked(sheets)
    write_image(out / SHEET, sheet)
    write_overview(
        out,
        runs,
        sheet,
        generator=GENERATOR,
        title="AnyI2V demo",
        text="Three condition images, animated along the requested boxes by the full method. Below, the same without "
        "optimisation of the latents, and without injection of the condition's features. Errors are the mean distance "
        "of the object's centre from the requested path, in pixels of the 64 px frame.",
        table=cells(scores),
    )
    return table(scores)


def _sheet(condition: Tensor, rows: Mapping[str, Tensor]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draw a case: the condition left of the first row's frames, which are enlarged, and blank cells below it."""
    size = next(iter(rows.values())).shape[-2:]
    condition = magnify(condition, size[0] // condition.shape[-2])
    first = [condition, *[torch.ones_like(condition)] * (len(rows) - 1)]
    pictures = {name: torch.cat([left[None], row]) for left, (name, row) in zip(first, rows.items(), strict=True)}
    frames = max(map(len, rows.values()))
    return contact_sheet(pictures, cell=CELL, heads=["condition", *(f"frame {j + 1}" for j in range(frames))])


def cells(scores: Mapping[str, Sequence[Scores]]) -> list[list[str]]:
    """Return the table of scores as text: a head, a row per case and variant, and the means of the variants."""
    found = [(modality, name, own[i : i + 1]) for i, (modality, _) in enumerate(CASES) for name, own in scores.items()]
    found += [("mean", name, list(own)) for name, own in scores.items()]
    rows = [["condition", "variant", "trajectory error", "first-frame IoU"]]
    for case, variant, own in found:
        error = sum(s.trajectory_error for s in own) / len(own)
        iou = sum(s.first_frame_iou for s in own) / len(own)
        rows.append([case, variant, f"{error:.1f} px", f"{iou:.2f}"])
    return rows


def table(scores: Mapping[str, Sequence[Scores]]) -> str:
    """Format one line per case and variant, and their means."""
    lines = [f"{case:13} {variant:16} {error:>17} {iou:>16}" for case, variant, error, iou in cells(scores)]
    return "\n".join(lines)
