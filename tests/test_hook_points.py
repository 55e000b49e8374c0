"""Hook points as data: kind, attention, axes and layer follow from what is at the point."""

import pytest
import torch

from anyi2v.backbone.unet import UNet, points
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.header import SHIPPED
from anyi2v.errors import HookError
from anyi2v.hook_points import Point, check_names, paper_layer, place, skip, spatial_layer

SIZES = {"b": 1, "f": 3, "h": 8, "w": 8, "l": 5}


@pytest.mark.parametrize("name", SHIPPED)
def test_axes_are_those_of_the_tensors(name: str) -> None:
    unet = load(name).unet
    for point in points(unet, frames=3, height=8, width=8, tokens=5).values():
        axes = point.axes.split()
        assert len(axes) == len(point.shape), point
        sizes = dict(zip(axes, point.shape, strict=True))
        factor = 8 // sizes.get("h", 8)  # of the level
        cells = {"h": 8 // factor, "w": 8 // factor}
        assert {a: sizes[a] for a in sizes if a in SIZES} == {a: (SIZES | cells)[a] for a in sizes if a in SIZES}, point
        if "q" in sizes:
            assert int(sizes["q"] ** 0.5) ** 2 == sizes["q"], point
            assert sizes.get("k", sizes["q"]) == sizes["q"], point


@pytest.mark.parametrize("name", SHIPPED)
def test_layers_are_modules_and_places_lie_in_one(name: str) -> None:
    unet = load(name).unet
    modules = dict(unet.named_modules())
    for point in points(unet).values():
        if point.kind == "layer":
            assert point.layer == point.name and point.attention is None
        if point.attention == "spatial":
            assert type(modules[point.layer]).__name__ == "SpatialTransformer", point
        if point.attention == "text":
            assert ".cross." in point.name and type(modules[point.layer]).__name__ == "SpatialTransformer", point


def test_kinds_by_hand() -> None:
    query = Point("up_blocks.1.attentions.0.query")
    assert (query.kind, query.attention, query.layer) == ("query", "spatial", "up_blocks.1.attentions.0")
    assert query.is_map and query.per_frame and not query.costly
    text = Point("up_blocks.1.attentions.0.cross.key")
    assert (text.kind, text.attention, text.layer, text.axes) == ("key", "text", "up_blocks.1.attentions.0", "b l c")
    assert not text.is_map and not text.per_frame
    frames = Point("down_blocks.0.temporals.1.0.probs")
    assert (frames.attention, frames.costly, frames.per_frame) == ("temporal", True, False)
    assert Point("up_blocks.1.attentions.0.temporal.query").attention == "temporal"
    assert Point("up_blocks.1.resnets.0.hidden").is_map
    assert Point("conv_in").kind == Point("up_blocks.1.temporals.0").kind == "layer"
    entering = Point(skip(11))
    assert (entering.kind, entering.layer, entering.axes) == ("skip", "skips.11", "b f c h w")
    assert entering.attention is None and entering.per_frame and not entering.attends


def test_the_papers_layers() -> None:
    assert spatial_layer("1.0", "attentions") == "up_blocks.1.attentions.0"
    assert paper_layer(place(spatial_layer("2.1", "resnets"), "hidden")) == "2.1"
    assert paper_layer("down_blocks.1.attentions.0.query") == paper_layer("conv_in") == ""


def test_only_names_that_resemble_an_unknown_one_are_suggested() -> None:
    with pytest.raises(HookError, match=r"tap: unknown hook point 'conv_on'; the closest are conv_in$"):
        check_names(["conv_on"], ["conv_in", "up_blocks.1.attentions.0"], "tap")
    with pytest.raises(HookError, match=r"unknown hook point 'zz'; `anyi2v inspect BACKBONE --points` lists all$"):
        check_names(["zz"], ["conv_in", "up_blocks.1.attentions.0"])


def test_listing_takes_no_memory_of_tensors() -> None:
    with torch.device("meta"):
        unet = UNet(load("micro").config.unet)
    assert all(isinstance(point, Point) for point in points(unet).values())
