"""The networks' operators, with fast implementations and their dispatch.

`formulas` defines what each operator computes, `choice` has the operators that the networks call, and `where` decides
by device, dtype and grad mode whether one of the implementations in `cpu` and `triton` applies.
"""

from anyi2v.operators.choice import (
    attention,
    attention_over_frames,
    called,
    conv2d,
    feed_forward,
    geglu,
    group_norm,
    group_norm_silu,
    layer_norm,
    linear,
    projections,
)
from anyi2v.operators.formulas import of_clips
from anyi2v.operators.where import HOST, chosen, has_values, hooked, plain, transformed, using

__all__ = [
    "HOST",
    "attention",
    "attention_over_frames",
    "called",
    "chosen",
    "conv2d",
    "feed_forward",
    "geglu",
    "group_norm",
    "group_norm_silu",
    "has_values",
    "hooked",
    "layer_norm",
    "linear",
    "of_clips",
    "plain",
    "projections",
    "transformed",
    "using",
]
