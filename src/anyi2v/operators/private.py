"""What the implementations use of PyTorch beside its public interface, looked up once.

A name that the installed version lacks is None, and what needs it is then not used: the formulas compute. Nothing else
in the package names these functions.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module


def find(path: str, root: Any = torch) -> Any:
    """The object at a dotted path below `root`, None if there is none."""
    try:
        return reduce(getattr, path.split("."), root)
    except (AttributeError, RuntimeError):  # torch.ops raises either
        return None


linear_pointwise = find("ops.mkldnn._linear_pointwise")
"""A linear map by oneDNN, and what follows it; the overload `.binary` also takes another tensor."""
convolution_pointwise = find("ops.mkldnn._convolution_pointwise")
reorder_linear_weight = find("ops.mkldnn._reorder_linear_weight")
reorder_convolution_weight = find("ops.mkldnn._reorder_convolution_weight")
mkldnn_convolution = find("mkldnn_convolution")
mkldnn_convolution_op = find("ops.aten.mkldnn_convolution")
"""The operation behind it, as a dispatch mode sees it."""
native_group_norm = find("native_group_norm")
"""Also returns mean and 1 / sqrt(variance + eps)."""
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
"""Without one of them the layers with weights are computed by their formulas there."""

_bfloat16: Callable[[], bool] | None = find("ops.mkldnn._is_mkldnn_bf16_supported")
_functorch: Callable[[], bool] | None = find("_C._are_functorch_transforms_active")
_global_hooks: Callable[[], bool] | None = find("_has_any_global_hook", module)


def available(*names: str) -> bool:
    """Whether the installed PyTorch has all these functions."""
    return all(globals()[name] is not None for name in names)


def onednn_has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor, which needs AVX-512; False where that is unknown."""
    return _bfloat16 is not None and _bfloat16()


def differentiated_otherwise() -> bool:
    """Whether torch.func or forward-mode differentiation is active; True where that is unknown."""
    if _functorch is None or _functorch():
        return True
    return getattr(forward_ad, "_current_level", 0) >= 0


def has_global_hooks() -> bool:
    """Whether hooks are registered for all modules; True where that is unknown."""
    return _global_hooks is None or bool(_global_hooks())
