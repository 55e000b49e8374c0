"""Attention maps of a UNet that a comparator edits: their hook points and grids."""

from collections.abc import Iterable
from typing import NamedTuple

from anyi2v.backbone.unet import UNet, points
from anyi2v.comparators.boxes import Grid
from anyi2v.errors import InputError
from anyi2v.hook_points import AttentionKind, Kind
from anyi2v.method.config import MethodConfig


class MapPoint(NamedTuple):
    """A hook point of an attention map."""

    kind: Kind
    attention: AttentionKind
    grid: Grid


def map_points(
    unet: UNet, kinds: Iterable[tuple[Kind, AttentionKind]], *, frames: int, height: int, width: int, tokens: int
) -> dict[str, MapPoint]:
    """Return the attention maps of the given kinds by name, with the grid of their query cells.

    Args:
        unet: the network.
        kinds: pairs of the point's kind ("logits" or "probs") and the kind of attention.
        frames, height, width: size of the latents.
        tokens: length of the text.
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
    """Check that edits reach every attention map.

    Args:
        method: name of the method, used in error messages.
        config: configuration of the job.
        temporal: whether temporal attention is edited.

    Raises:
        InputError: `deep_every` or `window` excludes some maps from the edits.
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
