"""Private PyTorch functions used by the implementations, looked up once.

A function that the installed version lacks is None; implementations that need it are then disabled and the formulas are
used. No other module of the package refers to these functions.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module


def find(path: str, root: Any = torch) -> Any:
    """Return the object at a dotted path below `root`, or None."""
    try:
        return reduce(getattr, path.split("."), root)
    except (AttributeError, RuntimeError):  # torch.ops raises either
        return None


linear_pointwise = find("ops.mkldnn._linear_pointwise")
"""oneDNN's linear layer with a fused pointwise operation; the overload `.binary` takes a second operand."""
convolution_pointwise = find("ops.mkldnn._convolution_pointwise")
reorder_linear_weight = find("ops.mkldnn._reorder_linear_weight")
reorder_convolution_weight = find("ops.mkldnn._reorder_convolution_weight")
mkldnn_convolution = find("mkldnn_convolution")
mkldnn_convolution_op = find("ops.aten.mkldnn_convolution")
"""The dispatcher operation behind `mkldnn_convolution`, as seen by a dispatch mode."""
native_group_norm = find("native_group_norm")
"""GroupNorm that also returns mean and 1 / sqrt(variance + eps)."""
native_layer_norm = find("native_layer_norm")
silu_backward = find("ops.aten.silu_backward")
gelu_backward = find("ops.aten.gelu_backward")
native_group_norm_backward = find("ops.aten.native_group_norm_backward")
native_layer_norm_backward = find("ops.aten.native_layer_norm_backward")
convolution_backward = find("ops.aten.convolution_backward")

NEEDED_ON_CPU = (
    *("linear_pointwise", "convolution_pointwise", "reorder_linear_weight", "reorder_convolution_weight"),
    *("mkldnn_convolution", "native_group_norm", "native_layer_norm", "silu_backward", "gelu_backward"),
    *("native_group_norm_backward", "native_layer_norm_backward", "convolution_backward"),
)
"""Functions required by the CPU implementations of layers with weights; if one is missing, formulas are used."""

_bfloat16: Callable[[], bool] | None = find("ops.mkldnn._is_mkldnn_bf16_supported")
_functorch: Callable[[], bool] | None = find("_C._are_functorch_transforms_active")
_global_hooks: Callable[[], bool] | None = find("_has_any_global_hook", module)


def available(*names: str) -> bool:
    """Return whether the installed PyTorch has all these functions."""
    return all(globals()[name] is not None for name in names)


def onednn_has_bfloat16() -> bool:
    """Return whether oneDNN supports bfloat16 on this processor, which needs AVX-512; False if unknown."""
    return _bfloat16 is not None and _bfloat16()


def differentiated_otherwise() -> bool:
    """Return whether torch.func or forward-mode differentiation is active; True if unknown."""
    if _functorch is None or _functorch():
        return True
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_global_hooks() -> bool:
    """Return whether global module hooks are registered; True if unknown."""
    return _global_hooks is None or bool(_global_hooks())
