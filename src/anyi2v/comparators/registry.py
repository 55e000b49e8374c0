"""Maps settings of comparators to methods; the command line and run records identify them by name."""

from typing import get_args

from anyi2v.comparators.freetraj import FreeTraj
from anyi2v.comparators.settings import SETTINGS, Settings, name_of
from anyi2v.comparators.sg_i2v import SGI2V
from anyi2v.comparators.sparsectrl import SparseCtrl
from anyi2v.comparators.time_to_move import TimeToMove
from anyi2v.comparators.trailblazer import TrailBlazer

Comparator = FreeTraj | TrailBlazer | SGI2V | TimeToMove | SparseCtrl


def comparator(settings: Settings) -> Comparator:
    """Return the method with these settings."""
    kind = SETTINGS[name_of(settings)]
    methods: tuple[type[Comparator], ...] = get_args(Comparator)
    (method,) = (method for method in methods if kind in method.__bases__)
    return method.from_dict(settings.to_dict())
