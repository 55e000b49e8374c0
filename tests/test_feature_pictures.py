import numpy as np
import torch

from anyi2v.images.media import from_bytes
from anyi2v.reports.feature_pictures import BAR, GREY, attention_map, colour_bar, colours, heat, reduced, value_range


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_equal_features_have_equal_colours_in_all_frames() -> None:
    palette = rand(3, 9)
    which = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    picture = colours(palette[which]).movedim(1, -1)
    assert picture.shape == (4, 5, 6, 3)
    assert picture.min() >= 0 and picture.max() <= 1
    means = [picture[which == k].mean(0) for k in range(3)]
    for k in range(3):
        # float32 rounding of the projection
        torch.testing.assert_close(picture[which == k], means[k].expand_as(picture[which == k]), rtol=0, atol=1e-5)
        assert (means[k] - means[k - 1]).abs().max() > 0.1
    # three vectors differ in two directions; the third component is rounding
    assert (picture[..., 2] == 0.5).all()


def test_colours_know_no_scale_and_no_shift() -> None:
    x = rand(2, 4, 4, 7)
    # float32 rounding of numbers of order 10
    torch.testing.assert_close(colours(3 * x + 5), colours(x), rtol=0, atol=1e-4)


def test_constant_and_narrow_features_are_no_failure() -> None:
    assert colours(torch.ones(2, 3, 3, 5)).isfinite().all()
    assert colours(rand(2, 3, 3, 2)).isfinite().all()
    assert reduced(rand(2, 3, 4, 8), 5).shape == (2, 3, 4, 5)


def test_attention_maps_are_probabilities_averaged_over_heads() -> None:
    query, key = rand(3, 4, 5, 8), rand(1, 4, 5, 8) * 2
    maps = attention_map(query, key, 2)
    assert maps.shape == (3, 4, 5, 20)
    # float32 rounding of a sum of 20
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 4, 5), rtol=0, atol=1e-6)
    q, k = (x.unflatten(-1, (2, 4)) for x in (query, key.expand_as(query)))
    scores = torch.einsum("fyxnc,fhwnc->fnyxhw", q, k).flatten(-2) / 2
    torch.testing.assert_close(maps, scores.softmax(-1).mean(1), rtol=1e-5, atol=1e-6)


def test_heat_spans_the_valid_values_and_leaves_the_rest_grey() -> None:
    values = torch.tensor([[[-9.0, 1.0], [2.0, 3.0]]])
    valid = values > 0
    picture = heat(values, valid)
    assert (picture[0, :, 0, 0] == GREY).all()
    luminance = picture.mean(1)[0][valid[0]]
    assert luminance[0] < luminance[1] < luminance[2]
    # viridis' ends: dark violet and yellow
    torch.testing.assert_close(picture[0, :, 0, 1], torch.tensor([0.267, 0.005, 0.329]), rtol=0, atol=1e-3)
    assert heat(values, torch.zeros_like(valid)).eq(GREY).all()


def test_the_bar_is_the_scale_of_the_map() -> None:
    values, valid = rand(2, 3, 4), rand(2, 3, 4) > -0.5
    low, high = value_range(values, valid)
    shown = values[valid]
    assert (low, high) == (shown.min().item(), shown.max().item())
    assert value_range(values, torch.zeros_like(valid)) == (0, 1)
    picture = heat(values, valid).movedim(1, -1)
    bar = from_bytes(np.asarray(colour_bar(low, high, 112))).movedim(0, -1)
    assert bar.shape[0] == 112
    # 8 bit
    torch.testing.assert_close(bar[0, 0], picture[values == high][0], rtol=0, atol=1 / 255)
    torch.testing.assert_close(bar[-1, 0], picture[values == low][0], rtol=0, atol=1 / 255)
    ink = (bar[:, BAR:] < 0.5).all(-1).any(1)  # three values: at the top, in the middle, at the bottom
    assert ink[:12].any() and ink[50:62].any() and ink[-12:].any()
    assert not ink[20:45].any() and not ink[70:95].any()
    assert not np.array_equal(np.asarray(colour_bar(-1, 1, 112)), np.asarray(colour_bar(0, 1, 112)))
