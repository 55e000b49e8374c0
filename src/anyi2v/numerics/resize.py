"""Bicubic and bilinear resampling as small matrices, one per axis.

Resizing a map, cropping a box and resizing the crop are linear and separable. As matrices they can be multiplied into
one, and `torch.einsum("yh,xw,hwc->yxc", rows, cols, feature)` applies it without materialising the enlarged map.
Matrices are float32 on the CPU; they depend only on sizes and are reused for a whole job.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError


def bicubic_matrix(source: int, target: int) -> Float[Tensor, "target source"]:
    """Return R such that R_y @ map @ R_x^T is `F.interpolate(map, mode="bicubic", align_corners=False)`.

    Rows sum to one. Keys' kernel with a = -0.75; samples beyond the border repeat the last cell. Downsampling has no
    low-pass filter.

    Raises InputError for sizes below 1.
    """
    return _matrix(source, target, "bicubic")


def bilinear_matrix(source: int, target: int) -> Float[Tensor, "target source"]:
    """Like `bicubic_matrix`, for `mode="bilinear"`; weights are between zero and one."""
    return _matrix(source, target, "bilinear")


def _matrix(source: int, target: int, mode: str) -> Float[Tensor, "target source"]:
    if source < 1 or target < 1:
        raise InputError(f"cannot resize {source} cells to {target}; both sizes must be at least 1")
    # unit vectors as channels of a one-cell-wide image, so that only one axis is resampled
    unit = torch.eye(source, dtype=torch.float32, device="cpu").view(1, source, source, 1)
    return F.interpolate(unit, size=(target, 1), mode=mode)[0, :, :, 0].T
