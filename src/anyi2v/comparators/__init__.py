"""Other motion-control methods on the same hook points: `animate(..., method=FreeTraj())`.

The classes are imported on first use to keep the command line's startup fast.
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
