"""A run's folder as one page, report.html, that opens offline: everything is inside of it, and no script.

The page is made from the files of the folder alone, so that it can be made again when there are more of them:
`anyi2v.inspection` adds a folder of pictures and a list of them, `GALLERY`.
"""

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from anyi2v.config import MethodConfig
from anyi2v.errors import InputError
from anyi2v.files import atomic, read_json
from anyi2v.plots import COLOURS, magnification

RECORD, CONDITION = "run.json", "condition.png"
"""The two files that suffice to repeat a run."""

PAGE = "report.html"
GALLERY = "inspection/gallery.json"
"""`{"sections": [{"title", "text", "pictures": [{"title", "text", "file"}]}]}`, files beside it."""

TYPES = {".png": "image/png", ".mp4": "video/mp4"}


def write_page(folder: Path) -> Path:
    """Writes report.html in a run's folder, whole or not at all; returns its path.

    Raises InputError naming the file if one of a run's files is missing or unreadable.
    """
    data = read_json(folder / RECORD)
    sections = [_head(data), _result(folder, data), _frames(folder), _losses(data), _tracks(data)]
    if (folder / GALLERY).is_file():
        sections += [_gallery(folder / GALLERY)]
    sections += [_repeat(data), _timings(data), _settings(data), _versions(data)]
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    ratio = f"{data['width']} / {data['height']}"
    text = template.substitute(title=escape(data["prompt"]), ratio=ratio, body="\n".join(filter(None, sections)))
    with atomic(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def _uri(path: Path) -> str:
    """The file as a data URI."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}, a part of the run: {error.strerror}") from error
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"


def _head(data: dict[str, Any]) -> str:
    facts = {
        "frames": data["frames"],
        "size": f"{data['width']} x {data['height']} px",
        "frames per second": data["fps"],
        "backbone": Path(data["backbone"]["name"]).name,
        "seed": data["seed"],
        "objects": len(data["tracks"]["objects"]),
        "computed in": f"{sum(data['timings'].values()):.1f} s on {data['device']}, {data['dtype']}",
    }
    items = "".join(
        f'<li><span class="quiet">{key}</span> <b>{escape(str(value))}</b></li>' for key, value in facts.items()
    )
    negative = f'<p class="quiet">not: {escape(data["negative_prompt"])}</p>' if data["negative_prompt"] else ""
    return f'<h1>{escape(data["prompt"])}</h1>{negative}<ul class="facts">{items}</ul>'


def _result(folder: Path, data: dict[str, Any]) -> str:
    small = " pixels" if magnification(data["height"], data["width"]) > 1 else ""
    return f"""<div class="trio{small}">
<figure><img src="{_uri(folder / CONDITION)}" alt="condition image"><figcaption>condition</figcaption></figure>
<figure>{_video(folder / "video.mp4")}<figcaption>video</figcaption></figure>
<figure class="wide">{_video(folder / "side_by_side.mp4")}
<figcaption>both, with boxes and paths as asked for</figcaption></figure>
</div>"""


def _video(path: Path) -> str:
    return f'<video src="{_uri(path)}" autoplay loop muted playsinline controls></video>'


def _frames(folder: Path) -> str:
    return f"<h2>Frames</h2>{_sheet(folder / 'sheet.png', 'frames of condition, video, tracks and masks')}"


def _sheet(path: Path, description: str) -> str:
    return f'<figure class="sheet"><img src="{_uri(path)}" alt="{escape(description)}"></figure>'


def _losses(data: dict[str, Any]) -> str:
    losses = data["losses"]
    if not losses:
        return "<h2>Alignment loss</h2><p>Nothing was optimised.</p>"
    first, last = losses[0]["loss"], losses[-1]["loss"]
    text = f"{len(losses)} updates of the latents: from {first:.4g} to {last:.4g}. A line for each denoising step."
    return f'<h2>Alignment loss</h2><p class="quiet">{text}</p><div class="card">{loss_curve(losses)}</div>'


def loss_curve(losses: list[dict[str, Any]], width: int = 1060, height: int = 260) -> str:
    """An SVG picture in the page's colours; pointing at a value shows it."""
    left, top, bottom = 64, 22, 30
    highest = max(loss["loss"] for loss in losses) or 1.0
    spots = [
        (left + (k + 0.5) * (width - left) / len(losses), top + (1 - loss["loss"] / highest) * (height - top - bottom))
        for k, loss in enumerate(losses)
    ]
    parts = [_grid(highest, left, width, top, height - bottom)]
    for number, step in enumerate(dict.fromkeys(loss["step"] for loss in losses)):
        of_step = [k for k, loss in enumerate(losses) if loss["step"] == step]
        x0, x1 = (left + k * (width - left) / len(losses) for k in (of_step[0], of_step[-1] + 1))
        if number % 2:
            box = f'x="{x0:.1f}" y="{top}" width="{x1 - x0:.1f}" height="{height - top - bottom}"'
            parts.insert(0, f'<rect {box} fill="var(--band)"/>')
        parts.append(f'<text x="{(x0 + x1) / 2:.1f}" y="{height - 10}" text-anchor="middle">step {step}</text>')
        line = " ".join(f"{spots[k][0]:.1f},{spots[k][1]:.1f}" for k in of_step)
        parts.append(f'<polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="2"/>')
        for k in of_step:
            told = f"step {step}, iteration {losses[k]['iteration']}: {losses[k]['loss']:.5g}"
            spot = f'cx="{spots[k][0]:.1f}" cy="{spots[k][1]:.1f}" r="4" fill="var(--accent)"'
            parts.append(f"<circle {spot}><title>{told}</title></circle>")
    head = f'viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="alignment loss per update"'
    return f"<svg {head}>{''.join(parts)}</svg>"


def _grid(highest: float, left: float, right: float, top: float, bottom: float) -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        lines.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        lines.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
    return "".join(lines)


def _tracks(data: dict[str, Any]) -> str:
    objects = data["tracks"]["objects"]
    if not objects:
        return "<h2>Tracks</h2><p>None: the first frame was controlled and the motion left free.</p>"
    rows: list[tuple[str, ...]] = [("object", "first box", "last box", "salient points")]
    for i, track in enumerate(objects):
        dot = f'<span class="dot" style="background: rgb{COLOURS[i % len(COLOURS)]}"></span>'
        boxes = (_numbers(track["boxes"][k]) for k in (0, -1))
        points = ", ".join(f"({_numbers(point)})" for point in track["points"]) or "centre of the box"
        rows.append((dot + escape(track["name"]), *boxes, points))
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    return (
        '<h2>Tracks</h2><p class="quiet">Boxes (x0, y0, x1, y1) in pixels of the video.</p>'
        f'<div class="card"><table><tr>{head}</tr>{body}</table></div>'
    )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{round(value, 1):g}" for value in values)


def _gallery(path: Path) -> str:
    parts = []
    for section in read_json(path)["sections"]:
        parts.append(f'<h2>{escape(section["title"])}</h2><p class="quiet">{escape(section["text"])}</p>')
        for picture in section["pictures"]:
            text = f'<p class="quiet">{escape(picture["text"])}</p>' if picture["text"] else ""
            parts.append(f"<h3>{escape(picture['title'])}</h3>{text}")
            parts.append(_sheet(path.with_name(Path(picture["file"]).name), picture["title"]))
    return "\n".join(parts)


def _repeat(data: dict[str, Any]) -> str:
    threads = f" Threads: {data['threads']}." if data["device"] == "cpu" else ""
    return (
        "<h2>Repeat it</h2>"
        f"<p>In this page's folder. Equal versions, device and threads give the same bytes.{threads}</p>"
        f'<div class="card"><pre>anyi2v animate --repeat {RECORD} --out again</pre></div>'
        "<p></p><p>What happened inside, as further pictures on this page:</p>"
        '<div class="card"><pre>anyi2v inspect .</pre></div>'
    )


def _timings(data: dict[str, Any]) -> str:
    total = sum(data["timings"].values()) or 1.0
    rows = "".join(
        f'<tr><th>{escape(stage)}</th><td class="number">{seconds:.2f} s</td>'
        f'<td class="bar"><i style="width: {100 * seconds / total:.1f}%"></i></td></tr>'
        for stage, seconds in data["timings"].items()
    )
    return f'<h2>Timings</h2><div class="card"><table>{rows}</table></div>'


def _settings(data: dict[str, Any]) -> str:
    usual = MethodConfig().to_dict()
    rows, changed = "", 0
    for key, value in data["method"].items():
        said = "" if value == usual[key] else f'<span class="quiet"> instead of {escape(_plain(usual[key]))}</span>'
        changed += bool(said)
        shown = f"<b>{escape(_plain(value))}</b>{said}" if said else escape(_plain(value))
        rows += f"<tr><th>{escape(key)}</th><td>{shown}</td></tr>"
    return (
        f"<h2>Settings</h2><details><summary>{len(data['method'])} settings of the method, {changed} of them other "
        f'than the paper\'s</summary><div class="card"><table>{rows}</table></div></details>'
    )


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _versions(data: dict[str, Any]) -> str:
    facts = {**data["versions"], "backbone": data["backbone"]["name"], "its SHA-256": data["backbone"]["sha256"]}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    return f'<h2>Versions</h2><div class="card"><table>{rows}</table></div>'
