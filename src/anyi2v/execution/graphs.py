"""CUDA graphs: a GPU replays the kernels of a pass without launching each from Python.

A pass of a single image has a thousand kernels of some microseconds each; to launch one from Python takes longer.
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
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    z: Tensor
    call: Call
    noise: Tensor


class Graphs:
    """Computes what a UNet predicts: at the first input of a form as ever, from the second on with a recorded graph."""

    def __init__(self) -> None:
        self.recorded: dict[Any, _Recorded | None] = {}

    def __call__(
        self, unet: UNet, z: Float[Tensor, "#b f c h w"], call: Call, deep: None
    ) -> Float[Tensor, "b f c h w"]:
        """As `UNet._predict`; under autograd it is that."""
        if torch.is_grad_enabled():
            return UNet._predict(unet, z, call, deep)
        embedding = call.embedding.shape, call.embedding.dtype
        form = (z.shape, z.dtype, embedding, call.text.shape, call.temporal, call.window)
        if form not in self.recorded:  # libraries and kernels get ready in this pass, which a graph must not record
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
    """A network on the same parameters that records its passes; the network itself off NVIDIA's GPUs, or if compiled.

    For passes that nothing watches, without gradients. The graphs and their memory live as long as it does. Hooks of
    modules would run in the recorded pass only, so a network with hooks stays itself too.
    """
    if unet.conv_in.weight.device.type != "cuda" or unet._compiled is not None or _each_layer_counts(unet):
        return unet
    twin = copy(unet)
    twin._compiled = Graphs()
    return twin


def _each_layer_counts(unet: UNet) -> bool:
    """Whether modules have hooks, or the network computes by the formulas alone."""
    return unet.operators == "reference" or any(map(hooked, unet.modules()))


Reader = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""The features at some hook points, of latents, timesteps and text."""


def graphed_reader(
    unet: UNet, read: Reader, z: Float[Tensor, "b f c h w"], text: Float[Tensor, "b n d"]
) -> Reader | None:
    """`read`, a pass of `unet`, and its backward pass as CUDA graphs, for latents like `z`; None off NVIDIA's GPUs.

    None as well for a network whose modules have hooks, which would run only while it is recorded.

    Launched kernel by kernel from Python, a pass takes twice as long as its kernels. What the backward pass needs stays
    allocated as long as the reader lives. To record takes as long as two passes.
    """
    if z.device.type != "cuda" or _each_layer_counts(unet):
        return None
    samples = (z.detach().clone().requires_grad_(), torch.zeros(1, dtype=torch.long, device=z.device), text.clone())
    with warnings.catch_warnings():
        # the first pass runs on a stream of its own, as it has to
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        graphs = torch.cuda.make_graphed_callables(read, samples, num_warmup_iters=1)
    return cast(Reader, graphs)
