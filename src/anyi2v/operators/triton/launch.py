"""Kernel launches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyi2v.operators.where import has_values


def launch(kernel: Any, grid: Sequence[int], x: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch `kernel` on the device of `x`, its first argument; do nothing for fake tensors, see `has_values`."""
    if has_values(x):
        with torch.cuda.device_of(x):
            kernel[tuple(grid)](x, *arguments, **options)
