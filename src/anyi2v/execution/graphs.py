"""CUDA graphs, which replay the kernels of a pass without launching each from Python.

A pass of a single image has about a thousand kernels of a few microseconds each; launching one from Python takes
longer.
"""

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from anyi2v.backbone.call import Call
from anyi2v.backbone.unet import UNet
from anyi2v.operators import hooked


class _Recorded(NamedTuple):
    """A graph and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    z: Tensor
    call: Call
    noise: Tensor


class Graphs:
    """Runs a UNet eagerly for the first input of each form, and by replaying a CUDA graph from the second on."""

    def __init__(self) -> None:
        self.recorded: dict[Any, _Recorded | None] = {}

    def __call__(
        self, unet: UNet, z: Float[Tensor, "#b f c h w"], call: Call, deep: None
    ) -> Float[Tensor, "b f c h w"]:
        """Compute `UNet._predict`, by a graph unless gradients are enabled."""
        if torch.is_grad_enabled():
            return UNet._predict(unet, z, call, deep)
        embedding = call.embedding.shape, call.embedding.dtype
        form = (z.shape, z.dtype, embedding, call.text.shape, call.temporal, call.window)
        if form not in self.recorded:  # warm-up: initialisation of libraries and kernels must not be captured
            self.recorded[form] = None
            return UNet._predict(unet, z, call, deep)
        known = self.recorded[form]
        if known is None:
            known = self.recorded[form] = _record(unet, z, call)
        for there, here in ((known.z, z), (known.call.embedding, call.embedding), (known.call.text, call.text)):
            there.copy_(here)
        known.graph.replay()
        return known.noise.clone()


def _record(unet: UNet, z: Tensor, call: Call) -> _Recorded:
    z, call = z.clone(), replace(call, embedding=call.embedding.clone(), text=call.text.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = UNet._predict(unet, z, call, None)
    return _Recorded(graph, z, call, noise)


def graphed(unet: UNet) -> UNet:
    """Return a network on the same parameters that replays CUDA graphs, for passes without taps and gradients.

    Returns `unet` itself if it is not on an NVIDIA GPU, is compiled, uses the reference operators, or has module hooks,
    which would only run in the captured pass. Graphs and their memory live as long as the returned network.
    """
    if unet.conv_in.weight.device.type != "cuda" or unet._compiled is not None or _each_layer_counts(unet):
        return unet
    twin = copy(unet)
    twin._compiled = Graphs()
    return twin


def _each_layer_counts(unet: UNet) -> bool:
    """Return whether modules have hooks, or the network uses only the formulas."""
    return unet.operators == "reference" or any(map(hooked, unet.modules()))


Reader = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Function from latents, timesteps and text to the features at some hook points."""


def graphed_reader(
    unet: UNet, read: Reader, z: Float[Tensor, "b f c h w"], text: Float[Tensor, "b n d"]
) -> Reader | None:
    """Capture `read`, a pass of `unet`, and its backward pass as CUDA graphs, for latents like `z`.

    Returns None if `z` is not on an NVIDIA GPU, or if the network uses the reference operators or has module hooks,
    which would only run during capture. Launched from Python, a pass takes twice as long as its kernels. The tensors
    saved for the backward pass stay allocated as long as the reader lives. Capturing takes as long as two passes.
    """
    if z.device.type != "cuda" or _each_layer_counts(unet):
        return None
    samples = (z.detach().clone().requires_grad_(), torch.zeros(1, dtype=torch.long, device=z.device), text.clone())
    with warnings.catch_warnings():
        # the warm-up pass must run on its own stream
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        graphs = torch.cuda.make_graphed_callables(read, samples, num_warmup_iters=1)
    return cast(Reader, graphs)
