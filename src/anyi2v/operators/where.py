"""Which implementation applies: by device, dtype and grad mode, and by what the user has chosen."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from anyi2v.method.config import OperatorKind
from anyi2v.operators import private

Module = TypeVar("Module", bound=nn.Module)
Part = TypeVar("Part")

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the Triton kernels compute with."""
OLDEST = (7, 0)
"""Least compute capability of a GPU that Triton, as torch.compile calls it, compiles for."""

HOST = torch.device("cpu")
"""Where small tables are computed, whatever the default device is."""

_KIND: ContextVar[OperatorKind] = ContextVar("operators", default="fast")


def using(kind: OperatorKind) -> AbstractContextManager[None]:
    """Within the block the operators compute by the fastest implementation, or by the formulas alone ("reference")."""
    if torch.compiler.is_compiling():  # a compiled pass computes by the formulas, and cannot set the variable
        return nullcontext()
    return _using(kind)


@contextmanager
def _using(kind: OperatorKind) -> Iterator[None]:
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def chosen() -> OperatorKind:
    """The kind of the innermost `using`; "fast" outside of any."""
    return _KIND.get()


def computes_by_formulas(network: nn.Module) -> bool:
    """Whether a network's own choice are the formulas."""
    return getattr(network, "operators", "fast") == "reference"


def formulas_only() -> bool:
    """Whether the formulas compute in any case: where PyTorch knows its own operators only, or by choice."""
    return transformed() or _KIND.get() == "reference"  # in this order: a compiled pass cannot read the variable


def transformed() -> bool:
    """Whether a compiler, torch.func or forward-mode differentiation is active: which know PyTorch's operators only."""
    return torch.compiler.is_compiling() or private.differentiated_otherwise()


def on_cpu(x: Tensor, weight: Tensor, *parameters: Tensor | None) -> bool:
    """Whether `operators.cpu` may compute a layer: on a CPU with oneDNN, parameters frozen."""
    own = x.device.type == "cpu" and x.dtype == weight.dtype
    if not own or formulas_only() or not onednn_computes(x.dtype):  # a compiler cannot trace the last
        return False
    return frozen(weight, *parameters)


def on_gpu(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether `operators.triton` may compute a layer: on a GPU that Triton compiles for, parameters frozen."""
    own = x.device.type == "cuda" and all(p is None or p.dtype == x.dtype for p in parameters)
    return own and x.dtype in KERNEL_DTYPES and not formulas_only() and frozen(*parameters) and triton_runs(x.device)


def frozen(*parameters: Tensor | None) -> bool:
    """Whether no parameter needs a gradient in the current grad mode."""
    return not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters))


@cache
def triton_runs(device: torch.device) -> bool:
    """Whether Triton compiles for this GPU: is installed, finds the C compiler that it calls, supports the GPU."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    if find_spec("triton") is None or not any(map(shutil.which, compilers)):
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= OLDEST


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has what `operators.cpu` needs of oneDNN, and oneDNN supports the dtype here."""
    if not (torch.backends.mkldnn.is_available() and private.available(*private.NEEDED_ON_CPU)):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and private.onednn_has_bfloat16())


def has_values(x: Tensor) -> bool:
    """False for fake tensors, with which memory is predicted, and which oneDNN and Triton do not support."""
    return type(x) is Tensor


def in_turn(parts: Iterable[Part], x: Tensor) -> Iterable[Part]:
    """The parts of `x` that a loop computes one after the other; the first few if there are no values to compute.

    Those tell how much memory any of them needs: parts are equally large, but for the last of all or of a sequence.
    """
    return parts if has_values(x) else islice(parts, 3)


def plain(module: nn.Module, *kinds: type[Module]) -> TypeGuard[Module]:
    """Whether calling `module` would do what one of the classes does and nothing else.

    An operator may then compute from the module's parameters instead of calling it. Subclasses, among them parametrised
    modules, and wrappers are not of exactly one of the `kinds`, unless their class says so: `stands_for` in its own
    body names the class whose contract it fulfils. For hooks see `hooked`.
    """
    kind = type(module)
    return (kind in kinds or kind.__dict__.get("stands_for") in kinds) and not hooked(module)


def hooked(module: nn.Module) -> bool:
    """Whether a call of `module` also runs hooks, its own or global ones, or a `forward` set on the instance."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or private.has_global_hooks()) or "forward" in module.__dict__
