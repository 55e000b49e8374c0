"""The objects' boxes on the working lattice, and the linear maps that cut them out of feature maps.

The working lattice has twice as many cells as the latent along each axis. Upsampling a feature map to it, cropping a
box, and resizing the crop of frame 1 to the size of a later box are all linear and separable, so each crop is a pair of
small matrices applied to the map at its own resolution: no map is ever upsampled as a whole, and all objects and frames
are cut in one operation.

A crop holds the visible part of a box, padded at the end to the size common to all crops. `method.boxes` creates crops
from tracks.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyi2v.numerics.resize import bicubic_matrix, bilinear_matrix

Span = tuple[int, int]
"""Half-open range of lattice cells."""

PART_CELLS = 2**19
"""Number of crop cells, padding included, aligned at a time: two objects that fill 16 frames of 512 x 512 pixels. With
64 components, each tensor that the backward pass needs takes 128 MiB."""


@dataclass(frozen=True)
class Maps:
    """Matrices that cut the boxes out of maps of one size `(h, w)`: rows act on y, columns on x."""

    now: tuple[Float[Tensor, "o f y h"], Float[Tensor, "o f x w"]]
    """Frame f's box."""
    first: tuple[Float[Tensor, "o f y h"], Float[Tensor, "o f x w"]]
    """Frame 1's box, resized to frame f's and clipped in the same way."""
    points: tuple[Float[Tensor, "o k h"], Float[Tensor, "o k w"]]
    """The cells of the salient points in frame 1."""


@dataclass(frozen=True)
class Crops:
    """All boxes of a job on the lattice."""

    names: tuple[str, ...]
    """Object names, used in error messages."""
    lattice: tuple[int, int]
    """Number of cells (rows, columns)."""
    boxes: tuple[tuple[tuple[Span, Span], ...], ...]
    """Per object and frame: the rows and columns of the whole box, which may extend beyond the lattice."""
    first: tuple[tuple[Span, Span], ...]
    """Per object: the rows and columns in frame 1 that later boxes are compared with."""
    valid: Bool[Tensor, "o f y x"]
    """Which cells of a crop are not padding."""
    first_cell: tuple[Int[Tensor, "o f y"], Int[Tensor, "o f x"]]
    """The row and column of frame 1's crop that a cell of frame f's crop corresponds to; -1 if not visible."""
    points: tuple[Int[Tensor, "o k"], Int[Tensor, "o k"]]
    """Rows and columns of the salient points on the lattice in frame 1."""
    offsets: tuple[Int[Tensor, "o k"], Int[Tensor, "o k"]]
    """The points' distances from the corner of frame 1's box, rounded down to cells."""
    given: Bool[Tensor, "o y x"]
    """The users' masks of frame 1's crops; only valid where `has_given` is set."""
    has_given: Bool[Tensor, " o"]
    """Which objects have a mask given by the user."""
    loss_weights: Float[Tensor, " o"] | None = None
    """Factor of each object's part of the loss; None: all 1."""
    _maps: dict[tuple[int, int], Maps] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Cache of `maps`."""

    def to(self, device: torch.device) -> "Crops":
        """Return the same crops with their tensors on `device`."""
        pairs = (self.first_cell, self.points, self.offsets)
        first_cell, points, offsets = ((rows.to(device), cols.to(device)) for rows, cols in pairs)
        alone = {name: getattr(self, name).to(device) for name in ("valid", "given", "has_given")}
        alone["loss_weights"] = None if self.loss_weights is None else self.loss_weights.to(device)
        return replace(self, first_cell=first_cell, points=points, offsets=offsets, **alone)

    @cached_property
    def shared_maps(self) -> tuple[Float[Tensor, "o f y s"], Float[Tensor, "o f x t"]]:
        """Matrices that map object 1's padded crop in frame 1 to each crop's first mask, as in the published code.

        There the mask is resized in place in a loop over frames, then objects: for each visible crop whose shape
        differs from the mask's current one, the mask is resampled bilinearly and stays so. Rows act on y, columns on x.
        """
        objects, frames, *lengths = self.valid.shape
        out = [torch.zeros(objects, frames, length, length) for length in lengths]
        current = [torch.eye(high - low, length) for (low, high), length in zip(self.seen(0, 0), lengths, strict=True)]
        for f, o in itertools.product(range(frames), range(objects)):
            sizes = [high - low for low, high in self.seen(o, f)]
            if 0 in sizes:
                continue
            for axis, size in enumerate(sizes):
                current[axis] = bilinear_matrix(len(current[axis]), size) @ current[axis]
                out[axis][o, f, :size] = current[axis]
        rows, cols = out
        return rows.to(self.valid.device), cols.to(self.valid.device)

    @cached_property
    def positions(self) -> Float[Tensor, "o f y x 2"]:
        """Row and column of each cell in its whole box, from -1 at its first edge to 1 at its last; 0 in padding."""
        out = torch.zeros(*self.valid.shape, 2)
        for o, object_boxes in enumerate(self.boxes):
            for f, box in enumerate(object_boxes):
                axes = []
                for (first, last), (low, high) in zip(box, self.seen(o, f), strict=True):
                    axes.append((2 * torch.arange(low, high) + 1 - first - last) / (last - first))
                rows, cols = axes
                out[o, f, : len(rows), : len(cols)] = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), -1)
        return out.to(self.valid.device)

    def seen(self, o: int, f: int) -> tuple[Span, Span]:
        """Return the visible rows and columns of object o's box in frame f."""
        rows, cols = (visible(span, size) for span, size in zip(self.boxes[o][f], self.lattice, strict=True))
        return rows, cols

    @cached_property
    def parts(self) -> tuple[tuple[tuple[int, ...], "Crops"], ...]:
        """Groups of object indices with at most `PART_CELLS` cells or a single object, and the crops of each group.

        All crops of a group are as large as its largest box, so objects of similar size are grouped. Most jobs have one
        group.
        """
        extent = [tuple(max(self._lengths(o, axis)) for axis in (0, 1)) for o in range(len(self.boxes))]
        frames = self.valid.shape[1]
        if len(extent) * self.valid[0].numel() <= PART_CELLS or len(extent) == 1:
            return ((tuple(range(len(extent))), self),)
        parts: list[list[int]] = []
        for o in sorted(range(len(extent)), key=lambda o: -math.prod(extent[o])):
            larger = [*parts[-1], o] if parts else [o]
            cells = len(larger) * frames * math.prod(max(extent[i][axis] for i in larger) for axis in (0, 1))
            if parts and cells <= PART_CELLS:
                parts[-1] = larger
            else:
                parts.append([o])
        return tuple((tuple(sorted(part)), self._part(sorted(part))) for part in parts)

    def _lengths(self, o: int, axis: int) -> list[int]:
        """Return the number of visible cells of object o along an axis, per frame."""
        return [high - low for low, high in (self.seen(o, f)[axis] for f in range(self.valid.shape[1]))]

    def _part(self, objects: list[int]) -> "Crops":
        y, x = (max(1, *(max(self._lengths(o, axis)) for o in objects)) for axis in (0, 1))
        (rows, cols), chosen = self.first_cell, torch.tensor(objects, device=self.valid.device)
        return replace(
            self,
            names=tuple(self.names[o] for o in objects),
            boxes=tuple(self.boxes[o] for o in objects),
            first=tuple(self.first[o] for o in objects),
            valid=self.valid[chosen][:, :, :y, :x],
            first_cell=(rows[chosen][:, :, :y], cols[chosen][:, :, :x]),
            points=(self.points[0][chosen], self.points[1][chosen]),
            offsets=(self.offsets[0][chosen], self.offsets[1][chosen]),
            given=self.given[chosen][:, :y, :x],
            has_given=self.has_given[chosen],
            loss_weights=None if self.loss_weights is None else self.loss_weights[chosen],
        )

    def maps(self, height: int, width: int) -> Maps:
        """Return the cached matrices for feature maps of `height` x `width` cells, on the device of the crops."""
        if (height, width) not in self._maps:
            self._maps[height, width] = self._make_maps(height, width)
        return self._maps[height, width]

    def _make_maps(self, height: int, width: int) -> Maps:
        axes = [self._matrices(axis, source) for axis, source in enumerate((height, width))]
        now, first, points = ((rows, cols) for rows, cols in zip(*axes, strict=True))
        return Maps(now, first, points)

    def _matrices(self, axis: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
        size, length = self.lattice[axis], self.valid.shape[2 + axis]
        up = bicubic_matrix(source, size)
        now, first = [], []
        for object_boxes, origin in zip(self.boxes, self.first, strict=True):
            spans = [box[axis] for box in object_boxes]
            now.append([up[slice(*visible(span, size))] for span in spans])
            start = up[torch.arange(*origin[axis]).clamp(0, size - 1)]
            first.append([_resized(start, span, size) for span in spans])
        device = self.valid.device
        points = up.to(device)[self.points[axis]]
        return _stack(now, length).to(device), _stack(first, length).to(device), points


def video_masks(masks: Float[Tensor, "l o f y x"], crops: Crops, size: tuple[int, int]) -> list[Float[Tensor, "f h w"]]:
    """Average the masks over the layers, paste them into the frame and resize to `size` (height, width); one per
    object."""
    return list(F.interpolate(paste(masks.mean(0), crops), size=size, mode="nearest").cpu())


def visible(span: Span, size: int) -> Span:
    """Clip a span to [0, size); an empty result starts at the nearest valid position."""
    start = min(max(span[0], 0), size)
    return start, max(start, min(span[1], size))


def paste(values: Float[Tensor, "o f y x"], crops: Crops) -> Float[Tensor, "o f h w"]:
    """Paste crops back at their places on an empty lattice."""
    canvas = values.new_zeros(*values.shape[:2], *crops.lattice)
    for o, object_boxes in enumerate(crops.boxes):
        for f in range(len(object_boxes)):
            (top, bottom), (left, right) = crops.seen(o, f)
            canvas[o, f, top:bottom, left:right] = values[o, f, : bottom - top, : right - left]
    return canvas


def _resized(start: Float[Tensor, "n s"], span: Span, size: int) -> Float[Tensor, "y s"]:
    resize = bicubic_matrix(start.shape[0], span[1] - span[0])
    low, high = visible(span, size)
    return (resize @ start)[low - span[0] : high - span[0]]


def _stack(matrices: list[list[Tensor]], length: int) -> Float[Tensor, "o f n s"]:
    return torch.stack([torch.stack([F.pad(m, (0, 0, 0, length - m.shape[0])) for m in row]) for row in matrices])
