"""Example jobs of the synthetic world on which the micro backbones are trained."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.world.world import Modality
from anyi2v.tracks import Tracks

EXAMPLES: dict[str, tuple[Modality, int]] = {
    "Edge map": ("edge", 1126),
    "Depth map": ("depth", 1141),
    "Segmentation": ("segmentation", 1100),
    "Photo": ("photo", 1126),
    "Sketch": ("sketch", 1141),
}
"""Condition and seed of each case; the first three are those of `anyi2v demo`."""


class Example(NamedTuple):
    """A job without settings."""

    image: Float[Tensor, "3 h w"]
    prompt: str
    tracks: Tracks


def example(name: str) -> Example:
    """Return the example with a name in `EXAMPLES`; raises InputError for any other name."""
    if name not in EXAMPLES:
        raise InputError("there is no such example; choose one of the list")
    modality, seed = EXAMPLES[name]
    case = make_case(seed, modality)
    return Example(case.image, case.prompt, case.tracks)
