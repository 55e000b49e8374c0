"""Hook points as data: what the tensor at a name is. The only place that knows how names are built.

A layer's output has the layer's path, such as `up_blocks.1.attentions.0`; a place inside of a layer has its path and
one more word, such as `up_blocks.1.attentions.0.query`. `.cross.` marks attention to the text, `temporal` in the path
attention over frames. `skips.N` is skip connection N, counted from the first convolution's, where it enters the up
blocks: an edit there does not reach what the encoder computes from the same tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from anyi2v.errors import HookError, closest

Kind = Literal["layer", "skip", "hidden", "context", "query", "key", "value", "logits", "probs", "output"]
"""The output of a layer; a skip connection; a ResBlock's residual hidden state; of an attention what keys and values
are projected from, the projections, the attention map before and after its softmax, and the output: after the output
projection, as it is added to the layer's input."""
KINDS: tuple[Kind, ...] = get_args(Kind)
_MAPS: tuple[Kind, ...] = ("layer", "skip", "hidden")
AttentionKind = Literal["spatial", "text", "temporal"]

MAP, TOKENS, FRAMES_LAST = "b f c h w", "b f h w c", "b h w f c"


@dataclass(frozen=True)
class Point:
    """A named tensor of the UNet, as a tap sees it."""

    name: str
    shape: tuple[int, ...] = ()
    """Of the tensor for a batch of one, where it is known; see `anyi2v.points`."""

    @property
    def kind(self) -> Kind:
        """What the tensor is."""
        if self.name.startswith("skips."):
            return "skip"
        last = self.name.rsplit(".", 1)[-1]
        for kind in KINDS:
            if kind == last:
                return kind
        return "layer"

    @property
    def attention(self) -> AttentionKind | None:
        """Which attention a place lies in; None for layers, skip connections and residual hidden states."""
        if self.kind in _MAPS:
            return None
        if ".cross." in self.name:
            return "text"
        return "temporal" if "temporal" in self.name else "spatial"

    @property
    def layer(self) -> str:
        """Path of the layer that a place lies in, or of the layer or skip connection itself."""
        name = self.name if self.kind in ("layer", "skip") else self.name.rsplit(".", 1)[0]
        return name.removesuffix(".cross")

    @property
    def attends(self) -> bool:
        """Whether it is the output of a layer with spatial self-attention."""
        return self.kind == "layer" and self.name.split(".")[-2:-1] == ["attentions"]

    @property
    def axes(self) -> str:
        """Names of the axes: b batch, f frames, c channels, h w grid, l tokens of the text, n heads; q and k the grid's
        cells as queries and keys."""
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
        """Whether it is computed only for taps that ask for it: attention maps, which fast kernels never hold."""
        return self.kind in ("logits", "probs")

    @property
    def per_frame(self) -> bool:
        """Whether axis 1 is the frames."""
        return self.axes.startswith("b f")

    @property
    def is_map(self) -> bool:
        """Whether it holds a feature vector per frame and cell of the grid, without attention to anything else."""
        return self.axes in (MAP, TOKENS) and self.attention in (None, "spatial")


def skip(number: int) -> str:
    """The name of a skip connection; 0 is that of the first convolution."""
    return f"skips.{number}"


def place(layer: str, kind: Kind) -> str:
    """The name of a place inside of a layer."""
    return f"{layer}.{kind}"


def spatial_layer(layer: str, part: Literal["attentions", "resnets"]) -> str:
    """Path of the spatial transformer or ResBlock of an up block that the paper counts as `layer`, such as "1.0"."""
    block, number = layer.split(".")
    return f"up_blocks.{block}.{part}.{number}"


def paper_layer(name: str) -> str:
    """The paper's count of the spatial layer in an up block that a point lies in, as "1.0"; empty elsewhere."""
    path = name.split(".")
    if len(path) < 4 or path[0] != "up_blocks" or path[2] not in ("attentions", "resnets"):
        return ""
    return f"{path[1]}.{path[3]}"


def check_names(names: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Raises HookError for the first of `names` that is not in `known`, with the three closest names.

    `where` is the setting that holds them, for the message.
    """
    known = set(known)
    for name in names:
        if name not in known:
            text = f"unknown hook point {name!r}; the closest are {closest(name, sorted(known))}"
            raise HookError(f"{where}: {text}" if where else text)
