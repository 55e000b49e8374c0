"""Writing of a run's folder, with the video, pictures of it and the record to repeat it."""

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, ResourceError
from anyi2v.files import atomic, expanded
from anyi2v.images.media import to_bytes, write_image
from anyi2v.images.video import mp4_problem, write_video
from anyi2v.job import Result
from anyi2v.reports.folder import CONDITION, PAGE, RECORD, check_out, claimed, staged
from anyi2v.reports.page import write_page
from anyi2v.reports.plots import (
    contact_sheet,
    draw_tracks,
    loss_curve,
    magnification,
    mask_name,
    overlay_boxes,
    overlay_masks,
    side_by_side,
)
from anyi2v.reports.record import Origin, record

VIDEOS = ("video.gif", "video.mp4")
"""Files of the video, at least one of which is required for a run."""


def impossible_outputs() -> dict[str, str]:
    """Return the files that cannot be written on this machine, with reasons, and warn about them in one line."""
    problem = mp4_problem()
    if problem is None:
        return {}
    warnings.warn(f"no .mp4 files will be written, only GIFs: {problem}", AnyI2VWarning, stacklevel=2)
    return dict.fromkeys(("video.mp4", "side_by_side.mp4"), problem)


def write_run(
    out: Path,
    result: Result,
    condition: Float[Tensor, "3 h w"],
    origin: Origin,
    *,
    overwrite: bool = False,
    impossible: Mapping[str, str] | None = None,
) -> None:
    """Write a run's files into folder `out` atomically (`anyi2v.reports.folder`).

    Writes video.mp4 and .gif, side_by_side.mp4 and .gif, sheet.png, tracks.png (the condition with boxes and paths, if
    there are objects), masks.png (if there are masks), loss.png, condition.png (8 bit: pass `from_bytes(to_bytes(x))`
    so that the run can be repeated exactly), run.json (`record`), and report.html, which shows all of it on one page.

    A file that cannot be written does not affect the others: the reason is given in a warning and in `failed_outputs`
    of run.json. Without condition.png, run.json or any video there is no run, and `out` is unchanged.

    Args:
        out: the folder; errors are those of `check_out`.
        result: result of `animate`.
        condition: image that was passed to `animate`.
        origin: origin of the networks, for the record.
        overwrite: replace an earlier run.
        impossible: from `impossible_outputs`; these files are skipped without another warning.

    Raises:
        NumericsError: the video or the condition has NaN or infinite values.
        ResourceError: the run cannot be written, or another process is writing to the folder.
    """
    out = expanded(out)
    for pixels in (result.video, condition):
        to_bytes(pixels)  # raises before anything is written
    data = record(result, condition, origin)
    check_out(out, overwrite=overwrite)
    with claimed(out), staged(out) as folder:
        write_image(folder / CONDITION, condition)
        _write_record(folder / RECORD, data)  # early, while there is space; rewritten later with failures
        failed = dict(impossible or {})
        for name, write in _outputs(result, condition).items():
            if name not in failed:
                _try(write, folder / name, out, failed)
        if all(name in failed for name in VIDEOS):
            raise ResourceError(f"no video can be written to {out}: {failed['video.gif']}")
        if failed:
            _try(partial(_write_record, data={**data, "failed_outputs": failed}), folder / RECORD, out, failed)
        _try(lambda path: write_page(path.parent), folder / PAGE, out, failed)
        if PAGE in failed:
            _try(partial(_write_record, data={**data, "failed_outputs": failed}), folder / RECORD, out, failed)


def _try(write: Callable[[Path], object], path: Path, out: Path, failed: dict[str, str]) -> None:
    """Call `write(path)`; if it raises, warn and add the reason to `failed`."""
    try:
        write(path)
    except Exception as error:  # writers of pictures and videos fail in many ways, which must not affect other files
        reason = str(error).replace(str(path.parent), str(out)) or type(error).__name__
        failed[path.name] = reason
        text = f"{out / path.name} was not written, but the other files were: {reason}"
        warnings.warn(text, AnyI2VWarning, stacklevel=2)


def _write_record(path: Path, data: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _outputs(result: Result, condition: Tensor) -> dict[str, Callable[[Path], object]]:
    """Return the functions that write each picture and video, by name, the most important first."""
    factor = magnification(*result.video.shape[-2:])
    outputs: dict[str, Callable[[Path], object]] = {}
    for name in VIDEOS:
        outputs[name] = partial(write_video, video=result.video, fps=result.fps, enlarge=factor)
    for name in ("side_by_side.gif", "side_by_side.mp4"):
        outputs[name] = partial(_write_side_by_side, result=result, condition=condition)
    if result.tracks.objects:
        outputs["tracks.png"] = lambda path: write_image(path, draw_tracks(condition, result.tracks))
    if result.masks:
        outputs["masks.png"] = lambda path: write_image(
            path, contact_sheet({_masks_name(result): overlay_masks(result.video, result.masks)})
        )
    outputs["sheet.png"] = lambda path: write_image(path, contact_sheet(_rows(result, condition)))
    losses = [(loss.step, loss.iteration, loss.loss) for loss in result.losses]
    outputs["loss.png"] = partial(loss_curve, losses)
    return outputs


def _write_side_by_side(path: Path, result: Result, condition: Tensor) -> None:
    write_video(path, side_by_side(condition, result.video, result.tracks), fps=result.fps)


def _rows(result: Result, condition: Tensor) -> dict[str, Tensor]:
    rows = {"condition": condition[None], "video": result.video}
    if result.tracks.objects:
        rows["tracks"] = overlay_boxes(result.video, result.tracks)
    if result.masks:
        rows[_masks_name(result)] = overlay_masks(result.video, result.masks)
    return rows


def _masks_name(result: Result) -> str:
    """Name the masks of all objects; the names of different kinds are joined."""
    return ", ".join(dict.fromkeys(mask_name(result.config, track) for track in result.tracks.objects))
