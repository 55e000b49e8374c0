"""Editing attention maps at the points of a UNet: which there are, and on which grids."""

from collections.abc import Iterable
from typing import NamedTuple

from anyi2v.backbone.unet import UNet, points
from anyi2v.comparators.boxes import Grid
from anyi2v.errors import InputError
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.method.config import MethodConfig


class MapPoint(NamedTuple):
    """A point that holds an attention map."""

    kind: Kind
    attention: AttentionKind
    grid: Grid


def map_points(
    unet: UNet, kinds: Iterable[tuple[Kind, AttentionKind]], *, frames: int, height: int, width: int, tokens: int
) -> dict[str, MapPoint]:
    """The attention maps of these kinds by their names, with the grid of their cells.

    Args:
        unet: the network.
        kinds: of points ("logits", "probs") and of attention.
        frames, height, width, tokens: of the latents and of the text.
    """
    known, kinds = points(unet, frames=frames, height=height, width=width, tokens=tokens), set(kinds)
    found = {}
    for name, point in known.items():
        if point.attention is not None and (point.kind, point.attention) in kinds:
            query = known[name.rsplit(".", 1)[0] + ".query"]
            sizes = dict(zip(query.axes.split(), query.shape, strict=True))
            found[name] = MapPoint(point.kind, point.attention, (sizes["h"], sizes["w"]))
    return found


def check_maps(method: str, config: MethodConfig, *, temporal: bool) -> None:
    """Raises InputError for settings under which edits would not reach every map.

    Args:
        method: its name.
        config: of the job.
        temporal: whether maps over frames are edited.
    """
    if config.deep_every > 1:
        raise InputError(
            f"{method} edits attention in all levels, but deep_every={config.deep_every} leaves the deep ones out of "
            "some steps; take deep_every=1"
        )
    if temporal and config.window is not None:
        raise InputError(
            f"{method} edits attention between all frames, but window={config.window} shows the temporal layers some "
            "of them at a time; take fewer frames without a window, or leave the edits over frames out"
        )
