"""Points in NumPy's files: whose axes are which, and that nothing is read that nobody needs."""

import io
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyi2v.errors import AnyI2VWarning, InputError
from anyi2v.tracks import Tracks, load_tracks, read_tracks
from anyi2v.tracks.stored import Stored
from tests.trackfiles import SG_I2V, SIZE, npy, npz, tapnet


def load(folder: Path, content: bytes, **hints: Any) -> Tracks:
    (folder / "file").write_bytes(content)
    return load_tracks(folder / "file", size=SIZE, **hints)


@pytest.mark.parametrize(
    "arrays",
    [
        tapnet(),
        tapnet(tracks=tapnet()["tracks"][None], visibles=np.ones((1, 3, 24), dtype=bool)),
        tapnet(visibles=np.full((3, 24), 0.8)),
        {"tracks": tapnet()["tracks"], "occluded": np.zeros((3, 24), dtype=bool)},
        {"target_points": tapnet()["tracks"][None], "occluded": np.zeros((1, 3, 24), dtype=bool)},
        {"points": tapnet()["tracks"] / np.array(SIZE), "occluded": np.zeros((3, 24), dtype=bool)},
        # CoTracker's names for the same points have the axes the other way round
        {"tracks": tapnet()["tracks"].swapaxes(0, 1), "visibility": np.ones((24, 3), dtype=bool)},
        {"pred_tracks": tapnet()["tracks"].swapaxes(0, 1)[None]},
    ],
)
def test_the_name_of_the_array_says_which_axis_is_which(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    found = load(tmp_path, npz(**arrays), box_size=(2, 2)).objects
    assert [len(track.boxes) for track in found] == [24] * 3
    np.testing.assert_allclose([box[0] + 1 for box in found[0].boxes], 50 + 10 * np.arange(24))
    assert [track.boxes[5][1] for track in found] == pytest.approx([39, 69, 99])


def test_as_many_points_as_frames_are_told_apart_by_the_name(tmp_path: Path) -> None:
    tracks = np.arange(18.0).reshape(3, 3, 2) + 20
    seen = np.ones((3, 3), dtype=bool)
    theirs, tapnets = (load(tmp_path, npz(tracks=tracks, **{key: seen})) for key in ("visibility", "visibles"))
    assert [track.boxes[1] for track in theirs.objects] == [theirs.objects[k].boxes[1] for k in range(3)]
    assert tapnets.objects[0].boxes[1] == theirs.objects[1].boxes[0] != theirs.objects[0].boxes[1]


def test_hidden_in_tapnets_axes_too(tmp_path: Path) -> None:
    hidden = np.zeros((3, 24), dtype=bool)
    hidden[0, 1:5] = hidden[2] = True
    tracks = tapnet()["tracks"].copy()
    tracks[0, 1:5] = 9999
    with pytest.warns(AnyI2VWarning, match="1 of 3 points are never visible and were left out: 3"):
        found = load(tmp_path, npz(tracks=tracks, visibles=~hidden), box_size=(2, 2))
    assert [track.name for track in found.objects] == ["point 1", "point 2"]
    np.testing.assert_allclose([box[0] + 1 for box in found.objects[0].boxes], 50 + 10 * np.arange(24))


TRANSPOSED = np.ones((3, 24), dtype=bool)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"tracks": np.zeros((24, 3, 2)), "visibility": TRANSPOSED},
            "visibility has shape (3, 24) of bool; it must be [24, 3], [frames, points] like the tracks; its axes",
        ),
        ({"tracks": np.zeros((24, 3, 2)), "visibility": np.ones(72)}, "visibility has shape (72,) of float64; it must"),
        (
            tapnet(visibles=TRANSPOSED.T),
            "visibles has shape (24, 3) of bool; it must be [3, 24], [points, frames] like the tracks; its axes",
        ),
        (
            tapnet(visibility=TRANSPOSED),
            "it has 'visibility', which is CoTracker's, [frames, points], and 'visibles'",
        ),
        (
            {"points": np.full((3, 24, 2), 200.0), "occluded": ~TRANSPOSED},
            "points has values up to 200; it must be in fractions of the frame, 0 to 1; for pixels, name the array ",
        ),
        ({"tracks": np.zeros((3, 24, 2)), "occluded": np.zeros((3, 24))}, "occluded has shape (3, 24) of float64; it"),
    ],
)
def test_arrays_that_contradict_each_other_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path, npz(**arrays))


def test_cotrackers_points_in_a_npy_are_read_with_four_axes_and_no_sg_i2v_with_three(tmp_path: Path) -> None:
    points = tapnet()["tracks"].swapaxes(0, 1)
    (tmp_path / "t.npy").write_bytes(npy(points[None]))
    kind, found = read_tracks(tmp_path / "t.npy", size=SIZE, box_size=(2, 2))
    assert kind == "CoTracker .npy" and len(found.objects) == 3
    np.testing.assert_allclose([box[0] + 1 for box in found.objects[0].boxes], 50 + 10 * np.arange(24))
    with pytest.raises(
        InputError, match=r"not the upper left and lower right.*four axes, \[1, frames, points, 2\], or by np"
    ):
        load(tmp_path, npy(points))
    odd = np.array(SG_I2V, dtype=float)
    odd[0, 2:] += 500
    with pytest.warns(AnyI2VWarning, match=r"object 1: its path starts at \(650, 710\), outside of its box.*CoTracker"):
        assert len(load(tmp_path, npy(odd)).objects) == 1


def header(shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file of float64 without any data."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_arrays_that_nobody_needs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    original = Stored.read

    def watched(self: Stored) -> np.ndarray:
        read.append(self.shape)
        return original(self)

    monkeypatch.setattr(Stored, "read", watched)
    # the video claims to be 8 TB, of which there is nothing
    video = header((10**4, 10**4, 10**4))
    path = archive(tmp_path / "t.npz", tracks=npy(np.full((4, 2, 2), 9.0)), video=video, query=video)
    assert len(load_tracks(path, size=SIZE).objects) == 2
    assert read == [(4, 2, 2)]


@pytest.mark.parametrize("shape", [(10**6, 10**6, 2), (10_001, 1, 2), (10_000, 101, 2), (2**62, 2**62, 2)])
def test_the_header_alone_refuses_what_is_too_large(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for content in ({"tracks": header(shape)}, {"tracks": header((1, *shape))}):
        with pytest.raises(InputError, match=r"the file has \d+ tracks of"):
            load_tracks(archive(tmp_path / "t.npz", **content), size=SIZE)
    for name, shapes in (("sg.npy", shape), ("co.npy", (1, *shape))):
        (tmp_path / name).write_bytes(header(shapes))
        with pytest.raises(InputError, match=r"the file has \d+ tracks of|must be \[objects, 2 \+ frames, 2\]"):
            load_tracks(tmp_path / name, size=SIZE)
    # flags beside tracks of a good size
    flags = {"tracks": npy(np.ones((4, 2, 2))), "visibility": header(shape[:2])}
    with pytest.raises(InputError, match=r"visibility has shape .* it must be \[4, 2\]"):
        load_tracks(archive(tmp_path / "t.npz", **flags), size=SIZE)


@pytest.mark.parametrize(
    "content",
    [
        b'{"width": 9, "height": 9, "objects": []}',
        b"[]",
        b"[[], []]",
        npz(tracks=np.ones((4, 2, 2)), visibility=np.zeros((4, 2), dtype=bool)),
        npy(np.zeros((0, 5, 2))),
    ],
)
def test_a_file_without_objects_that_can_be_followed_says_so(tmp_path: Path, content: bytes) -> None:
    with pytest.warns(AnyI2VWarning, match="file has no objects to follow, so the motion is not controlled"):
        assert load(tmp_path, content).objects == ()


def test_the_record_of_a_run_without_tracks_is_repeated_silently(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load(tmp_path, b'{"prompt": "", "tracks": {"width": 9, "height": 9, "objects": []}}').objects
