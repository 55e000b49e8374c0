import os
import re
import warnings
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from torch import Tensor

from anyi2v.errors import AnyI2VWarning, InputError, NumericsError, ResourceError
from anyi2v.images.fit import plan
from anyi2v.images.media import (
    check_image,
    check_tracks,
    from_bytes,
    load_image,
    load_placed,
    magnify,
    to_bytes,
    write_image,
)
from anyi2v.images.video import VIDEO_SUFFIXES, write_video
from anyi2v.tracks import Track, Tracks, save_tracks


def smooth_video(frames: int = 6, height: int = 32, width: int = 48) -> Tensor:
    """A blob that moves over a gradient."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    blobs = [torch.exp(-20 * ((x - 0.2 - 0.1 * j) ** 2 + (y - 0.5) ** 2)) for j in range(frames)]
    return torch.stack([torch.stack([blob, x * 0.5, y * 0.5]) for blob in blobs])


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def picture(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)


def test_rgb_is_exact(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", picture()))
    assert image.dtype == torch.float32
    assert torch.equal(image, as_image(picture()))


def test_grey_palette_and_bilevel(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    expected = as_image(np.repeat(grey[..., None], 3, 2))
    assert torch.equal(load_image(save(tmp_path / "g.png", grey)), expected)
    # 35 pixels fit into a palette of 256 colours
    indexed = Image.fromarray(picture()).quantize(256)
    indexed.save(tmp_path / "p.png")
    assert torch.equal(load_image(tmp_path / "p.png"), as_image(np.asarray(indexed.convert("RGB"))))
    bits = load_image(save(tmp_path / "b.png", grey > 127))
    assert torch.equal(bits, as_image(np.repeat((grey > 127)[..., None] * np.uint8(255), 3, 2)))


def test_16_bit_grey_keeps_its_precision_and_range(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
    image = load_image(save(tmp_path / "d.png", values))
    assert torch.equal(image, torch.from_numpy(values.astype(np.float32) / 65535).expand(3, -1, -1))


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)  # black strokes
    rgba[0, :, 3] = (0, 51, 255)
    image = load_image(save(tmp_path / "s.png", rgba))
    # 1 - 51 / 255, rounded once
    assert torch.allclose(image, torch.tensor([1.0, 0.8, 0.0]).expand(3, 1, 3), atol=1e-6)
    indexed = Image.new("P", (2, 1), 0)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "p.png", transparency=0)
    assert torch.equal(load_image(tmp_path / "p.png")[:, 0], torch.tensor([[1.0, 1], [1, 0], [1, 0]]))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = save(tmp_path / "r.png", picture(), exif=exif)
    assert torch.equal(load_image(path), as_image(picture()).rot90(-1, (1, 2)))


def test_cmyk_and_animations(tmp_path: Path) -> None:
    assert load_image(save(tmp_path / "c.jpg", picture(), "CMYK")).shape == (3, 5, 7)
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert torch.equal(load_image(tmp_path / "a.gif")[:, 0, 0], torch.tensor([1.0, 0, 0]))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    whole = save(tmp_path / "whole.png", picture(200, 200)).read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    deep = tmp_path / "deep.tiff"
    Image.fromarray(np.full((2, 2), 7e4, dtype=np.float32)).save(deep)
    wide = tmp_path / "wide.tiff"
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(wide)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (8193, 8192)).save(bomb)
    for path, reason in (
        (bomb, "has 8193x8192 px; at most 67108864 in all are read"),
        (text, "is not a readable image; use PNG or JPEG"),
        (cut, "truncated"),
        (deep, "has float values"),
        (wide, "has more than 16 bit"),
        (tmp_path / "absent.png", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{reason}"):
            load_image(path)


def millimetres(path: Path) -> Path:
    """A depth map of 0.8 to 3.6 m, as cameras write them."""
    return save(path, np.array([[800, 2200], [3600, 800]], dtype=np.uint16))


def test_a_small_range_is_named_and_stretched_on_request(tmp_path: Path) -> None:
    path = millimetres(tmp_path / "depth.png")
    with pytest.warns(
        AnyI2VWarning, match=r"depth\.png only has values from 3 to 14 of 255.*--stretch, or stretch=True"
    ):
        plain = load_image(path)
    assert plain.max() < 0.06
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stretched = load_image(path, stretch=True)
        # 2200 / 65535 is rounded
        assert torch.allclose(stretched, torch.tensor([[0, 0.5], [1, 0]]).expand(3, 2, 2), atol=1e-6)
        assert stretched.aminmax() == (0, 1)
        load_image(save(tmp_path / "full.png", picture()))
        load_image(save(tmp_path / "flat.png", np.full((2, 2), 9, dtype=np.uint8)))


def test_stretching_is_one_map_for_all_channels_and_what_is_not_transparent(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [50, 60, 110, 255], [0, 0, 255, 0]]], dtype=np.uint8)
    found = load_image(save(tmp_path / "a.png", rgba), stretch=True)
    expected = [[0, 0.4, 1], [0.1, 0.5, 1], [0.2, 1, 1]]
    assert torch.allclose(found[:, 0], torch.tensor(expected), atol=1e-6)
    assert found[:, 0, :2].aminmax() == (0, 1)
    # dark strokes on nothing have all of the range once there is paper
    strokes = np.zeros((1, 2, 4), dtype=np.uint8)
    strokes[0, 1] = (9, 9, 9, 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(save(tmp_path / "s.png", strokes))


def test_float_values_and_more_than_16_bit_can_be_stretched(tmp_path: Path) -> None:
    floats, ints = np.array([[0.5, 4.5, 2.5]], dtype=np.float32), np.array([[10**6, 9 * 10**6, 5 * 10**6]])
    for values in (floats, ints.astype(np.int32)):
        path = save(tmp_path / "a.tiff", values)
        assert load_image(path, stretch=True)[0, 0].tolist() == pytest.approx([0, 1, 0.5], abs=1e-6)
        with pytest.raises(InputError, match=r"or stretch it \(--stretch\)"):
            load_image(path)
    far = save(tmp_path / "far.tiff", np.array([[-3e38, 3e38, 0]], dtype=np.float32))
    assert load_image(far, stretch=True)[0, 0].tolist() == [0, 1, 0.5]
    for values, message in (
        (np.array([[0.5, np.inf]], dtype=np.float32), "has NaN or infinite values, so it cannot be stretched"),
        (np.array([[7, 7]], dtype=np.uint8), "has one value everywhere, so it cannot be stretched"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(save(tmp_path / "b.tiff", values), stretch=True)


def test_tracks_are_placed_as_the_image_is(tmp_path: Path) -> None:
    save_tracks(tmp_path / "t.json", Tracks(200, 100, (Track("a", ((75, 25, 100, 50),)),)))
    placed = load_placed(tmp_path / "t.json", plan((200, 100), 64, 64))
    assert placed.objects[0].boxes == ((16, 16, 32, 32),)
    assert load_placed(None, plan((200, 100), 64, 32)) == Tracks(64, 32)
    placed = load_placed(tmp_path / "t.json", plan((200, 100), 64, 64, "pad"))
    assert placed.objects[0].boxes == ((24, 24, 32, 32),)


def test_an_object_that_is_cropped_away_names_the_file(tmp_path: Path) -> None:
    save_tracks(tmp_path / "t.json", Tracks(200, 100, (Track("a", ((0, 0, 40, 40),)),)))
    with pytest.raises(
        InputError, match=r"t.json: object 1 \('a'\), frame 1: .* lies outside.*image was cropped: part .*; padding"
    ):
        load_placed(tmp_path / "t.json", plan((200, 100), 64, 64))


def test_paper_is_what_transparent_parts_become(tmp_path: Path) -> None:
    rgba = np.full((1, 2, 4), 255, dtype=np.uint8)
    rgba[0, 0, 3] = 0
    assert load_image(save(tmp_path / "m.png", rgba), paper=0.0)[:, 0].tolist() == [[0, 1]] * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # what EXIF says of the stored rows and columns: mirrored, turned by quarters, or both
    turns, mirrored = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    expected = as_image(picture()).rot90(turns, (1, 2))
    path = save(tmp_path / "r.png", picture(), exif=exif)
    assert torch.equal(load_image(path), expected.flip(2) if mirrored else expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16"])
def test_white_stays_white_and_black_black_in_every_mode(tmp_path: Path, mode: str) -> None:
    grey = np.array([[255, 0, 255]], dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    if mode not in ("L", "LA", "PA", "I;16"):
        image = image.convert("RGB")
    # Pillow 12 cannot read its own YCbCr TIFF files
    suffix = "jpg" if mode == "YCbCr" else "tiff" if mode in ("PA", "RGBX", "CMYK", "LAB") else "png"
    path = tmp_path / f"a.{suffix}"
    image.convert(mode).save(path, quality=100, subsampling=0)
    with Image.open(path) as file:
        assert file.mode in (mode, "RGB")
    # conversions of colour spaces round
    assert torch.allclose(load_image(path), as_image(np.repeat(grey[..., None], 3, 2)), atol=2 / 255)


def test_the_images_size_goes_to_files_that_do_not_say_it(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[[75, 25], [100, 50], [80, 30], [105, 30]]]))
    tracks = load_placed(tmp_path / "t.npy", plan((200, 100), 64, 64))
    assert tracks == Tracks(64, 64, (Track("object 1", ((16, 16, 32, 32), (32, 16, 48, 32))),))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(4, 8, 8), r"shape \(4, 8, 8\); it must be \[3, height, width\]"),
        (torch.rand(1, 8, 8), r"shape \(1, 8, 8\)"),
        (torch.rand(8, 8), r"shape \(8, 8\)"),
        (torch.rand(3, 0, 8), r"shape \(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8; it must be float"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.full((3, 8, 8), 255.0), "values are 255 to 255; they must lie in"),
    ],
)
def test_unusable_image_tensors(image: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_image(image)
    check_image(torch.rand(3, 8, 8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("a.png", r"the image is a path; load it with anyi2v\.load_image\(path\)"),
        (Path("a.png"), "the image is a path"),
        (Image.new("RGB", (4, 4)), r"a PIL image; .* or use anyi2v\.images\.media\.from_bytes\(numpy\.asarray"),
        (np.zeros((4, 4, 3), dtype=np.uint8), r"a NumPy array; .* use anyi2v\.images\.media\.from_bytes\(array"),
        (None, "the image is a NoneType; it must be a float tensor"),
    ],
)
def test_images_that_are_no_tensors_say_how_to_load_them(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_image(image)


@pytest.mark.parametrize("tracks", ["t.json", Path("t.json"), {"width": 9}, [[1, 2]], Track("a", ((1, 1, 2, 2),))])
def test_tracks_that_are_none_say_how_to_load_them(tracks: Any) -> None:
    name = type(tracks).__name__
    with pytest.raises(InputError, match=rf"tracks is a {name}, not Tracks; load a file with anyi2v\.load_tracks"):
        check_tracks(tracks, torch.rand(3, 8, 8))


def test_no_tracks_are_no_objects_and_nothing_is_said_about_them() -> None:
    image = torch.rand(3, 8, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_tracks(None, image) == check_tracks(Tracks(12, 8), image) == Tracks(12, 8)


def test_a_first_box_with_nothing_in_it_is_named() -> None:
    image = torch.zeros(3, 32, 32)
    image[:, 4:12, 4:12] = 1
    good, bad = (Track(name, ((x, 4, x + 10, 14), (x, 14, x + 10, 24))) for name, x in (("good", 3), ("bad", 20)))
    with pytest.warns(AnyI2VWarning, match=r"object 'bad': its first box \(20, 4, 30, 14\) shows nothing") as caught:
        check_tracks(Tracks(32, 32, (good, bad)), image)
    assert len(caught) == 1


@given(st.binary(min_size=12, max_size=12))
def test_bytes_round_trip(data: bytes) -> None:
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(to_bytes(from_bytes(pixels)), pixels)


def test_to_bytes_rounds_and_clips() -> None:
    values = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_bytes(values)[:, 0, 0, 0].tolist() == [0, 0, 1, 255]


def test_magnify_repeats_pixels() -> None:
    image = torch.arange(6.0).view(1, 2, 3).expand(3, 2, 3)
    assert magnify(image, 2)[0].tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


def test_png_round_trips_exactly(tmp_path: Path) -> None:
    image = as_image(picture())
    write_image(tmp_path / "a.png", image)
    assert torch.equal(load_image(tmp_path / "a.png"), image)
    write_image(tmp_path / "b.png", picture())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_npz_round_trips_exactly(tmp_path: Path) -> None:
    video = torch.rand(3, 3, 4, 6)
    write_video(tmp_path / "a.npz", video, fps=12.5)
    with np.load(tmp_path / "a.npz") as file:
        assert torch.equal(torch.from_numpy(file["video"]), video)
        assert file["fps"] == 12.5


def test_gif_of_few_colours_round_trips_exactly(tmp_path: Path) -> None:
    video = (smooth_video() * 5).round() / 5  # at most 216 colours
    write_video(tmp_path / "a.gif", video, fps=8, enlarge=2)
    with Image.open(tmp_path / "a.gif") as file:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        assert file.info["loop"] == 0
        assert file.info["duration"] == pytest.approx(125, abs=5)  # GIF counts in 10 ms
    assert np.array_equal(np.stack(frames), to_bytes(magnify(video, 2)))


def test_png_strip_holds_the_frames_side_by_side(tmp_path: Path) -> None:
    video = smooth_video(3, 8, 8)
    write_video(tmp_path / "a.png", video, fps=8)
    strip = load_image(tmp_path / "a.png")
    assert torch.equal(strip, from_bytes(np.concatenate(list(to_bytes(video)), axis=1)))


def test_mp4_comes_close_and_has_all_frames(tmp_path: Path) -> None:
    video = smooth_video()
    write_video(tmp_path / "a.mp4", video, fps=8, enlarge=4)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    facts = next(reader)
    assert isinstance(facts, dict)
    assert facts["fps"] == 8
    assert facts["size"] == (192, 128)
    assert facts["pix_fmt"].startswith("yuv420p")
    frames = np.stack([np.frombuffer(bytes(frame), np.uint8).reshape(128, 192, 3) for frame in reader])  # pyright: ignore[reportArgumentType]
    expected = to_bytes(magnify(video, 4))
    assert frames.shape == expected.shape
    # measured 1.0: 8-bit YUV rounding, halved chroma, crf 15
    assert np.abs(frames.astype(float) - expected).mean() < 2.5


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_equal_frames_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for file in files:
        write_video(file, smooth_video(), fps=8)
    assert files[0].read_bytes() == files[1].read_bytes()
    write_video(files[1], smooth_video().flip(0), fps=8)
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.parametrize("program", ["/nonexistent/ffmpeg", "without libx264", "half a file"])
def test_an_ffmpeg_that_cannot_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    if not program.startswith("/"):
        script = tmp_path / "bin" / "ffmpeg"
        script.parent.mkdir()
        real = imageio_ffmpeg.get_ffmpeg_exe()
        last = "Unknown encoder 'libx264'"
        # one lacks the encoder; the other writes, loses the file's end as on a full disk, and has a code that none asks
        job = f'"{real}" "$@"; for f; do :; done; head -c -9 "$f" > "$f.2"; mv "$f.2" "$f"'
        script.write_text(
            "#!/bin/sh\n" + (f'echo "{last}" >&2; exit 1' if program.startswith("without") else job) + "\n"
        )
        script.chmod(0o755)
        program = str(script)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    with pytest.raises(ResourceError, match=r"^cannot write .*a\.mp4: ffmpeg cannot write an mp4: ") as caught:
        write_video(tmp_path / "a.mp4", smooth_video(), fps=8)
    assert "a .gif needs none" in str(caught.value)
    assert not list(tmp_path.glob("*.mp4")) and not list(tmp_path.glob(".anyi2v-*"))
    write_video(tmp_path / "a.gif", smooth_video(), fps=8)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_failure_leaves_the_former_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    broken = smooth_video()
    broken[3, 1, 2, 5] = float("nan")
    with pytest.raises(NumericsError, match=r"frame 4 has NaN or infinite values; nothing was written"):
        write_video(path, broken, fps=8)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match=rf"cannot write .*a\{suffix}: No space left on device"):
        write_video(path, smooth_video(), fps=8)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("a.avi", (2, 3, 8, 8), {}, r"suffix '.avi' is none of .mp4, .gif, .npz, .png"),
        ("a.mp4", (2, 3, 7, 8), {}, r"cannot have 8x7 pixels: both must be even; use enlarge=2"),
        ("a.gif", (0, 3, 8, 8), {}, "no frames"),
        ("a.gif", (2, 3, 8, 8), {"fps": 0}, r"fps=0 is not allowed"),
        ("a.gif", (2, 3, 8, 8), {"enlarge": 0}, r"enlarge=0 is not allowed"),
    ],
)
def test_unusable_requests(
    tmp_path: Path, name: str, shape: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_video(tmp_path / name, torch.rand(shape), **{"fps": 8, **options})
    assert not list(tmp_path.iterdir())
