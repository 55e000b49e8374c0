"""Reading videos for evaluation: what was written comes back, and what cannot be used is named on one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from anyi2v.errors import InputError
from anyi2v.evaluation.videos import Shape, check_names, find_videos, read_all, read_video, shape_of
from anyi2v.images.media import write_image
from anyi2v.images.video import write_video


def moving(frames: int = 5, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    """A smooth picture that moves, in 8-bit steps."""
    phase = torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 6
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    video = torch.stack([torch.stack([(3 * x + 2 * y + p + f / 4).sin() for p in phase]) for f in range(frames)])
    return ((video / 2 + 0.5) * 255).round() / 255


def write_frames(folder: Path, video: Tensor, first: int = 0) -> Path:
    for number, frame in enumerate(video, first):
        write_image(folder / f"{number}.png", frame)
    return folder


def test_arrays_and_frames_are_exact_and_compressed_videos_close(tmp_path: Path) -> None:
    video = moving(12)
    write_video(tmp_path / "a.npz", video, fps=8)
    write_frames(tmp_path / "frames", video, first=8)  # 8 to 19: in the order of numbers, not of letters
    assert torch.equal(read_video(tmp_path / "a.npz"), video)
    assert torch.equal(read_video(tmp_path / "frames"), video)
    for name, most in (("a.mp4", 0.1), ("a.gif", 0.02)):  # chroma at half the resolution; 256 colours per frame
        write_video(tmp_path / name, video, fps=8)
        read = read_video(tmp_path / name)
        assert read.dtype == torch.float32
        assert shape_of(read) == shape_of(video) == Shape(12, 24, 16)
        assert (read - video).abs().mean() < most


@pytest.mark.parametrize("fps", [8, 12.5, 24])
def test_frames_that_a_gif_has_merged_come_back(tmp_path: Path, fps: float) -> None:
    video = moving(4)[[0, 1, 1, 1, 2, 3, 3]]
    write_video(tmp_path / "a.gif", video, fps=fps)
    read = read_video(tmp_path / "a.gif")
    assert len(read) == 7
    assert torch.equal(read[1], read[3])
    assert not torch.equal(read[3], read[4])


def test_folders_are_searched_by_name(tmp_path: Path) -> None:
    video = moving()
    write_video(tmp_path / "b.mp4", video, fps=8)
    write_video(tmp_path / "a.npz", video, fps=8)
    write_frames(tmp_path / "c", video)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({}))
    write_video(tmp_path / "run" / "video.gif", video, fps=8)
    write_video(tmp_path / "run" / "side_by_side.mp4", video, fps=8)
    for name in ("jobs.jsonl", "report.html", ".hidden.mp4"):
        (tmp_path / name).touch()
    found = find_videos(tmp_path)
    assert list(found) == ["a", "b", "c", "run"]
    assert found["run"].name == "video.gif"
    write_video(tmp_path / "run" / "video.mp4", video, fps=8)
    assert find_videos(tmp_path)["run"].name == "video.mp4"
    assert [name for name, _ in read_all(found)] == ["a", "b", "c", "run"]
    assert [len(read) for _, read in read_all(found)] == [5] * 4


def test_folders_that_cannot_be_evaluated_are_named(tmp_path: Path) -> None:
    video = moving()

    def single(folder: Path) -> None:
        write_frames(folder, video)

    def run(folder: Path) -> None:
        (folder / "run").mkdir()
        (folder / "run" / "run.json").touch()

    def unfinished(folder: Path) -> None:
        (folder / "job").mkdir()

    def twice(folder: Path) -> None:
        for suffix in ("npz", "gif"):
            write_video(folder / f"a.{suffix}", video, fps=8)

    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "single": (single, "is a single video"),
        "empty": (lambda folder: None, "holds no video: no file of .mp4"),
        "run": (run, "is a run without video.mp4 or video.gif"),
        "unfinished": (unfinished, "holds neither frames nor a run"),
        "twice": (twice, "a.gif and a.npz are two videos of one name"),
    }
    for name, (make, message) in cases.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}.*{re.escape(message)}"):
            find_videos(tmp_path / name)
    with pytest.raises(InputError, match="missing is not a folder"):
        find_videos(tmp_path / "missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.index_fill(0, torch.tensor([2]), torch.nan), "frame 3 has NaN or infinite values"),
        (lambda v: v * 255, r"values are 0 to 255; they must lie in \[0, 1\]"),
        (lambda v: v[:0], "'video' is float32 .0, 3, 16, 24.; it must be float"),
        (lambda v: v[:, :1], "it must be float"),
        (lambda v: (v * 255).byte(), "'video' is uint8"),
        (lambda v: v.new_zeros(5000, 3, 1, 1), "has more than 4096 frames"),
    ],
)
def test_arrays_that_are_no_video_are_named(tmp_path: Path, change: Callable[[Tensor], Tensor], message: str) -> None:
    video = moving()
    video[0, 0, 0, 0], video[0, 0, 0, 1] = 0, 1
    np.savez(tmp_path / "bad.npz", video=change(video).numpy())
    with pytest.raises(InputError, match=f"bad.npz.*{message}"):
        read_video(tmp_path / "bad.npz")


def test_other_arrays_and_pickles_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", frames=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", video=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="has no array 'video', but 'frames'"):
        read_video(tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"cannot read video .*pickle\.npz"):
        read_video(tmp_path / "pickle.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    for suffix in ("mp4", "gif", "npz"):
        write_video(folder / f"a.{suffix}", moving(), fps=8)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".mp4", ".gif", ".npz"]), share=st.floats(0, 0.97))
def test_cut_files_end_in_one_line_or_are_whole_frames(
    tmp_path: Path, whole: dict[str, bytes], suffix: str, share: float
) -> None:
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[suffix][: int(share * len(whole[suffix]))])
    said, video = outcome(path)
    if video is None:
        assert str(path) in said
        assert len(said.splitlines()) == 1
    else:  # a GIF's frames before the cut cannot be told from a shorter GIF
        assert suffix == ".gif"
        assert video.isfinite().all() and 1 <= len(video) <= 5


def outcome(path: Path) -> tuple[str, Tensor | None]:
    """The error's text, or the video."""
    try:
        return "", read_video(path)
    except InputError as error:
        return str(error), None


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npz", ".avi", ".webm"])
def test_files_of_other_kinds_and_missing_ones_are_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"text{suffix}").write_text("no video")
    for name in (f"text{suffix}", f"missing{suffix}"):
        with pytest.raises(InputError, match=f"cannot read video .*{name}: ..*"):
            read_video(tmp_path / name)


def test_frames_and_sizes_must_agree(tmp_path: Path) -> None:
    write_frames(tmp_path / "mixed", moving())
    Image.new("RGB", (8, 8)).save(tmp_path / "mixed" / "9.png")
    with pytest.raises(InputError, match=r"frame .*9.png has 8x8 px, but 0.png has 24x16"):
        read_video(tmp_path / "mixed")
    videos = {}
    for name, video in (("a", moving()), ("b", moving(4)), ("c", moving(width=22))):
        videos[name] = tmp_path / f"{name}.npz"
        write_video(videos[name], video, fps=8)
    for other, shape in (("b", "4 frames of 24x16 px"), ("c", "5 frames of 22x16 px")):
        with pytest.raises(InputError, match=f"{other}.npz has {shape}, but .*a.npz 5 frames of 24x16 px"):
            list(read_all({name: videos[name] for name in ("a", other)}))
    with pytest.raises(InputError, match=r"a\.npz has 5 frames of 24x16 px, but others 9 frames"):
        list(read_all({"a": videos["a"]}, Shape(9, 24, 16)))


def test_names_without_partner_are_named() -> None:
    check_names({"a": 1, "b": 2}, {"b": 3, "a": 4}, "real")
    with pytest.raises(InputError, match="'b' is among the generated videos, but not in real: 2 generated, 1 in real"):
        check_names({"a": 1, "b": 2}, {"a": 3}, "real")
    with pytest.raises(InputError, match="'c' is among real, but not in the generated videos"):
        check_names({"a": 1}, {"a": 3, "c": 4}, "real")
