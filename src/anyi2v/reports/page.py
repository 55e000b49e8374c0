"""The page of a run, report.html, a self-contained file without scripts that opens offline.

The page is generated only from the files of the folder, so that it can be regenerated when files are added:
`anyi2v.reports.inspection` adds a folder of pictures and a list of them, `GALLERY`. All content is plain data for the
templates page.html and curve.svg, which escape everything that comes from files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from anyi2v.errors import InputError
from anyi2v.files import atomic, read_json
from anyi2v.method.config import MethodConfig
from anyi2v.reports.folder import CONDITION, GALLERY, PAGE, RECORD
from anyi2v.reports.following import advice, recorded
from anyi2v.reports.pen import object_colour
from anyi2v.reports.plots import GAP, magnification
from anyi2v.reports.template import file_uri, load_template


def write_page(folder: Path) -> Path:
    """Write report.html in a run's folder atomically; return its path.

    Raises InputError as `page` does.
    """
    text = page(folder, folder / GALLERY)
    with atomic(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def page(folder: Path, gallery: Path) -> str:
    """Render the page of a run, with the pictures listed in `gallery` if it exists.

    Files that the run could not write are listed, and the GIF is shown if there is no mp4.

    Raises InputError naming the file if another file of the run is missing or unreadable, or is not a record of a run.
    """
    data = read_json(folder / RECORD)
    try:
        values = _values(folder, data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / RECORD} is not the record of a run: {error!r}") from error
    return load_template(Path(__file__).with_name("page.html")).render(**values, gallery=list(_gallery(gallery)))


def _values(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the page's template."""
    height, width = int(data["height"]), int(data["width"])
    failed = dict(data.get("failed_outputs", {}))
    settings = list(_settings(data))
    versions = {**data["versions"], "backbone": data["backbone"]["name"], "its SHA-256": data["backbone"]["sha256"]}
    return {
        "data": {key: data[key] for key in ("prompt", "negative_prompt", "device", "threads")},
        "record": RECORD,
        "small": magnification(height, width) > 1,
        "facts": list(_facts(data)),
        "condition": file_uri(folder / CONDITION),
        "shown": clip(folder, "video", data),
        "side_by_side": clip(folder, "side_by_side", data),
        "frames": None if "sheet.png" in failed else _picture(folder / "sheet.png"),
        "whole_boxes": _whole_boxes(data),
        "failed": list(failed.items()),
        "curve": curve(data["losses"]) if data["losses"] else None,
        "tracks": list(_tracks(data)),
        "following": _following(data),
        "timings": list(_timings(data)),
        "settings": settings,
        "changed": sum(usual is not None for _, _, usual in settings),
        "versions": list(versions.items()),
    }


def _whole_boxes(data: Mapping[str, Any]) -> bool:
    """Return whether the masks of some objects are their whole boxes, not segmented and not given."""
    objects = data["tracks"]["objects"]
    return bool(data["losses"]) and data["method"].get("mask") == "none" and any("mask" not in x for x in objects)


def _picture(path: Path) -> dict[str, Any]:
    """Return a picture as a data URI, and its width in pixels."""
    uri = file_uri(path)
    try:
        with Image.open(path) as image:
            return {"uri": uri, "width": image.width}
    except OSError as error:
        raise InputError(f"cannot read {path}, a part of the run: it is not a picture") from error


def clip(folder: Path, name: str, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a video of a run as a data URI, and the ratio of its height to its width.

    It is the mp4, or the GIF if the run could not write an mp4; None if it could write neither.

    Args:
        folder: folder of the run.
        name: "video" or "side_by_side".
        data: record of the run.
    """
    height, width, failed = int(data["height"]), int(data["width"]), data.get("failed_outputs", {})
    if name == "side_by_side":
        width = 2 * width + GAP / magnification(height, width)
    for suffix in (".mp4", ".gif"):
        if name + suffix not in failed:
            return {"uri": file_uri(folder / (name + suffix)), "ratio": height / width}
    return None


def _facts(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "frames", data["frames"]
    yield "size", f"{data['width']} x {data['height']} px"
    yield "frames per second", data["fps"]
    yield "backbone", Path(data["backbone"]["name"]).name
    yield "seed", data["seed"]
    yield "objects", len(data["tracks"]["objects"])
    yield "computed in", f"{sum(data['timings'].values()):.1f} s on {data['device']}, {data['dtype']}"


def curve(losses: list[dict[str, Any]], width: int = 1060, height: int = 260) -> dict[str, Any]:
    """Return the values of the template curve.svg, with a point per latent update and a line per denoising step."""
    left, top, bottom = 64, 22, height - 30
    highest = max(float(loss["loss"]) for loss in losses) or 1.0
    place = (width - left) / len(losses)

    def y(loss: float) -> float:
        return top + (1 - loss / highest) * (bottom - top)

    steps: dict[Any, dict[str, Any]] = {}
    for k, loss in enumerate(losses):
        step = steps.setdefault(
            str(loss["step"]), {"name": loss["step"], "x0": left + k * place, "x1": left, "spots": []}
        )
        step["x1"] = left + (k + 1) * place
        spot = {"x": left + (k + 0.5) * place, "y": y(loss["loss"]), "text": f"{loss['loss']:.5g}"}
        step["spots"].append({**spot, "iteration": loss["iteration"]})
    grid = [{"y": y(share * highest), "text": f"{share * highest:.3g}"} for share in (0.0, 0.5, 1.0)]
    first, last = losses[0]["loss"], losses[-1]["loss"]
    text = f"{len(losses)} updates of the latents: from {first:.4g} to {last:.4g}. One line per denoising step."
    where = {"width": width, "height": height, "left": left, "top": top, "bottom": bottom}
    return {**where, "steps": list(steps.values()), "grid": grid, "text": text}


def _tracks(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for i, track in enumerate(data["tracks"]["objects"]):
        first, last = (_numbers(track["boxes"][k]) for k in (0, -1))
        points = ", ".join(f"({_numbers(point)})" for point in track["points"]) or "centre of the box"
        yield {
            "colour": object_colour(i),
            "name": track["name"],
            "first": first,
            "last": last,
            "points": points,
        }


def _following(data: dict[str, Any]) -> dict[str, Any]:
    """Return how closely each object follows its track, and what to try if one does not."""
    found = recorded(data)
    rows = [
        {
            "colour": object_colour(i),
            "name": one.name,
            "distance": one.distance,
            "verdict": one.verdict,
            "follows": one.follows,
        }
        for i, one in enumerate(found)
    ]
    return {"rows": rows, "advice": advice(found, data.get("parts", {}).get("method"))}


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{round(value, 1):g}" for value in values)


def _gallery(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the sections of the list `path`, with pictures from its folder as data URIs."""
    if not path.is_file():
        return
    try:
        for section in read_json(path)["sections"]:
            pictures = [
                {key: picture[key] for key in ("title", "text")} | _picture(path.with_name(Path(picture["file"]).name))
                for picture in section["pictures"]
            ]
            yield {"title": section["title"], "text": section["text"], "pictures": pictures}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a list of pictures: {error!r}") from error


def _timings(data: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield each stage with its seconds and its share of the total in per cent."""
    total = sum(data["timings"].values()) or 1.0
    for stage, seconds in data["timings"].items():
        yield stage, seconds, 100 * seconds / total


def _settings(data: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Yield name and value of each setting, and the paper's value if it differs."""
    usual = MethodConfig().to_dict()
    for key, value in data["method"].items():
        yield key, _plain(value), None if value == usual[key] else _plain(usual[key])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
