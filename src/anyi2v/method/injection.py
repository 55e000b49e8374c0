"""Injection of the condition image's features into frame 1 (Section 3.2)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from anyi2v.errors import HookError
from anyi2v.hook_points import Point, place
from anyi2v.numerics.adain import patch_adain


class Injection:
    """A tap that puts recorded features into frame 1 of every clip in the batch.

    Use it only in passes with the conditional text. Residual hiddens are debiased first (Eq. 1 and 2): each patch takes
    the mean and standard deviation of the current hidden, through which no gradient flows. Queries are replaced
    unchanged. In the layers of `share_kv`, the context of keys and values is reduced to frame 1, so that K_{2:f} = K_1
    and V_{2:f} = V_1.

    Args:
        features: from `invert`: `b 1 c h w` for hiddens and `b 1 h w c` for queries.
        hiddens: names of residual hiddens to replace.
        queries: names of self-attention queries to replace.
        share_kv: names of layers in whose self-attention all frames use frame 1's keys and values.
        debias: False injects the hiddens as recorded.
        patch: side of a patch in cells; 0 uses the statistics of the whole map.

    Raises:
        HookError: a feature is missing; during a pass, a feature was recorded at another size.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        *,
        hiddens: Iterable[str],
        queries: Iterable[str],
        share_kv: Iterable[str] = (),
        debias: bool = True,
        patch: int = 4,
    ):
        self.hiddens, self.queries = frozenset(hiddens), frozenset(queries)
        missing = sorted((self.hiddens | self.queries) - set(features))
        if missing:
            raise HookError(f"no recorded feature for {', '.join(missing)}; record these points during inversion")
        self.features = dict(features)
        self.shared = frozenset(place(name, "context") for name in share_kv)
        self.debias, self.patch = debias, patch

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Return the tensor with frame 1 replaced; tensors at other points are returned unchanged."""
        if name in self.shared:
            return x[:, :1]
        if name in self.queries:
            return with_first_frame(x, self._feature(name, x))
        if name in self.hiddens:
            return with_first_frame(x, self._debiased(self._feature(name, x), x[:, :1].detach()))
        return x

    def _feature(self, name: str, x: Tensor) -> Tensor:
        feature = self.features[name]
        if feature.shape[2:] != x.shape[2:]:
            raise HookError(
                f"the feature recorded for {name} has shape {tuple(feature.shape[2:])}, but {tuple(x.shape[2:])} is "
                "needed; record it from an image of the video's size"
            )
        return feature

    def _debiased(self, source: Tensor, present: Tensor) -> Tensor:
        if not self.debias:
            return source
        return patch_adain(source.expand_as(present).flatten(0, 1), present.flatten(0, 1), self.patch).view_as(present)


def check_injectable(hiddens: Iterable[str], queries: Iterable[str], share_kv: Iterable[str] = ()) -> None:
    """Raise HookError for the first point that cannot be used as the kind it is listed as."""
    for name in hiddens:
        if Point(name).kind not in ("layer", "hidden"):
            raise HookError(
                f"inject_hidden: {name} cannot be injected as a hidden; name a residual hidden or a layer output"
            )
    for name in queries:
        if (Point(name).kind, Point(name).attention) != ("query", "spatial"):
            raise HookError(
                f"inject_query: {name} cannot be injected as a query; name the query of a spatial self-attention"
            )
    for name in share_kv:
        if not Point(name).attends:
            raise HookError(
                f"share_kv: {name} cannot share keys and values; name a layer with spatial self-attention, for example "
                "up_blocks.1.attentions.0"
            )


def with_first_frame(x: Tensor, first: Tensor) -> Tensor:
    """Return a copy of `x` with frame 1 replaced by `first`, in the dtype of `x`.

    Args:
        x: `b f ...`.
        first: `b 1 ...` or `1 1 ...`.
    """
    first = first.to(x.dtype).expand(x.shape[0], *first.shape[1:])
    return torch.cat([first, x[:, 1:]], dim=1)
