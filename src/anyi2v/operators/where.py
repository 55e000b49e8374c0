"""Dispatch conditions of the implementations: device, dtype, grad mode and the user's choice."""

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
"""Dtypes that the Triton kernels support."""
OLDEST = (7, 0)
"""Minimum compute capability for Triton, the same as required by torch.compile."""

HOST = torch.device("cpu")
"""Device on which small tables are computed, regardless of the default device."""

_KIND: ContextVar[OperatorKind] = ContextVar("operators", default="fast")


def using(kind: OperatorKind) -> AbstractContextManager[None]:
    """Select the operators' implementation within a block: the fastest, or only the formulas ("reference")."""
    if torch.compiler.is_compiling():  # a compiled pass uses the formulas and cannot set the variable
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
    """Return the kind of the innermost `using` block, or "fast" outside of any."""
    return _KIND.get()


def computes_by_formulas(network: nn.Module) -> bool:
    """Return whether a network is set to use only the formulas."""
    return getattr(network, "operators", "fast") == "reference"


def formulas_only() -> bool:
    """Return whether only the formulas may be used, because of a function transform or by choice."""
    return transformed() or _KIND.get() == "reference"  # order matters: a compiled pass cannot read the variable


def transformed() -> bool:
    """Return whether a compiler, torch.func or forward-mode AD is active, which support PyTorch's own operators
    only."""
    return torch.compiler.is_compiling() or private.differentiated_otherwise()


def on_cpu(x: Tensor, weight: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether `operators.cpu` can compute a layer: on a CPU with oneDNN, with frozen parameters."""
    own = x.device.type == "cpu" and x.dtype == weight.dtype
    if not own or formulas_only() or not onednn_computes(x.dtype):  # the last check cannot be traced by a compiler
        return False
    return frozen(weight, *parameters)


def on_gpu(x: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether `operators.triton` can compute a layer: on a GPU supported by Triton, with frozen parameters."""
    own = x.device.type == "cuda" and all(p is None or p.dtype == x.dtype for p in parameters)
    return own and x.dtype in KERNEL_DTYPES and not formulas_only() and frozen(*parameters) and triton_runs(x.device)


def frozen(*parameters: Tensor | None) -> bool:
    """Return whether no parameter needs a gradient in the current grad mode."""
    return not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters))


@cache
def triton_runs(device: torch.device) -> bool:
    """Return whether Triton is installed, finds a C compiler, and supports this GPU."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    if find_spec("triton") is None or not any(map(shutil.which, compilers)):
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= OLDEST


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Return whether PyTorch has the oneDNN functions that `operators.cpu` needs, and oneDNN supports the dtype
    here."""
    if not (torch.backends.mkldnn.is_available() and private.available(*private.NEEDED_ON_CPU)):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and private.onednn_has_bfloat16())


def has_values(x: Tensor) -> bool:
    """Return False for fake tensors, which predict memory and are not supported by oneDNN and Triton."""
    return type(x) is Tensor


def in_turn(parts: Iterable[Part], x: Tensor) -> Iterable[Part]:
    """Return the parts of `x` that a loop computes in turn; only the first few for fake tensors.

    These suffice to predict memory: all parts have equal size, except the last one overall or of a sequence.
    """
    return parts if has_values(x) else islice(parts, 3)


def plain(module: nn.Module, *kinds: type[Module]) -> TypeGuard[Module]:
    """Return whether calling `module` does exactly what one of the classes does.

    An operator may then use the module's parameters instead of calling it. Subclasses, including parametrised modules,
    and wrappers do not count as one of the `kinds`, unless their class declares it: `stands_for` in its own body names
    the class whose contract it fulfils. For hooks see `hooked`.
    """
    kind = type(module)
    return (kind in kinds or kind.__dict__.get("stands_for") in kinds) and not hooked(module)


def hooked(module: nn.Module) -> bool:
    """Return whether calling `module` also runs hooks, its own or global, or a `forward` set on the instance."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or private.has_global_hooks()) or "forward" in module.__dict__
