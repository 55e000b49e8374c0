"""Bicubic resampling as small matrices, one per axis.

Resizing a map, cropping a box and resizing the crop are linear and separable. Written as matrices they
multiply into one, and `torch.einsum("yh,xw,hwc->yxc", rows, cols, feature)` does all of it without ever
building the enlarged map. Matrices are float32 on the CPU: they depend on sizes only, and serve a whole job.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from anyi2v.errors import InputError

Span = tuple[int, int]
"""Half-open range of cells of a lattice; may reach outside of it."""


def bicubic_matrix(source: int, target: int) -> Float[Tensor, "target source"]:
    """R such that R_y @ map @ R_x^T is `F.interpolate(map, mode="bicubic", align_corners=False)`.

    Rows sum to one. Keys' kernel with a = -0.75; samples beyond the border repeat the last cell. Enlarging
    and shrinking are alike: there is no low-pass filter.

    Raises InputError for sizes below 1.
    """
    if source < 1 or target < 1:
        raise InputError(f"cannot resize {source} cells to {target}; both sizes have to be at least 1")
    # unit vectors as channels of a one-cell-wide image, so that only one axis is resampled
    unit = torch.eye(source, dtype=torch.float32, device="cpu").view(1, source, source, 1)
    return F.interpolate(unit, size=(target, 1), mode="bicubic")[0, :, :, 0].T


def current_rows(
    start: int, stop: int, size: int, source: int, length: int
) -> tuple[Float[Tensor, "length source"], Bool[Tensor, "length"]]:
    """Cells [start, stop) of a lattice of `size` cells onto which `source` cells are up-sampled.

    Cell start + i is row i. Rows outside the lattice, and those from stop - start up to `length`, are zero
    and not valid.

    Raises InputError for an empty range and for one longer than `length`.
    """
    _check((start, stop), length)
    cells = torch.arange(start, start + length)
    valid = _inside(cells, (0, size)) & (cells < stop)
    rows = bicubic_matrix(source, size)[cells.clamp(0, size - 1)]
    return rows * valid[:, None], valid


def reference_rows(
    first: Span, now: Span, size: int, source: int, length: int
) -> tuple[Float[Tensor, "length source"], Bool[Tensor, "length"]]:
    """Cells `first` of the lattice, resized to as many cells as `now` has; padded to `length`.

    What the box at `first` shows, at the scale of the box at `now`: the counterpart of `current_rows(*now)`.
    Cells of `first` outside the lattice repeat the nearest inside. Row i is valid if cell now[0] + i lies in
    the lattice and so does the cell of `first` nearest to its counterpart; other rows are zero.

    Raises InputError for an empty range and if `now` is longer than `length`.
    """
    _check(now, length)
    _check(first, first[1] - first[0])
    before, after = first[1] - first[0], now[1] - now[0]
    crop = bicubic_matrix(source, size)[torch.arange(*first).clamp(0, size - 1)]
    rows = F.pad(bicubic_matrix(before, after) @ crop, (0, 0, 0, length - after))
    index = torch.arange(length)
    # centre of output cell i is (i + 1/2) * before / after, in whole numbers
    nearest = first[0] + (2 * index + 1) * before // (2 * after)
    valid = _inside(nearest, (0, size)) & _inside(now[0] + index, (0, size)) & (index < after)
    return rows * valid[:, None], valid


def _inside(cells: Tensor, span: Span) -> Tensor:
    return (cells >= span[0]) & (cells < span[1])


def _check(span: Span, length: int) -> None:
    if not 0 < span[1] - span[0] <= length:
        raise InputError(f"cells {span[0]} to {span[1]} do not make 1..{length} cells")
