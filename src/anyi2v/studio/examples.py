"""Example jobs for the page: the inputs that ship with the package."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from anyi2v.checkpoints.header import read_config
from anyi2v.errors import InputError
from anyi2v.examples import FOLDER, examples
from anyi2v.images.conditions import load_condition
from anyi2v.images.media import load_placed
from anyi2v.tracks import Tracks

EXAMPLES: dict[str, str] = {chosen.title.capitalize(): name for name, chosen in examples().items()}
"""Names of the examples by their entries in the page's list."""


class Example(NamedTuple):
    """A job without settings."""

    image: Float[Tensor, "3 h w"]
    """At the size that the micro backbones generate."""
    prompt: str
    tracks: Tracks


def example(title: str) -> Example:
    """Return the example with an entry in `EXAMPLES`; raises InputError for any other, and if its extra is missing."""
    if title not in EXAMPLES:
        raise InputError("there is no such example; choose one of the list")
    chosen = examples()[EXAMPLES[title]]
    image, fit = load_condition(**chosen.source().condition(read_config("micro")))
    return Example(image, chosen.prompt, load_placed(FOLDER / chosen.tracks, fit))
