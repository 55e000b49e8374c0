"""Compares the compiled UNet with the eager one, outputs and gradients; run as `python -m tests.check_compiled`.

The backend `aot_eager` traces forward and backward like the default one and leaves out only the generation of
machine code, which would take minutes.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from anyi2v.backbone.config import MotionConfig
from anyi2v.backbone.unet import UNet, record
from anyi2v.taps import Replace, StopAt, Tap, no_tap

from .networks import TINY, inputs, tiny_unet
from .test_operators import CASES, Fixed, make_all_large

TEMPORAL = MotionConfig(heads=2, groups=4, attentions=1, max_frames=8)
SMALL = replace(TINY, channels=(8, 16), attention=(False, True), temporal=TEMPORAL)
QUERIES = ["up_blocks.0.attentions.0.query", "up_blocks.0.attentions.1.query"]
HALVE = Replace({QUERIES[0]: lambda q: q * 0.5})


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # decompositions may sum in another order; float64 leaves 1e-12
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def whole(tap: Tap) -> None:
    """The whole network as one graph, with and without an edit."""
    unet = tiny_unet(SMALL)
    compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
    z, t, text = inputs()
    z.requires_grad_()
    out, eager = compiled(z, t, text, tap=tap), unet(z, t, text, tap=tap)
    assert_equal(out, eager)
    assert_equal(*(torch.autograd.grad(y.square().sum(), z)[0] for y in (out, eager)))
    print("equal")


def what_nothing_watches() -> None:
    """`UNet.compile` makes one graph for all timesteps; taps, and stops at points, are as before."""
    plain, unet, graphs = tiny_unet(SMALL), tiny_unet(SMALL), list[object]()

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    unet.compile(backend=backend, fullgraph=True)
    z, _, text = inputs()
    with torch.no_grad():
        for timestep in (1, 201, 981):
            assert_equal(unet(z, timestep, text, temporal=False), plain(z, timestep, text, temporal=False))
        assert len(graphs) == 1
        assert_equal(unet(z, 201, text, tap=HALVE), plain(z, 201, text, tap=HALVE))
        for ours, theirs in zip(*(record(u, QUERIES, z, 201, text).values() for u in (unet, plain)), strict=True):
            assert_equal(ours, theirs)
        assert len(graphs) == 1
        other = deepcopy(unet)
        other.conv_out.weight.mul_(2)
        assert not torch.equal(other(z, 201, text, temporal=False), unet(z, 201, text, temporal=False))
    print("equal")


def layer_by_layer(checkpoint: bool) -> None:
    """Each layer a graph of its own, and a stop between layers."""
    plain, unet = tiny_unet(SMALL), tiny_unet(SMALL)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for layer in (*block.resnets, *block.attentions, *block.temporals):  # type: ignore[union-attr]
            layer.compile(backend="aot_eager", fullgraph=True)
    z, t, text = inputs()
    z.requires_grad_()
    gradients = []
    stops: tuple[tuple[UNet, StopAt], ...] = ((unet, "layer"), (plain, "point"))
    for network, stop in stops:
        seen = record(network, QUERIES, z, t, text, edit=HALVE, stop=stop, checkpoint=checkpoint)
        loss = torch.stack([seen[name].square().mean() for name in QUERIES]).sum()
        gradients.append(torch.autograd.grad(loss, z)[0])
    assert_equal(*gradients)
    print("equal")


def operators() -> None:
    """Each is compiled as its formula, also of tensors for which eagerly it has another implementation."""
    with pytest.MonkeyPatch.context() as patch:
        make_all_large(patch)
        for make in CASES.values():
            case = make(Fixed())
            tensors = (*case.inputs, *case.parameters)
            compiled = torch.compile(case.ours, backend="eager", fullgraph=True)
            assert torch.equal(compiled(*tensors), case.formula(*tensors))
            torch.compiler.reset()
    print("equal")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # each tapped layer has its own name and so its own graph
    torch._dynamo.config.recompile_limit = 64
    # the recomputation of a checkpointed layer must find the same graph as its first pass
    torch._dynamo.config.automatic_dynamic_shapes = False
    whole(no_tap)
    whole(HALVE)
    what_nothing_watches()
    layer_by_layer(checkpoint=False)
    layer_by_layer(checkpoint=True)
    operators()
