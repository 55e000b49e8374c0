"""The command `anyi2v demo`, which animates and measures three condition images of the synthetic world."""

from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import torch

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.execution.machine import fast_dtype
from anyi2v.files import expanded
from anyi2v.images.media import from_bytes, to_bytes, write_image
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
from anyi2v.reports.plots import contact_sheet, overlay_boxes
from anyi2v.reports.record import Origin
from anyi2v.reports.writing import impossible_outputs, write_run
from anyi2v.timing import counted

CASES: tuple[tuple[Modality, int], ...] = (("edge", 1126), ("depth", 1141), ("segmentation", 1100))
"""Condition and seed of the median case by trajectory error of each modality in `anyi2v bench micro --cases 200`."""
SHEET = "comparison.png"
"""Name of the picture that compares all variants, in the demo's folder."""
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

    Writes one run folder per case (of the full method, see `anyi2v.reports.writing`) and a sheet that compares all
    variants. Returns a table of trajectory error and first-frame IoU.

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

    scores: dict[str, list[Scores]] = {name: [] for name in configs}
    rows: dict[str, torch.Tensor] = {}
    for modality, seed in CASES:
        case = make_case(seed, modality)
        rows[f"{modality}: {case.prompt}"] = case.image[None]
        for name in configs:
            result = results[modality, name]
            scores[name] += case.scores(result.video)
            rows[f"{modality} {name}"] = overlay_boxes(result.video, result.tracks)
    write_image(out / SHEET, contact_sheet(rows, cell=128))
    return table(scores)


def table(scores: dict[str, list[Scores]]) -> str:
    """Format one line per case and variant, and their means."""
    lines = [f"{'':13} {'':16} {'trajectory error':>17} {'first-frame IoU':>16}"]
    for i, (modality, _) in enumerate(CASES):
        for name, found in scores.items():
            lines.append(_line(modality, name, found[i : i + 1]))
    lines += [_line("mean", name, found) for name, found in scores.items()]
    return "\n".join(lines)


def _line(case: str, variant: str, scores: list[Scores]) -> str:
    error = sum(s.trajectory_error for s in scores) / len(scores)
    iou = sum(s.first_frame_iou for s in scores) / len(scores)
    return f"{case:13} {variant:16} {error:14.1f} px {iou:16.2f}"
