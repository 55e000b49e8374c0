"""`anyi2v demo`: three condition images of the synthetic world, animated and measured."""

from pathlib import Path

import torch

from anyi2v.backbone.checkpoint import load
from anyi2v.config import recipe
from anyi2v.media import from_bytes, to_bytes, write_image
from anyi2v.micro.cases import make_case
from anyi2v.micro.measure import Scores
from anyi2v.micro.variants import variants
from anyi2v.micro.world import Modality
from anyi2v.pipeline import animate
from anyi2v.plots import contact_sheet, overlay_boxes
from anyi2v.report import check_out, write_run

CASES: tuple[tuple[Modality, int], ...] = (("edge", 0), ("depth", 1), ("segmentation", 2))
"""Condition and seed; the test split's scenes are never trained on."""
BACKBONE = "micro"


def run(out: Path, *, overwrite: bool = False, progress: bool = True) -> None:
    """Makes each case by the full method, without optimisation and without injection.

    Writes one run folder per case (the full method, see `anyi2v.report`), a sheet that compares all variants,
    and prints a table of trajectory error and first-frame IoU.

    Raises InputError if `out` holds something that may not be replaced.
    """
    for modality, _ in CASES:
        check_out(out / modality, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    backbone = load(BACKBONE)
    configs = variants(recipe("paper", backbone.config.method))
    scores: dict[str, list[Scores]] = {name: [] for name in configs}
    rows: dict[str, torch.Tensor] = {}
    for modality, seed in CASES:
        case = make_case(seed, modality)
        # as it will be read back from condition.png, so that the run can be repeated exactly
        image = from_bytes(to_bytes(case.image))
        rows[f"{modality} condition"] = case.image[None]
        for name, config in configs.items():
            print(f"{modality}: {case.prompt} ({name})", flush=True)
            result = animate(backbone, image, case.prompt, case.tracks, config=config, seed=seed, progress=progress)
            scores[name].append(case.scores(result.video))
            rows[f"{modality} {name}"] = overlay_boxes(result.video, result.tracks)
            if name == "full":
                write_run(out / modality, result, image, backbone=BACKBONE, overwrite=overwrite)
    write_image(out / "comparison.png", contact_sheet(rows))
    print(table(scores))
    print(f"pictures: {out / 'comparison.png'}; videos: {out}/*/video.mp4")


def table(scores: dict[str, list[Scores]]) -> str:
    """One line per case and variant, and their means."""
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
