"""Lines and dots of tracks on pictures, in colours that stand out from any background."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from anyi2v.tracks import Box, Point, Track, centre

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    *((255, 230, 0), (0, 199, 255), (255, 140, 255)),
    *((90, 230, 90), (255, 150, 0), (255, 155, 135)),
)
"""Colours of objects in order; a seventh object has the first colour again.

All are so bright that they, or their black outlines, have a contrast of at least 3:1 (WCAG 2.2, success criterion
1.4.11) with any background, including the object itself.
"""

OUTLINE: Colour = (0, 0, 0)

SMOOTH = 4
"""Supersampling factor of lines, which smooths their edges."""

THICK, THIN, EDGE = 3.0, 1.5, 1.5
"""Widths of lines, and of the outline on either side, in pixels of a picture of 256 pixels."""


def object_colour(number: int) -> Colour:
    """Return the colour of an object by its number, from 0."""
    return COLOURS[number % len(COLOURS)]


class Pen:
    """Draws tracks, given in pixels of the picture, on a layer that is `SMOOTH` times larger."""

    def __init__(self, layer: Image.Image):
        self.draw = ImageDraw.Draw(layer)
        self.unit = SMOOTH * max(min(layer.size) // SMOOTH / 256, 1)
        """Unit of line widths: one pixel for pictures of 256 pixels, two for 512."""

    def track(self, track: Track, frame: int, travelled: int, colour: Colour) -> None:
        """Draw the box and the points of `frame`, and the path: thick up to frame `travelled`, then thin."""
        path = [centre(box) for box in track.boxes]
        self.line(path[travelled:], colour, THIN)
        self.line(path[: travelled + 1], colour, THICK)
        self.box(track.boxes[frame], colour)
        for point in _follow(track.salient_points, track.boxes[0], track.boxes[frame]):
            self.dot(point, OUTLINE, 4)
            self.dot(point, colour, 2.6)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """Draw an outlined line through points."""
        if len(points) > 1:
            scaled = [(_reachable(x * SMOOTH), _reachable(y * SMOOTH)) for x, y in points]
            for fill, wide in ((OUTLINE, width + 2 * EDGE), (colour, width)):
                self.draw.line(scaled, fill=(*fill, 255), width=round(wide * self.unit), joint="curve")

    def box(self, box: Box, colour: Colour, width: float = THICK) -> None:
        """Draw an outlined box, whose coloured line lies inside of it."""
        x0, y0, x1, y1 = (_reachable(value * SMOOTH) for value in box)
        for shade, wide, grow in ((OUTLINE, width + 2 * EDGE, EDGE), (colour, width, 0.0)):
            g = grow * self.unit
            left, top = x0 - g, y0 - g
            edges = (left, top, max(x1 + g - 1, left), max(y1 + g - 1, top))  # Pillow's edges are inclusive
            self.draw.rectangle(edges, outline=(*shade, 255), width=round(wide * self.unit))

    def dot(self, point: Point, colour: Colour, radius: float) -> None:
        """Draw a disc."""
        x, y, r = _reachable(point[0] * SMOOTH), _reachable(point[1] * SMOOTH), radius * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))


def _reachable(value: float) -> float:
    """Clamp a coordinate to the range that Pillow can draw, far outside of any picture."""
    return min(max(value, -1e5), 1e5)


def _follow(points: Sequence[Point], first: Box, box: Box) -> list[Point]:
    """Move points on the first box to the same relative position in another box."""
    x, y = (box[2] - box[0]) / (first[2] - first[0]), (box[3] - box[1]) / (first[3] - first[1])
    return [(box[0] + (px - first[0]) * x, box[1] + (py - first[1]) * y) for px, py in points]
