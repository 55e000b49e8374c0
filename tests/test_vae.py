"""The autoencoder: shapes, conventions, independence of images. Its arithmetic is checked by the oracles."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v.backbone.config import VAEConfig
from anyi2v.backbone.vae import Attention, AutoencoderKL, Downsample
from anyi2v.errors import InputError

TINY = VAEConfig(channels=(4, 8), layers=1, groups=2, scale=0.5)


def tiny_vae(config: VAEConfig = TINY) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(config).double().eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(
    channels=st.lists(st.sampled_from([4, 8]), min_size=1, max_size=4),
    layers=st.integers(1, 2),
    latent_channels=st.integers(1, 5),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_latents_are_a_grid_of_cells_of_factor_pixels(
    channels: list[int], layers: int, latent_channels: int, cells: tuple[int, int]
) -> None:
    config = VAEConfig(channels=tuple(channels), layers=layers, latent_channels=latent_channels, groups=2)
    vae = tiny_vae(config)
    size = (cells[0] * config.factor, cells[1] * config.factor)
    latents = vae.encode(noise(2, 3, *size))
    assert config.factor == 2 ** (len(channels) - 1)
    assert latents.shape == (2, latent_channels, *cells)
    assert vae.decode(latents).shape == (2, 3, *size)


def test_the_unet_sees_scaled_means() -> None:
    vae, image = tiny_vae(), noise(1, 3, 4, 6)
    assert torch.equal(vae.encode(image), 0.5 * vae.moments(image)[0])


@given(scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_decoding_undoes_the_scale(scale: float) -> None:
    z, vae = noise(1, 4, 2, 3), tiny_vae()
    other = tiny_vae(dataclasses.replace(TINY, scale=scale))
    # float64 rounding of the division, times the network's gain
    assert torch.allclose(other.decode(z * scale), vae.decode(z * TINY.scale), atol=1e-10)


@given(n=st.integers(1, 5), chunk=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_chunks_do_not_matter(n: int, chunk: int) -> None:
    vae, z = tiny_vae(), noise(n, 4, 2, 2)
    one_by_one = torch.cat([vae.decode(z[i : i + 1]) for i in range(n)])
    # convolutions of other batch sizes may sum in another order: float64 rounding
    assert torch.allclose(vae.decode(z, chunk=chunk), one_by_one, atol=1e-12)


def test_the_log_variance_is_clamped() -> None:
    vae = tiny_vae()
    assert vae.quant_conv.bias is not None
    nn.init.zeros_(vae.quant_conv.weight)
    nn.init.constant_(vae.quant_conv.bias, 100.0)
    assert vae.moments(noise(1, 3, 4, 4))[1].unique().tolist() == [20.0]
    nn.init.constant_(vae.quant_conv.bias, -100.0)
    assert vae.moments(noise(1, 3, 4, 4))[1].unique().tolist() == [-30.0]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 1), (2, 2), (0, 2)])
def test_downsampling_pads_below_and_to_the_right_only(row: int, column: int) -> None:
    """A kernel with a single one at (row, column) reads pixel (2i + row, 2j + column), or zero outside."""
    down = Downsample(1).double()
    for parameter in down.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        down.conv.weight[0, 0, row, column] = 1.0
    x = noise(1, 1, 4, 6)
    padded = torch.zeros(6, 8, dtype=torch.float64)
    padded[:4, :6] = x[0, 0]
    assert torch.equal(down(x)[0, 0], padded[row : row + 4 : 2, column : column + 6 : 2])


def test_attention_is_one_head_over_all_positions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention = Attention(6, 2).double()
    x = noise(2, 6, 3, 4)
    tokens = attention.group_norm(x).flatten(2).transpose(1, 2)
    weights = (attention.to_q(tokens) @ attention.to_k(tokens).transpose(1, 2) / math.sqrt(6)).softmax(-1)
    expected = x + attention.to_out(weights @ attention.to_v(tokens)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(attention(x), expected, atol=1e-12)  # float64 rounding
    # no position is special: mirrored input, mirrored output
    assert torch.allclose(attention(x.flip(3)), attention(x).flip(3), atol=1e-12)


@pytest.fixture(scope="module")
def meta_vae() -> AutoencoderKL:
    """Factor 8, without weights."""
    with torch.device("meta"):
        return AutoencoderKL(dataclasses.replace(TINY, channels=(4, 4, 4, 4)))


@given(height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None)
def test_sizes_that_are_no_multiples_are_refused_with_a_way_out(
    meta_vae: AutoencoderKL, height: int, width: int
) -> None:
    image = torch.empty(1, 3, height, width, device="meta")
    if height % 8 == 0 and width % 8 == 0:
        assert meta_vae.encode(image).shape == (1, 4, height // 8, width // 8)
        return
    with pytest.raises(InputError, match=rf"{height} x {width} pixels.* multiples of 8 ") as caught:
        meta_vae.encode(image)
    proposed = str(caught.value).rsplit("e.g. to ", 1)[1].split(" x ")
    assert all(int(size) % 8 == 0 and int(size) > 0 for size in proposed)


def test_half_precision_images_are_accepted() -> None:
    vae = tiny_vae().float()
    assert vae.encode(noise(1, 3, 4, 4).half()).dtype == torch.float32
    assert vae.decode(noise(1, 4, 2, 2).half()).dtype == torch.float32
