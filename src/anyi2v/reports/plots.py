"""Pictures of a run: contact sheets, boxes and masks over a video, and the loss curve.

Small videos are enlarged by whole factors, so that lines drawn on them are thin compared to the pixels. Every object
has the same colour in all pictures.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.files import atomic
from anyi2v.images.media import from_bytes, magnify, to_bytes
from anyi2v.method.config import MethodConfig
from anyi2v.reports.pen import OUTLINE, SMOOTH, THIN, Colour, Pen, object_colour
from anyi2v.tracks import Box, Point, Track, Tracks, centre
from anyi2v.tracks.masks import cropped

SHORT_SIDE = 256
"""Minimum size of pictures along their shorter side, in pixels."""


def magnification(height: int, width: int) -> int:
    """Return the smallest whole factor that enlarges the shorter side to at least `SHORT_SIDE` pixels."""
    return max(1, math.ceil(SHORT_SIDE / min(height, width)))


def overlay_boxes(
    video: Float[Tensor, "f 3 h w"], tracks: Tracks, enlarge: int | None = None
) -> Float[Tensor, "f 3 hh ww"]:
    """Draw each object's box, path and salient points on the video, enlarged by a whole factor.

    The path so far is thick, the rest thin; salient points are dots that move and scale with their box. `tracks` may
    have another frame of reference and another number of frames.
    """
    frames, _, height, width = video.shape
    enlarge = enlarge or magnification(height, width)
    video = magnify(video, enlarge)
    tracks = tracks.resample(frames).scaled(width * enlarge, height * enlarge)
    drawn = [_draw(pixels, tracks, j, j) for j, pixels in enumerate(to_bytes(video))]
    return torch.stack(drawn)


def _draw(pixels: UInt8[np.ndarray, "h w 3"], tracks: Tracks, frame: int, travelled: int) -> Tensor:
    """Draw the boxes of `frame` on a picture of the tracks' size; paths are thick up to frame `travelled`."""
    layer = Image.new("RGBA", (tracks.width * SMOOTH, tracks.height * SMOOTH))
    pen = Pen(layer)
    for i, track in enumerate(tracks.objects):
        pen.track(track, frame, travelled, object_colour(i))
    picture = Image.alpha_composite(Image.fromarray(pixels).convert("RGBA"), layer.reduce(SMOOTH))
    return from_bytes(np.asarray(picture.convert("RGB")))


def draw_tracks(image: Float[Tensor, "3 h w"], tracks: Tracks, enlarge: int | None = None) -> Float[Tensor, "3 hh ww"]:
    """Draw each object's first and last box, path with frame numbers, points and mask on the image.

    `tracks` may have another frame of reference; the picture is enlarged by a whole factor.
    """
    height, width = image.shape[1:]
    enlarge = enlarge or magnification(height, width)
    picture = magnify(image, enlarge)
    tracks = tracks.scaled(width * enlarge, height * enlarge)
    for i, track in enumerate(tracks.objects):
        if track.mask is not None:
            mask = torch.from_numpy(cropped(track.mask, (0, 0, 1, 1), tracks.width, tracks.height))
            colour = torch.tensor(object_colour(i)).view(3, 1, 1) / 255
            picture = torch.where(mask, 0.6 * picture + 0.4 * colour, picture)
    layer = Image.new("RGBA", (tracks.width * SMOOTH, tracks.height * SMOOTH))
    pen = Pen(layer)
    for i, track in enumerate(tracks.objects):
        colour = object_colour(i)
        pen.box(track.boxes[-1], colour, THIN)
        pen.track(track, 0, len(track.boxes) - 1, colour)
    drawn = Image.fromarray(to_bytes(picture)).convert("RGBA")
    drawn = Image.alpha_composite(drawn, layer.reduce(SMOOTH)).convert("RGB")
    for i, track in enumerate(tracks.objects):
        _label(drawn, track, object_colour(i))
    return from_bytes(np.asarray(drawn))


def _label(picture: Image.Image, track: Track, colour: Colour) -> None:
    """Write the name at the first box, and frame numbers at the last box and along the path."""
    draw = ImageDraw.Draw(picture)
    letter = max(11, min(picture.size) // 24)
    font = ImageFont.load_default(letter)
    edge = max(1, letter // 10)
    first, last = track.boxes[0], track.boxes[-1]
    moves = centre(first) != centre(last)
    rises = centre(last)[1] < centre(first)[1]
    texts = [(first, f"{track.name}, frame 1" if moves else track.name, not rises)]
    if moves and _meets(last, picture):
        texts.append((last, f"frame {len(track.boxes)}", rises))
    for box, text, above in texts:
        at = _beside(box, draw.textbbox((0, 0), text, font=font, stroke_width=edge)[2:], picture.size, above=above)
        draw.text(at, text, colour, font, stroke_width=edge, stroke_fill=OUTLINE)
    for k in numbered(len(track.boxes))[1:-1]:
        x, y = centre(track.boxes[k])
        if 0 <= x < picture.width and 0 <= y < picture.height and not _amid((x, y), first) and not _amid((x, y), last):
            draw.text((x + 5, y + 4), str(k + 1), "white", font, stroke_width=edge, stroke_fill=OUTLINE)


def numbered(count: int) -> list[int]:
    """Return the frames to number along a path of `count` frames: the first, every k-th and the last, at most six."""
    every = max(1, math.ceil((count - 1) / 4))
    return [*range(0, count - 1 - every // 2, every), count - 1]


def _meets(box: Box, picture: Image.Image) -> bool:
    return box[0] < picture.width and box[1] < picture.height and box[2] > 0 and box[3] > 0


def _amid(point: Point, box: Box) -> bool:
    """Return whether a point is in the middle half of a box, where a number would cover the object."""
    (x, y), (cx, cy) = point, centre(box)
    return abs(x - cx) < (box[2] - box[0]) / 4 and abs(y - cy) < (box[3] - box[1]) / 4


def _beside(box: Box, text: tuple[float, float], picture: tuple[int, int], *, above: bool) -> Point:
    """Return the corner of a text of a size: above or below the box, on the other side if there is no room."""
    places = [box[1] - text[1] - 4, box[3] + 2]
    places = places if above else places[::-1]
    free = (y for y in places if 0 <= y <= picture[1] - text[1])
    x, y = min(box[0], picture[0] - text[0] - 2), min(next(free, box[1] + 2), picture[1] - text[1])
    return max(x, 2.0), max(y, 0.0)


def overlay_masks(
    video: Float[Tensor, "f 3 h w"],
    masks: Sequence[Bool[Tensor, "f h w"] | Float[Tensor, "f h w"]],
    enlarge: int | None = None,
) -> Float[Tensor, "f 3 hh ww"]:
    """Draw each object's mask in its colour on the greyed video; soft masks tint less."""
    height, width = video.shape[-2:]
    out = video.mean(1, keepdim=True).expand_as(video) * 0.75
    for i, mask in enumerate(masks):
        colour = torch.tensor(object_colour(i)).view(3, 1, 1) / 255
        strength = 0.65 * mask[:, None].float().clamp(0, 1)
        out = out * (1 - strength) + colour * strength
    return magnify(out, enlarge or magnification(height, width))


def mask_name(config: MethodConfig, track: Track) -> str:
    """Name what an object's mask is, as a whole box would look like a failed segmentation."""
    if config.mask != "none":
        return "mask"
    return "whole box" if track.mask is None else "given mask"


def side_by_side(
    condition: Float[Tensor, "3 h w"], video: Float[Tensor, "f 3 h w"], tracks: Tracks
) -> Float[Tensor, "f 3 hh ww"]:
    """Combine the condition with boxes and whole paths (left) and the video with boxes (right), both enlarged."""
    frames = len(video)
    right = overlay_boxes(video, tracks)
    left = draw_tracks(condition, tracks.resample(frames)).expand(frames, -1, -1, -1)
    return torch.cat([left, torch.ones(frames, 3, right.shape[-2], GAP), right], dim=-1)


def contact_sheet(
    rows: Mapping[str, Float[Tensor, "_ 3 _ _"]],
    *,
    columns: int = 8,
    cell: int = SHORT_SIDE,
    heads: Sequence[str] = (),
    sides: Mapping[str, Image.Image] | None = None,
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Arrange videos as rows and evenly spaced frames as columns, with names and frame numbers.

    Args:
        rows: videos `[f 3 h w]` by name; a video of one frame fills one cell.
        columns: maximum number of frames per row; with two or more, the first and last frame are always included.
        cell: shorter side of each frame in pixels; smaller frames are first enlarged by whole factors.
        heads: titles of the columns instead of frame numbers; no frame is left out then.
        sides: pictures to the right of rows, such as colour bars, by the names of the rows.

    Raises InputError if there is nothing to show.
    """
    if not rows or columns < 1 or not all(map(len, rows.values())):
        raise InputError("a contact sheet needs at least one column, one row, and one frame in each row")
    columns = max(columns, len(heads))
    pictures = {name: [_cell(video[j], cell) for j in _spread(len(video), columns)] for name, video in rows.items()}
    labels = {name: textwrap.fill(name, 16) for name in rows}
    numbers = _spread(max(map(len, rows.values())), columns)
    letter = max(12, cell // 10)  # readable when a page shows the sheet at half its size
    font = ImageFont.load_default(letter)
    left, top = math.ceil(_text_width(labels.values(), font)) + 2 * GAP, letter + 2 * GAP
    place = max(picture.width for row in pictures.values() for picture in row) + GAP
    height = top + sum(row[0].height + GAP for row in pictures.values())
    right = max((side.width + GAP for side in (sides or {}).values()), default=0)
    sheet = Image.new("RGB", (left + place * len(numbers) + right, height), "white")
    draw = ImageDraw.Draw(sheet)
    for j, head in enumerate(heads or [str(number + 1) for number in numbers]):
        draw.text((left + place * j + (place - GAP) / 2, top / 2), head, "black", font, anchor="mm")
    for name, row in pictures.items():
        draw.text((left - GAP, top + row[0].height / 2), labels[name], "black", font, anchor="rm", align="right")
        for j, picture in enumerate(row):
            sheet.paste(picture, (left + place * j, top))
        if sides and name in sides:
            sheet.paste(sides[name], (left + place * len(numbers), top))
        top += row[0].height + GAP
    return np.asarray(sheet)


def stacked(sheets: Mapping[str, UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "hh ww 3"]:
    """Put pictures below each other, each under its title."""
    font = ImageFont.load_default(TITLE)
    line = TITLE + 3 * GAP
    width = max(sheet.shape[1] for sheet in sheets.values())
    width = max(width, math.ceil(_text_width(sheets, font)) + 2 * GAP)
    whole = Image.new("RGB", (width, sum(line + sheet.shape[0] for sheet in sheets.values())), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for title, sheet in sheets.items():
        draw.text((GAP, top + 2 * GAP), title, "black", font)
        whole.paste(Image.fromarray(sheet), (0, top + line))
        top += line + sheet.shape[0]
    return np.asarray(whole)


def _text_width(texts: Iterable[str], font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> float:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return max(draw.textbbox((0, 0), text, font=font)[2] for text in texts)


GAP = 8
"""Gap between pictures side by side in pixels."""

TITLE = 18
"""Size of the letters of a title above a sheet in pixels."""


def _spread(count: int, columns: int) -> list[int]:
    """Return at most `columns` evenly spaced indices below `count`, including the first and the last."""
    if count <= columns:
        return list(range(count))
    return [round(k * (count - 1) / max(columns - 1, 1)) for k in range(columns)]


def _cell(image: Float[Tensor, "3 h w"], side: int) -> Image.Image:
    """Resize `image` to shorter side `side`: enlarge by a whole factor, then reduce as needed."""
    height, width = image.shape[1:]
    image = magnify(image, max(1, math.ceil(side / min(height, width))))
    scale = side / min(image.shape[1:])
    if scale != 1:
        size = (round(image.shape[1] * scale), round(image.shape[2] * scale))
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return Image.fromarray(to_bytes(image))


def loss_curve(losses: Sequence[tuple[int, int, float]], path: str | Path) -> None:
    """Plot (step, iteration, loss), in the order of the run, to a PNG file; alternate steps are shaded.

    An empty list gives an empty plot that says so.
    """
    # Figure instead of pyplot: no global state, no display, and matplotlib is imported only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="update of the latents", ylabel="alignment loss")
    if not losses:
        axes.text(0.5, 0.5, "nothing was optimised", ha="center", va="center", transform=axes.transAxes)
    steps = sorted({step for step, _, _ in losses})
    for number, step in enumerate(steps):
        at = [k for k, record in enumerate(losses) if record[0] == step]
        if number % 2:
            axes.axvspan(at[0] - 0.5, at[-1] + 0.5, color="0.93", linewidth=0)
        axes.plot(at, [losses[k][2] for k in at], "o-", color="tab:blue", markersize=3, linewidth=1.5)
        label = f"step {step}" if len(steps) <= 8 else str(step)
        axes.text((at[0] + at[-1]) / 2, 1.01, label, ha="center", transform=axes.get_xaxis_transform(), fontsize=8)
    if losses:
        axes.set_xlim(-0.5, len(losses) - 0.5)
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
