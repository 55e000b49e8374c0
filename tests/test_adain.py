from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.numerics.adain import patch_adain

# float64: a few roundings, amplified by the ratio of the two spreads, which random maps keep below 1e3.
assert_near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
SEEDS = st.integers(0, 9999)
PATCHES = st.integers(0, 6)
SIDES = st.integers(1, 13)


def feature(seed: int, h: int, w: int, *lead: int) -> Tensor:
    return torch.randn(*(lead or (2, 3)), h, w, generator=torch.Generator().manual_seed(seed)).double()


def patches(x: Tensor, patch: int) -> list[Tensor]:
    """Every patch, cut out one by one; 0 is the whole map."""
    high, wide = (patch or side for side in x.shape[-2:])
    starts = [(top, left) for top in range(0, x.shape[-2], high) for left in range(0, x.shape[-1], wide)]
    return [x[..., top : top + high, left : left + wide] for top, left in starts]


@given(SIDES, SIDES, PATCHES, SEEDS)
def test_statistics_become_those_of_the_style(h: int, w: int, patch: int, seed: int) -> None:
    content, style = feature(seed, h, w), feature(seed + 1, h, w) * 3 + 2
    out = patch_adain(content, style, patch, eps=0.0)
    assert out.shape == style.shape
    for ours, wanted in zip(patches(out, patch), patches(style, patch), strict=True):
        assert_near(ours.mean((-2, -1)), wanted.mean((-2, -1)))
        if ours.shape[-2:] != (1, 1):
            assert_near(ours.std((-2, -1)), wanted.std((-2, -1)))


@given(SIDES, SIDES, PATCHES, SEEDS)
def test_each_patch_follows_the_equation(h: int, w: int, patch: int, seed: int) -> None:
    content, style = feature(seed, h, w), feature(seed + 1, h, w)
    out = patch_adain(content, style, patch)
    for ours, c, s in zip(*(patches(t, patch) for t in (out, content, style)), strict=True):
        if ours.shape[-2:] == (1, 1):
            assert torch.equal(ours, s)
            continue
        (c_std, c_mean), (s_std, s_mean) = (torch.std_mean(t, (-2, -1), keepdim=True) for t in (c, s))
        assert_near(ours, s_std * (c - c_mean) / (c_std + 1e-6) + s_mean)


@pytest.mark.parametrize(("h", "w", "patch"), [(16, 16, 4), (8, 24, 4), (6, 9, 3), (8, 8, 8)])
def test_published_formula_in_float32(h: int, w: int, patch: int) -> None:
    content, style = feature(0, h, w).float(), feature(1, h, w).float()

    def cells(x: Tensor) -> Tensor:
        return x.unfold(-2, patch, patch).unfold(-2, patch, patch).flatten(-2)

    c, s = cells(content), cells(style)
    c_mean, c_std = c.mean(-1, keepdim=True), c.std(-1, keepdim=True)
    expected = s.std(-1, keepdim=True) * (c - c_mean) / (c_std + 1e-6) + s.mean(-1, keepdim=True)
    # sums in another order: some float32 roundings of values up to 5
    torch.testing.assert_close(cells(patch_adain(content, style, patch)), expected, rtol=2e-6, atol=2e-6)


@given(SIDES, SIDES, PATCHES, SEEDS)
def test_a_map_in_its_own_style_stays(h: int, w: int, patch: int, seed: int) -> None:
    x = feature(seed, h, w)
    assert_near(patch_adain(x, x, patch, eps=0.0), x)


@given(SIDES, SIDES, PATCHES, SEEDS)
def test_twice_is_once(h: int, w: int, patch: int, seed: int) -> None:
    content, style = feature(seed, h, w), feature(seed + 1, h, w)
    once = patch_adain(content, style, patch, eps=0.0)
    assert_near(patch_adain(once, style, patch, eps=0.0), once)


@given(SIDES, SIDES, PATCHES, SEEDS, st.floats(0.01, 100), st.floats(-100, 100))
def test_contrast_and_brightness_of_the_content_vanish(
    h: int, w: int, patch: int, seed: int, contrast: float, brightness: float
) -> None:
    content, style = feature(seed, h, w), feature(seed + 1, h, w)
    plain = patch_adain(content, style, patch, eps=0.0)
    changed = patch_adain(content * contrast + brightness, style, patch, eps=0.0)
    # brightness 100 over contrast 0.01 costs four digits more
    torch.testing.assert_close(changed, plain, rtol=1e-7, atol=1e-7)


@given(SIDES, SIDES, st.integers(1, 6), SEEDS)
def test_patches_do_not_see_each_other(h: int, w: int, patch: int, seed: int) -> None:
    content, style = feature(seed, h, w), feature(seed + 1, h, w)
    changed = content.clone()
    changed[..., :patch, :patch] = feature(seed + 2, h, w)[..., :patch, :patch]
    same = patch_adain(content, style, patch) == patch_adain(changed, style, patch)
    same[..., :patch, :patch] = True
    assert same.all()


def test_by_hand() -> None:
    content, style = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[10.0, 16.0]]])
    assert patch_adain(content, style, 2).flatten().tolist() == pytest.approx([10.0, 16.0], abs=1e-5)
    assert patch_adain(-content, style, 0).flatten().tolist() == pytest.approx([16.0, 10.0], abs=1e-5)
    assert torch.equal(patch_adain(content, style, 1), style)


def test_constant_content_becomes_the_mean() -> None:
    style = feature(0, 4, 4)
    out = patch_adain(torch.full_like(style, 7.0), style, 4)
    assert_near(out, style.mean((-2, -1), keepdim=True).expand_as(out))


def test_negative_patch_is_refused() -> None:
    with pytest.raises(InputError, match="patch size -1"):
        patch_adain(feature(0, 4, 4), feature(1, 4, 4), -1)
