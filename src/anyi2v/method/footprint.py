"""Properties of a method that determine the memory of its passes, for the prediction before a job begins."""

from typing import NamedTuple

from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.method.config import MethodConfig


class Footprint(NamedTuple):
    """The memory-relevant properties of a method's passes; AnyI2V's follow from its settings alone."""

    config: MethodConfig
    """The job's settings with `align`, `optimise_steps` and `iterations` as the method optimises."""
    maps: frozenset[tuple[Kind, AttentionKind]] = frozenset()
    """Attention maps that the denoising passes materialise and edit, by kind of point and of attention."""
    parameters: int = 0
    """Number of parameters of the method's own networks, which have the UNet's dtype."""
