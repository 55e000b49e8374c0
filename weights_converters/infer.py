"""Inference of architectures from the shapes of weights, for files without a configuration.

Files of the published width are assumed to have the published architecture, so that missing tensors are detected. For
others the architecture is derived from shapes, and values that shapes do not show are taken from SD-1.x: 8 heads, 32
groups, 64 channels per head of the text tower.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from anyi2v.backbone.config import (
    FactorisedConfig,
    MotionConfig,
    RotaryConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from anyi2v.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...] | None]

LIMITS = {
    "channels": 2**13,
    "width": 2**13,
    "context_dim": 2**13,
    "latent_channels": 2**10,
    "groups": 2**10,
    "heads": 2**10,
    "layers": 2**6,
    "attentions": 2**3,
    "max_frames": 2**10,
    "length": 2**13,
    "vocab_size": 2**20,
}
"""Maximum sizes of networks, far above all published ones, so that damaged files do not exhaust the memory."""


def unet(shapes: Shapes) -> UNetConfig:
    """Infer a spatial UNet from shapes under our names; raises CheckpointError if it is not SD-1.x's."""
    stem = _shape(shapes, "conv_in.weight", 4)
    context = {shape[-1] for key, shape in shapes.items() if shape and key.endswith("attn2.to_k.weight")}
    widest = max(context, default=0)
    family = {1024: "SD-2.x", 1280: "the refiner of SDXL", 2048: "SDXL"}.get(widest, "another family")
    inputs = {9: "an inpainting model", 8: "an image-editing model", 7: "an upscaler", 5: "a model with depth"}
    refused = {
        f"its input has {stem[1]} channels instead of 4: {inputs.get(stem[1], 'another kind of model')}": stem[1] > 4,
        f"its text is {widest} wide instead of 768: {family}": stem[0] == 320 and bool(context) and context != {768},
        "its attention projections are linear: SD-2.x or SDXL": any(
            re.fullmatch(r".*attentions\.\d+\.proj_in\.weight", key) and len(shape or ()) == 2
            for key, shape in shapes.items()
        ),
        "guidance is one of its inputs (cond_proj): a latent consistency model": "time_embedding.cond_proj.weight"
        in shapes,
    }
    for reason, holds in refused.items():
        if holds:
            raise CheckpointError(f"not a UNet of SD-1.x: {reason}")
    if stem[0] == 320:
        return UNetConfig(temporal=None)
    return _measured(shapes)


def _measured(shapes: Shapes) -> UNetConfig:
    """Infer widths and depth of a spatial UNet."""
    stem = _shape(shapes, "conv_in.weight", 4)
    context = {shape[-1] for key, shape in shapes.items() if shape and key.endswith("attn2.to_k.weight")}
    levels = [f"down_blocks.{i}" for i in _count(lambda i: f"down_blocks.{i}.resnets.0.conv1.weight" in shapes)]
    return UNetConfig(
        channels=tuple(_shape(shapes, f"{level}.resnets.0.conv1.weight", 4)[0] for level in levels),
        attention=tuple(f"{level}.attentions.0.norm.weight" in shapes for level in levels),
        layers=len(list(_count(lambda j: f"down_blocks.0.resnets.{j}.conv1.weight" in shapes))),
        latent_channels=stem[1],
        context_dim=max(context, default=0),
        temporal=None,
    )


def lavie(shapes: Shapes) -> UNetConfig:
    """Infer LaVie's UNet from shapes under our names; its bias tables give the number of heads."""
    if _shape(shapes, "conv_in.weight", 4)[0] == UNetConfig.channels[0]:
        return UNetConfig(norm_over="clip", temporal=RotaryConfig())
    tables = [key for key in shapes if key.endswith(".relative_bias.weight")]
    rows, heads = _shape(shapes, min(tables, default="temporal.relative_bias.weight"), 2)
    temporal = RotaryConfig(heads=heads, buckets=rows)
    return dataclasses.replace(_measured(shapes), heads=heads, norm_over="clip", temporal=temporal)


def videocrafter(shapes: Shapes) -> UNetConfig:
    """Infer VideoCrafter2's UNet from shapes under our names; its first transformer gives the width of all heads."""
    heads = FactorisedConfig.stem_heads
    width = _shape(shapes, "stem_temporal.proj_in.weight", 2)[0] // heads
    if not width:
        raise CheckpointError(f"not a UNet of VideoCrafter2: its first transformer is narrower than its {heads} heads")
    return dataclasses.replace(
        _measured(shapes),
        head_dim=width,
        linear_projection=True,
        fps_embedding="fps_embedding.linear_1.weight" in shapes,
        even_grids=True,
        temporal=FactorisedConfig(head_dim=width, stem_head_dim=width),
    )


def motion_unet(shapes: Shapes) -> UNetConfig:
    """Infer the UNet that a file of motion modules, under our names, belongs to.

    Only the widths and the number of layers of its spatial part are meaningful.
    """
    channels = tuple(
        _shape(shapes, f"down_blocks.{i}.temporals.0.norm.weight", 1)[0]
        for i in _count(lambda i: f"down_blocks.{i}.temporals.0.norm.weight" in shapes)
    )
    if channels[:1] == (UNetConfig.channels[0],):
        return UNetConfig()
    layers = len(list(_count(lambda j: f"down_blocks.0.temporals.{j}.norm.weight" in shapes)))
    return UNetConfig(channels=channels, attention=(False,) * len(channels), layers=layers, heads=1, groups=1)


def motion(shapes: Shapes, rows: int) -> MotionConfig:
    """Infer motion modules from shapes under our names and the rows of their position tables."""
    attentions = _count(
        lambda i: f"down_blocks.0.temporals.0.transformer_blocks.0.attention_blocks.{i}.to_q.weight" in shapes
    )
    mid = any(key.startswith("mid_block.temporals.") for key in shapes)
    return MotionConfig(max_frames=rows, mid=mid, attentions=max(1, len(list(attentions))))


def vae(shapes: Shapes) -> VAEConfig:
    """Infer an autoencoder from shapes under our names; raises CheckpointError if this is not possible."""
    if _shape(shapes, "encoder.conv_in.weight", 4)[0] == VAEConfig.channels[0]:
        return VAEConfig()
    levels = _count(lambda i: f"encoder.down_blocks.{i}.resnets.0.conv1.weight" in shapes)
    layers = _count(lambda j: f"encoder.down_blocks.0.resnets.{j}.conv1.weight" in shapes)
    return VAEConfig(
        channels=tuple(_shape(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4)[0] for i in levels),
        layers=len(list(layers)),
        latent_channels=_shape(shapes, "post_quant_conv.weight", 4)[0],
    )


def text(shapes: Shapes) -> TextConfig:
    """Infer a text tower from shapes under our names; raises CheckpointError if this is not possible."""
    vocab_size, width = _shape(shapes, "token_embedding.weight", 2)
    length = _shape(shapes, "positional_embedding", 2)[0]
    if width == TextConfig.width:
        return TextConfig(length=length, vocab_size=vocab_size)
    if width % 64 or not width:
        raise CheckpointError(f"not a text tower of CLIP: its width {width} is not a multiple of 64")
    layers = _count(lambda i: f"transformer.resblocks.{i}.ln_1.weight" in shapes)
    hidden = _shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    return TextConfig(
        width=width,
        layers=len(list(layers)),
        heads=width // 64,
        mlp_ratio=hidden / width,
        length=length,
        vocab_size=vocab_size,
    )


def check_size(*parts: UNetConfig | MotionConfig | VAEConfig | TextConfig | None) -> None:
    """Raise CheckpointError if a size in `parts` is not an integer between 1 and its limit in `LIMITS`."""
    for part in parts:
        for name, limit in LIMITS.items():
            value = getattr(part, name, 1)
            sizes = value if isinstance(value, tuple) else (value,)
            if not 0 < len(sizes) <= 8 or not all(type(size) is int and 0 < size <= limit for size in sizes):
                raise CheckpointError(f"{type(part).__name__}: {name}={value!r} is not between 1 and {limit}")


def _shape(shapes: Shapes, key: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(key)
    if shape is None or len(shape) != axes:
        found = "missing" if shape is None else f"of shape {shape}"
        raise CheckpointError(f"the network's size is unknown: {key} is {found}; it must have {axes} axes")
    return shape


def _count(exists: Callable[[int], bool]) -> Iterator[int]:
    """Yield 0, 1, 2, ... while `exists` returns True."""
    i = 0
    while exists(i):
        yield i
        i += 1
