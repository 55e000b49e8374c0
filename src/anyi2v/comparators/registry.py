"""The comparators by the names that the command line and the records of runs know."""

from anyi2v.comparators.freetraj import FreeTraj
from anyi2v.comparators.settings import ComparatorName, Settings, name_of
from anyi2v.comparators.sg_i2v import SGI2V
from anyi2v.comparators.time_to_move import TimeToMove
from anyi2v.comparators.trailblazer import TrailBlazer

Comparator = FreeTraj | TrailBlazer | SGI2V | TimeToMove

METHODS: dict[ComparatorName, type[Comparator]] = {
    "freetraj": FreeTraj,
    "trailblazer": TrailBlazer,
    "sg-i2v": SGI2V,
    "time-to-move": TimeToMove,
}


def comparator(settings: Settings) -> Comparator:
    """The method with these settings."""
    return METHODS[name_of(settings)].from_dict(settings.to_dict())
