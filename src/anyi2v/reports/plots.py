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
from anyi2v.tracks import Box, Point, Track, Tracks, centre
from anyi2v.tracks.masks import cropped

COLOURS = ((255, 59, 48), (0, 199, 255), (255, 204, 0), (52, 199, 89), (255, 45, 255), (255, 149, 0))
"""Colours of objects in order; a seventh object has the first colour again."""

SHORT_SIDE = 256
"""Minimum size of pictures along their shorter side, in pixels."""

SMOOTH = 4
"""Supersampling factor of lines, which smooths their edges."""


def magnification(height: int, width: int) -> int:
    """Return the smallest whole factor that enlarges the shorter side to at least `SHORT_SIDE` pixels."""
    return max(1, math.ceil(SHORT_SIDE / min(height, width)))


def overlay_boxes(
    video: Float[Tensor, "f 3 h w"], tracks: Tracks, enlarge: int | None = None
) -> Float[Tensor, "f 3 hh ww"]:
    """Draw each object's box, path and salient points on the video, enlarged by a whole factor.

    The path so far is drawn in full colour, the rest faintly; salient points are dots that move and scale with their
    box. `tracks` may have another frame of reference and another number of frames.
    """
    frames, _, height, width = video.shape
    enlarge = enlarge or magnification(height, width)
    video = magnify(video, enlarge)
    tracks = tracks.resample(frames).scaled(width * enlarge, height * enlarge)
    drawn = [_draw(pixels, tracks, j, j) for j, pixels in enumerate(to_bytes(video))]
    return torch.stack(drawn)


def _draw(pixels: UInt8[np.ndarray, "h w 3"], tracks: Tracks, frame: int, travelled: int) -> Tensor:
    """Draw the boxes of `frame` on a picture of the tracks' size; paths are in full colour up to frame `travelled`."""
    layer = Image.new("RGBA", (tracks.width * SMOOTH, tracks.height * SMOOTH))
    pen = _Pen(layer)
    for i, track in enumerate(tracks.objects):
        pen.track(track, frame, travelled, COLOURS[i % len(COLOURS)])
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
            colour = torch.tensor(COLOURS[i % len(COLOURS)]).view(3, 1, 1) / 255
            picture = torch.where(mask, 0.6 * picture + 0.4 * colour, picture)
    layer = Image.new("RGBA", (tracks.width * SMOOTH, tracks.height * SMOOTH))
    pen = _Pen(layer)
    for i, track in enumerate(tracks.objects):
        colour = COLOURS[i % len(COLOURS)]
        pen.box(track.boxes[-1], colour, 0.5)
        pen.track(track, 0, len(track.boxes) - 1, colour)
    drawn = Image.fromarray(to_bytes(picture)).convert("RGBA")
    drawn = Image.alpha_composite(drawn, layer.reduce(SMOOTH)).convert("RGB")
    for i, track in enumerate(tracks.objects):
        _label_frames(drawn, track, COLOURS[i % len(COLOURS)])
    return from_bytes(np.asarray(drawn))


def _label_frames(picture: Image.Image, track: Track, colour: tuple[int, int, int]) -> None:
    """Write up to five frame numbers along the path, and the name at the first box."""
    draw = ImageDraw.Draw(picture)
    letter = max(11, min(picture.size) // 24)
    font = ImageFont.load_default(letter)
    edge = max(1, letter // 10)
    x, y = track.boxes[0][:2]
    draw.text((max(x, 0) + 3, max(y, 0) + 2), track.name, colour, font, stroke_width=edge, stroke_fill="black")
    places = [centre(track.boxes[k]) for k in _spread(len(track.boxes), 5)]
    for k, (x, y) in zip(_spread(len(track.boxes), 5), places, strict=True):
        if (k == 0 or (x, y) != places[0]) and 0 <= x < picture.width and 0 <= y < picture.height:
            draw.text((x + 5, y + 4), str(k + 1), "white", font, stroke_width=edge, stroke_fill="black")


class _Pen:
    """Draws tracks, given in pixels of the picture, on a layer that is `SMOOTH` times larger.

    Dark outlines keep each colour visible on a background of the same colour.
    """

    def __init__(self, layer: Image.Image):
        self.draw = ImageDraw.Draw(layer)
        self.unit = SMOOTH * max(min(layer.size) // SMOOTH / 256, 1)
        """Unit of line widths: one pixel for pictures of 256 pixels, two for 512."""

    def track(self, track: Track, frame: int, travelled: int, colour: tuple[int, int, int]) -> None:
        path = [centre(box) for box in track.boxes]
        for points, width, strength in ((path[travelled:], 1.5, 0.6), (path[: travelled + 1], 2.5, 1.0)):
            self.line(points, (0, 0, 0, round(130 * strength)), width + 1.5)
            self.line(points, (*colour, round(255 * strength)), width)
        self.box(track.boxes[frame], colour)
        for point in _follow(track.salient_points, track.boxes[0], track.boxes[frame]):
            self.dot(point, (255, 255, 255), 4)
            self.dot(point, colour, 2.6)

    def line(self, points: Sequence[Point], colour: tuple[int, int, int, int], width: float) -> None:
        if len(points) > 1:
            scaled = [(_reachable(x * SMOOTH), _reachable(y * SMOOTH)) for x, y in points]
            self.draw.line(scaled, fill=colour, width=round(width * self.unit), joint="curve")

    def box(self, box: Box, colour: tuple[int, int, int], strength: float = 1.0) -> None:
        x0, y0, x1, y1 = (_reachable(value * SMOOTH) for value in box)
        for width, grow, shade in ((4.0, 1.0, (0, 0, 0, 130)), (2.0, 0.0, (*colour, 255))):
            shade = (*shade[:3], round(shade[3] * strength))
            g = grow * self.unit
            left, top = x0 - g, y0 - g
            edges = (left, top, max(x1 + g - 1, left), max(y1 + g - 1, top))  # Pillow's edges are inclusive
            self.draw.rectangle(edges, outline=shade, width=round(width * self.unit))

    def dot(self, point: Point, colour: tuple[int, int, int], radius: float) -> None:
        x, y, r = _reachable(point[0] * SMOOTH), _reachable(point[1] * SMOOTH), radius * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))


def _reachable(value: float) -> float:
    """Clamp a coordinate to the range that Pillow can draw, far outside of any picture."""
    return min(max(value, -1e5), 1e5)


def _follow(points: Sequence[Point], first: Box, box: Box) -> list[Point]:
    """Move points on the first box to the same relative position in another box."""
    x, y = (box[2] - box[0]) / (first[2] - first[0]), (box[3] - box[1]) / (first[3] - first[1])
    return [(box[0] + (px - first[0]) * x, box[1] + (py - first[1]) * y) for px, py in points]


def overlay_masks(
    video: Float[Tensor, "f 3 h w"],
    masks: Sequence[Bool[Tensor, "f h w"] | Float[Tensor, "f h w"]],
    enlarge: int | None = None,
) -> Float[Tensor, "f 3 hh ww"]:
    """Draw each object's mask in its colour on the greyed video; soft masks tint less."""
    height, width = video.shape[-2:]
    out = video.mean(1, keepdim=True).expand_as(video) * 0.75
    for i, mask in enumerate(masks):
        colour = torch.tensor(COLOURS[i % len(COLOURS)]).view(3, 1, 1) / 255
        strength = 0.65 * mask[:, None].float().clamp(0, 1)
        out = out * (1 - strength) + colour * strength
    return magnify(out, enlarge or magnification(height, width))


def side_by_side(
    condition: Float[Tensor, "3 h w"], video: Float[Tensor, "f 3 h w"], tracks: Tracks
) -> Float[Tensor, "f 3 hh ww"]:
    """Combine the condition with boxes and whole paths (left) and the video with boxes (right), both enlarged."""
    frames = len(video)
    right = overlay_boxes(video, tracks)
    left = draw_tracks(condition, tracks.resample(frames)).expand(frames, -1, -1, -1)
    return torch.cat([left, torch.ones(frames, 3, right.shape[-2], 8), right], dim=-1)


def contact_sheet(
    rows: Mapping[str, Float[Tensor, "_ 3 _ _"]],
    *,
    columns: int = 8,
    cell: int = SHORT_SIDE,
    heads: Sequence[str] = (),
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Arrange videos as rows and evenly spaced frames as columns, with names and frame numbers.

    Args:
        rows: videos `[f 3 h w]` by name; a video of one frame fills one cell.
        columns: maximum number of frames per row; with two or more, the first and last frame are always included.
        cell: shorter side of each frame in pixels; smaller frames are first enlarged by whole factors.
        heads: titles of the columns instead of frame numbers; no frame is left out then.

    Raises InputError if there is nothing to show.
    """
    if not rows or columns < 1 or not all(map(len, rows.values())):
        raise InputError("a contact sheet needs at least one column, one row, and one frame in each row")
    columns = max(columns, len(heads))
    pictures = {
        textwrap.fill(name, 16): [_cell(video[j], cell) for j in _spread(len(video), columns)]
        for name, video in rows.items()
    }
    numbers = _spread(max(map(len, rows.values())), columns)
    letter = max(12, cell // 14)
    font = ImageFont.load_default(letter)
    left, top = math.ceil(_text_width(pictures, font)) + 2 * GAP, letter + 2 * GAP
    place = max(picture.width for row in pictures.values() for picture in row) + GAP
    height = top + sum(row[0].height + GAP for row in pictures.values())
    sheet = Image.new("RGB", (left + place * len(numbers), height), "white")
    draw = ImageDraw.Draw(sheet)
    for j, head in enumerate(heads or [str(number + 1) for number in numbers]):
        draw.text((left + place * j + (place - GAP) / 2, top / 2), head, "black", font, anchor="mm")
    for name, row in pictures.items():
        draw.text((left - GAP, top + row[0].height / 2), name, "black", font, anchor="rm", align="right")
        for j, picture in enumerate(row):
            sheet.paste(picture, (left + place * j, top))
        top += row[0].height + GAP
    return np.asarray(sheet)


def _text_width(texts: Iterable[str], font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> float:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return max(draw.textbbox((0, 0), text, font=font)[2] for text in texts)


GAP = 8
"""Gap between the frames of a contact sheet in pixels."""


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
