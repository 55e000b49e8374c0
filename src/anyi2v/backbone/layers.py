"""Linear layers and convolutions of the UNet, computed on a CPU by the fastest of the libraries that PyTorch brings.

The arithmetic is that of `torch.nn`; what differs is who does it. In float32 PyTorch gives products to MKL, which on
AMD's processors reaches half of the machine's speed, and convolutions of a single image to a loop around MKL; oneDNN
reaches all of it. These layers also keep less for the backward pass: with frozen weights the gradient of a linear map
needs no activations. On a GPU frozen layers are those of `anyi2v.backbone.kernels`, where there is one.
"""

import os
import shutil
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

Module = TypeVar("Module", bound=nn.Module)
Part = TypeVar("Part")


class Linear(nn.Linear):
    """`torch.nn.Linear`, with `linear`."""

    def forward(self, input: Float[Tensor, "*n c"]) -> Float[Tensor, "*n d"]:
        """x W^T + b."""
        return linear(input, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over one axis; on a GPU by a kernel of ours."""

    def forward(self, input: Float[Tensor, "*n c"], shift: Float[Tensor, "f c"] | None = None) -> Float[Tensor, "*n c"]:
        """The normed tokens, `b f ... c` if there is a shift for each frame."""
        if on_gpu(input, self.weight, self.bias):
            from anyi2v.backbone.kernels.layer_norm import layer_norm

            return layer_norm(input, self.weight, self.bias, self.eps, shift)
        normed = super().forward(input)
        if shift is None:
            return normed
        return normed + shift.view(1, len(shift), *[1] * (input.ndim - 3), -1).to(input.dtype)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without groups and dilation, with `convolve`."""

    def forward(
        self, input: Float[Tensor, "n c h w"], shift: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n d h2 w2"]:
        """The convolution, padded with zeros; the shift is added to the bias."""
        stride, padding = self.stride[0], self.padding[0]
        assert isinstance(padding, int)
        return convolve(input, self.weight, shifted(self.bias, shift), stride, padding)


def shifted(bias: Float[Tensor, " d"] | None, shift: Float[Tensor, " d"] | None) -> Float[Tensor, " d"] | None:
    """Their sum, as far as they are there."""
    return shift if bias is None else bias if shift is None else bias + shift


KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels for GPUs compute with."""
OLDEST = (7, 0)
"""Compute capability from which on Triton, as torch.compile calls it, makes kernels for a GPU."""
SMALL = 2**21
"""Products of numbers below which a layer is PyTorch's own: oneDNN takes 20 microseconds to begin."""
FEW = 16
"""Rows below which a product is PyTorch's own: it reads the weights once and as they lie."""


def linear(x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None = None) -> Float[Tensor, "*n d"]:
    """x W^T + b."""
    numbers = x.numel()
    if numbers * weight.shape[0] < SMALL or numbers < FEW * x.shape[-1] or not on_cpu(x, weight, bias):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if x.requires_grad else product(x, weight, bias)


def convolve(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None, stride: int, padding: int
) -> Float[Tensor, "n d h2 w2"]:
    """The convolution of `x`, padded with zeros."""
    if on_gpu(x, weight, bias):
        if weight.shape[-1] == stride == 1 and padding == 0:  # as a product the bias costs no pass over the maps
            return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        if x.requires_grad:  # PyTorch's own would keep `x` for the gradient of the weights
            return _Convolution.apply(x, weight, bias, stride, padding)
    least = 4 * SMALL if x.dtype == torch.float32 else SMALL  # in float32 PyTorch's own begins sooner
    if x.numel() * weight.numel() < least * x.shape[1] or not on_cpu(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding)
    if x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return _convolution(x, weight, bias, stride, padding)


def on_cpu(x: Tensor, weight: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the layer is one that this module computes in its own way: on a CPU with oneDNN, parameters frozen."""
    own = x.device.type == "cpu" and x.dtype == weight.dtype
    if not own or transformed() or not onednn_computes(x.dtype):  # a compiler cannot trace the last
        return False
    return frozen(weight, *parameters)


def on_gpu(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether kernels of ours compute a layer: on a GPU for which Triton is there, parameters frozen."""
    own = x.device.type == "cuda" and all(p is None or p.dtype == x.dtype for p in parameters)
    return own and x.dtype in KERNEL_DTYPES and not transformed() and frozen(*parameters) and triton_runs(x.device)


def frozen(*parameters: Tensor | None) -> bool:
    """Whether no gradient can be wanted of any of them."""
    return not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters))


@cache
def triton_runs(device: torch.device) -> bool:
    """Whether Triton makes kernels for this GPU: is installed, finds the C compiler that it calls, knows its like."""
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    if find_spec("triton") is None or not any(map(shutil.which, compilers)):
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= OLDEST


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and computes with such numbers on this processor; bfloat16 asks for AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def plain(module: nn.Module, *kinds: type[Module]) -> TypeGuard[Module]:
    """Whether calling `module` would do what its class does and nothing else, so that its parameters stand for it.

    A fast path may only then compute from the parameters. Subclasses, among them parametrised modules, and wrappers in
    its place are not of exactly one of the `kinds`; for the rest see `hooked`.
    """
    return type(module) in kinds and not hooked(module)


def hooked(module: nn.Module) -> bool:
    """Whether a call of `module` also runs hooks, its own or global ones, or a `forward` set on the instance."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or modules._has_any_global_hook()) or "forward" in module.__dict__


def transformed() -> bool:
    """Whether a compiler, torch.func or forward-mode differentiation is at work: these know PyTorch's layers only."""
    functions = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return functions or torch.compiler.is_compiling()


def product(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor | None, then: Literal["none", "gelu"] = "none"
) -> Float[Tensor, "*n d"]:
    """x W^T + b, or gelu of it, by oneDNN, as torch.compile has it done; F.linear always takes MKL for float32."""
    if has_values(x):
        if bias is None:  # oneDNN keeps 0.7 MB of code for every form of product that it has met
            bias = _no_bias(weight.shape[0], x.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    made = F.linear(x, weight, bias)
    return F.gelu(made) if then == "gelu" else made


@cache
def _no_bias(channels: int, dtype: torch.dtype) -> Float[Tensor, " d"]:
    """Zeros that nobody changes, made once."""
    return torch.zeros(channels, dtype=dtype, device="cpu")


def product_times(
    x: Float[Tensor, "*n c"], weight: Float[Tensor, "d c"], bias: Tensor, other: Float[Tensor, "*n d"]
) -> Float[Tensor, "*n d"]:
    """(x W^T + b) * other, by oneDNN."""
    if has_values(x):
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "mul")
    return F.linear(x, weight, bias) * other


def has_values(x: Tensor) -> bool:
    """False for fake tensors, with which memory is predicted, and which oneDNN does not know."""
    return type(x) is Tensor


def in_turn(parts: Iterable[Part], x: Tensor) -> Iterable[Part]:
    """The parts of `x` that a loop computes one after the other; the first few if there are no values to compute.

    Those tell how much memory any of them needs: parts are equally large, but for the last of all or of a sequence.
    """
    return parts if has_values(x) else islice(parts, 3)


def _convolution(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"], bias: Tensor | None, stride: int, padding: int
) -> Float[Tensor, "n d h2 w2"]:
    kernel = weight.shape[-1]
    if x.device.type != "cpu":
        return F.conv2d(x, weight, bias, stride, padding)
    if _is_projection(weight, stride, padding):
        return linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    if x.shape[0] * x.shape[2] * x.shape[3] <= weight.shape[0]:
        # oneDNN brings the weights into an order of its own first, which for small maps takes longer than the
        # convolution: these become a product with the pixels around each pixel
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
        around = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # n h2 w2 c k k
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        return linear(around.permute(0, 1, 2, 4, 5, 3).flatten(3), rows, bias).permute(0, 3, 1, 2)
    if x.dtype == torch.float32 and has_values(x):
        # F.conv2d takes a loop around MKL for a single image
        strides, paddings = (stride, stride), (padding, padding)
        return torch.mkldnn_convolution(x, weight, bias, paddings, strides, (1, 1), 1)
    return F.conv2d(x, weight, bias, stride, padding)


def _fold(
    gradient: Float[Tensor, "n d h2 w2"], weight: Float[Tensor, "d c k k"], shape: torch.Size, stride: int, padding: int
) -> Float[Tensor, "n c h w"]:
    """The convolution's gradient as a product, whose taps are summed where they overlap (col2im, channels last)."""
    (n, c, height, width), (h2, w2), kernel = shape, gradient.shape[2:], weight.shape[-1]
    around = linear(gradient.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).flatten(1).T)  # n h2 w2 (k k c)
    taps = around.unflatten(-1, (kernel, kernel, c))
    padded = gradient.new_zeros(n, height + 2 * padding, width + 2 * padding, c)
    for y in range(kernel):
        for x in range(kernel):
            padded[:, y : y + stride * h2 : stride, x : x + stride * w2 : stride] += taps[..., y, x, :]
    return padded[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2)


def _is_projection(weight: Float[Tensor, "d c k k"], stride: int, padding: int) -> bool:
    """A 1x1 convolution of a shape that linear layers have too.

    A shortcut to another width is none: each has a form of its own, and as a convolution oneDNN keeps 0.06 MB for it.
    """
    return weight.shape[-1] == stride == 1 and padding == 0 and weight.shape[0] == weight.shape[1]


def _layout(x: Float[Tensor, "d c k k"]) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _Linear(torch.autograd.Function):
    """The product with a frozen matrix, of which the backward pass keeps the matrix only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        return linear(gradient, weight.T), None, None


class _Convolution(torch.autograd.Function):
    """The convolution with frozen weights, of which the backward pass keeps the weights only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return _convolution(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        if _is_projection(weight, ctx.stride, ctx.padding):
            back = linear(gradient.permute(0, 2, 3, 1), weight[:, :, 0, 0].T).permute(0, 3, 1, 2)
        elif gradient.device.type == "cpu" and 2 * gradient.numel() <= weight.shape[0] ** 2:
            # at most half as many pixels as channels: as in `_convolution`, to order the weights would take longer
            back = _fold(gradient, weight, ctx.shape, ctx.stride, ctx.padding)
        else:
            like = gradient  # only its shape counts, yet PyTorch would copy it if it did not lie like the weights
            if gradient.shape != ctx.shape:
                kind = {"dtype": gradient.dtype, "device": gradient.device}
                like = torch.empty(ctx.shape, **kind, memory_format=_layout(weight))
            strides, paddings = (ctx.stride, ctx.stride), (ctx.padding, ctx.padding)
            back = torch.ops.aten.convolution_backward(
                gradient, like, weight, None, strides, paddings, (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        return back, None, None, None, None
