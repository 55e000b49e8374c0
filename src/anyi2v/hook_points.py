"""Hook points as data: the tensor behind each name. The only module that knows how names are formed.

The output of a layer has the layer's path as its name, such as `up_blocks.1.attentions.0`; a tensor inside a layer
appends one word, such as `up_blocks.1.attentions.0.query`. `.cross.` marks text cross-attention, and `temporal` in the
path marks temporal attention. `skips.N` is skip connection N, counted from the first convolution's, where it enters the
up blocks: an edit there does not affect what the encoder computes from the same tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from anyi2v.errors import HookError, suggestion

Kind = Literal["layer", "skip", "hidden", "context", "query", "key", "value", "logits", "probs", "output"]
"""Kinds of tensors: the output of a layer; a skip connection; the residual hidden state of a ResBlock; and of an
attention layer the input of keys and values, the projections, the attention map before and after its softmax, and the
output after the output projection, before it is added to the layer's input."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_MAPS: tuple[Kind, ...] = ("layer", "skip", "hidden")
AttentionKind = Literal["spatial", "text", "temporal"]

MAP, TOKENS, FRAMES_LAST = "b f c h w", "b f h w c", "b h w f c"


@dataclass(frozen=True)
class Point:
    """A named tensor of the UNet, as a tap receives it."""

    name: str
    shape: tuple[int, ...] = ()
    """Shape of the tensor for a batch of one, if known; see `anyi2v.points`."""

    @property
    def kind(self) -> Kind:
        """Kind of the tensor."""
        if self.name.startswith("skips."):
            return "skip"
        last = self.name.rsplit(".", 1)[-1]
        for kind in KINDS:
            if kind == last:
                return kind
        return "layer"

    @property
    def attention(self) -> AttentionKind | None:
        """Kind of attention that the tensor belongs to; None for layers, skips and residual hidden states."""
        if self.kind in _MAPS:
            return None
        if ".cross." in self.name:
            return "text"
        return "temporal" if "temporal" in self.name else "spatial"

    @property
    def layer(self) -> str:
        """Path of the layer that contains the tensor; for a layer output or skip connection, its own name."""
        name = self.name if self.kind in ("layer", "skip") else self.name.rsplit(".", 1)[0]
        return name.removesuffix(".cross")

    @property
    def attends(self) -> bool:
        """Whether it is the output of a layer with spatial self-attention."""
        return self.kind == "layer" and self.name.split(".")[-2:-1] == ["attentions"]

    @property
    def axes(self) -> str:
        """Names of the axes: b batch, f frames, c channels, h w grid, l text tokens, n heads, q k cells."""
        if self.kind in _MAPS:
            return MAP
        if self.kind in ("logits", "probs"):
            return {"spatial": "b f n q k", "text": "b f n q l", "temporal": "b h w n f f"}[self.attention or "spatial"]
        if self.kind in ("context", "output"):
            return TOKENS
        if self.attention == "text" and self.kind != "query":
            return "b l c"
        return FRAMES_LAST if self.attention == "temporal" else TOKENS

    @property
    def costly(self) -> bool:
        """Whether only taps that request it receive it: attention maps, which fused kernels never materialise."""
        return self.kind in ("logits", "probs")

    @property
    def per_frame(self) -> bool:
        """Whether axis 1 is the frame axis."""
        return self.axes.startswith("b f")

    @property
    def is_map(self) -> bool:
        """Whether it holds one feature vector per frame and grid cell, excluding text and temporal attention."""
        return self.axes in (MAP, TOKENS) and self.attention in (None, "spatial")


def skip(number: int) -> str:
    """Return the name of a skip connection; 0 is that of the first convolution."""
    return f"skips.{number}"


def place(layer: str, kind: Kind) -> str:
    """Return the name of a tensor inside a layer."""
    return f"{layer}.{kind}"


def spatial_layer(layer: str, part: Literal["attentions", "resnets"]) -> str:
    """Return the path of the spatial transformer or ResBlock that the paper numbers `layer`, such as "1.0"."""
    block, number = layer.split(".")
    return f"up_blocks.{block}.{part}.{number}"


def paper_layer(name: str) -> str:
    """Return the paper's number of the spatial up-block layer that a point lies in, such as "1.0", or ""."""
    path = name.split(".")
    if len(path) < 4 or path[0] != "up_blocks" or path[2] not in ("attentions", "resnets"):
        return ""
    return f"{path[1]}.{path[3]}"


def check_names(names: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raise HookError for the first of `names` missing from `known`, with up to three names that resemble it.

    `where` is the setting that holds the names, used in the message.
    """
    known = set(known)
    for name in names:
        if name not in known:
            near = suggestion(name, sorted(known)) or "; `anyi2v inspect BACKBONE --points` lists all"
            text = f"unknown hook point {name!r}{near}"
            raise HookError(f"{where}: {text}" if where else text)
