"""Movements of the camera as tiles of the frame."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyi2v.errors import InputError
from anyi2v.method.boxes import make_crops
from tests.trackfiles import ours


@given(
    st.floats(-300, 300),
    st.floats(-300, 300),
    st.floats(0.2, 5),
    st.floats(-1, 1),
    st.integers(1, 900),
    st.integers(1, 900),
)
def test_tiles_cover_the_frame_and_end_where_the_camera_sees_them(
    dx: float, dy: float, zoom: float, strength: float, width: int, height: int
) -> None:
    camera = {"pan": [dx, dy], "zoom": zoom, "strength": strength}
    tiles = ours(width=width, height=height, camera=camera).objects
    assert sum(track.mask.sum() for track in tiles if track.mask is not None) == 64 * 64
    z = zoom**strength
    for track in tiles:
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = track.boxes
        for a, b, middle, pan in (
            *((a, b, width / 2, dx) for a, b in ((ax0, bx0), (ax1, bx1))),
            *((a, b, height / 2, dy) for a, b in ((ay0, by0), (ay1, by1))),
        ):
            # roundings at 5000 pixels
            assert math.isclose(b, middle + (a - middle) * z - pan * strength, abs_tol=1e-8)


def test_nothing_to_do_holds_the_camera_still() -> None:
    for track in ours(camera={}).objects:
        assert track.boxes[0] == track.boxes[1]


def test_other_objects_are_left_out_and_the_method_takes_it() -> None:
    box = [0, 0, 50, 50]
    tracks = ours({"boxes": [box, [20, 20, 70, 70]]}, camera={"pan": [10, 0]})
    # the object fills the first quarter
    assert [track.name for track in tracks.objects] == [
        "o1",
        "camera/top-right",
        "camera/bottom-left",
        "camera/bottom-right",
    ]
    crops = make_crops(tracks.resample(3), (16, 16), 3)
    assert crops.has_given.tolist() == [False, True, True, True]
    tracks = ours({"box": [20, 20, 70, 70]}, camera={})
    together = np.any([track.mask for track in tracks.objects[1:] if track.mask is not None], axis=0)
    rows, cols = np.nonzero(~together)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (12, 44, 12, 44)
    for track in tracks.objects[1:]:
        assert track.points and track.mask is not None
        assert all(track.mask[int(y * 0.64), int(x * 0.64)] for x, y in track.points)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (3, "camera must be an object"),
        ({"tilt": 3}, "camera: key 'tilt' is not known here"),
        ({"pan": 3}, "camera: pan is 3; it must be 2 numbers"),
        ({"pan": [math.inf, 0]}, "camera: pan is inf; it must be finite"),
        ({"zoom": 0}, "camera: zoom 0 at strength 1 is not possible; zoom must be 0.1 to 10"),
        ({"zoom": math.nan}, "camera: zoom nan"),
        ({"zoom": "2"}, "camera: zoom must be a number, not '2'"),
        ({"zoom": 2, "strength": 5}, "camera: the zoom with its strength is 32; it must be 0.1 to 10"),
        ({"strength": 11}, "strength -10 to 10"),
    ],
)
def test_messages_name_the_key(camera: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ours(camera=camera)


def test_a_full_frame_leaves_nothing_to_move() -> None:
    with pytest.raises(InputError, match="cover the whole frame"):
        ours({"box": [0, 0, 100, 100]}, camera={})
