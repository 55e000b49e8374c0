"""Other ways to steer a video, as methods on the same hooks: `animate(..., method=FreeTraj())`.

The names below are imported when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyi2v.comparators.freetraj import FreeTraj
    from anyi2v.comparators.sg_i2v import SGI2V
    from anyi2v.comparators.sparsectrl import SparseCtrl
    from anyi2v.comparators.time_to_move import TimeToMove
    from anyi2v.comparators.trailblazer import TrailBlazer

_HOMES = {
    "FreeTraj": "freetraj",
    "SGI2V": "sg_i2v",
    "SparseCtrl": "sparsectrl",
    "TimeToMove": "time_to_move",
    "TrailBlazer": "trailblazer",
}

__all__ = ["SGI2V", "FreeTraj", "SparseCtrl", "TimeToMove", "TrailBlazer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'anyi2v.comparators' has no attribute {name!r}")
    return getattr(import_module(f"anyi2v.comparators.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
