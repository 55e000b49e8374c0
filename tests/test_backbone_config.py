import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.backbone.config import BackboneConfig, UNetConfig
from anyi2v.errors import InputError

SD = BackboneConfig(name="a")
EVEN = replace(SD, unet=UNetConfig(even_grids=True))


def test_multiples() -> None:
    assert SD.multiple == 8  # the VAE's
    assert EVEN.multiple == 64  # times three halvings in the UNet


@given(st.sampled_from([SD, EVEN]), st.integers(-100, 2000), st.integers(-100, 2000))
def test_a_size_is_possible_or_the_nearest_ones_are_named(config: BackboneConfig, width: int, height: int) -> None:
    n = config.multiple
    if width > 0 and height > 0 and width % n == height % n == 0:
        config.check_size(width, height)
        return
    with pytest.raises(InputError, match=rf"{width}x{height} px; both must be multiples of {n} on") as caught:
        config.check_size(width, height)
    sizes = re.findall(r"(\d+)x(\d+)", str(caught.value).split("nearest:")[1])
    assert 1 <= len(set(sizes)) == len(sizes) <= 2
    for w, h in ((int(w), int(h)) for w, h in sizes):
        config.check_size(w, h)
        for named, asked in ((w, width), (h, height)):
            assert abs(named - asked) < n or (named == n and asked < n)
