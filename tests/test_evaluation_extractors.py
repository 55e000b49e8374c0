"""Conventions against their definitions, and extractors that are files of the user."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anyi2v.errors import InputError
from anyi2v.evaluation.conventions import FRAME_CONVENTIONS, VIDEO_CONVENTIONS, Convention, find, prepare
from anyi2v.evaluation.extractors import checksum, frame_features, load_extractor, video_features


def noise(frames: int, height: int = 20, width: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def as_8_bit(video: Tensor) -> Tensor:
    return (video * 255).round() / 255


class Means(nn.Module):
    """Mean colours over all but batch and channels, like a pooled network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(2)


class Maps(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.float().mean((2, 3), keepdim=True)]


class Detector(nn.Module):
    """Takes what StyleGAN-V's detector takes."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert not rescale and not resize and return_features
        return x.flatten(2).mean(2)


def save(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(path)
    return path


@pytest.mark.parametrize("name", VIDEO_CONVENTIONS)
def test_video_conventions_are_what_they_are_named_after(name: str) -> None:
    video, convention = noise(18), VIDEO_CONVENTIONS[name]
    found = prepare(video, convention)
    if name == "as-is":
        assert torch.equal(found, video)
        return
    frames = as_8_bit(video)[: 16 if name == "cd-fvd" else 18]
    if name in ("google", "cd-fvd"):  # straight to the square
        expected = F.interpolate(frames, size=(224, 224), mode="bilinear", align_corners=False)
    else:  # 20 x 30 -> 224 x 336, and 56 pixels off either side
        expected = F.interpolate(frames, size=(224, 336), mode="bilinear", align_corners=False)[..., 56:280]
    assert torch.allclose(found, 2 * expected - 1, atol=1e-6)


def test_frame_conventions_are_what_they_are_named_after() -> None:
    video = noise(2)
    straight = F.interpolate(as_8_bit(video), size=(299, 299), mode="bilinear", align_corners=False)
    assert torch.allclose(prepare(video, FRAME_CONVENTIONS["pytorch-fid"]), straight, atol=1e-6)
    found = prepare(video, FRAME_CONVENTIONS["stylegan"])
    assert found.dtype == torch.uint8
    assert torch.equal(found, (video * 255).round().byte())
    assert torch.equal(prepare(video, FRAME_CONVENTIONS["as-is"]), video)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30))
def test_any_size_is_cut_to_the_square(height: int, width: int, size: int) -> None:
    frames = prepare(noise(1, height, width), Convention("x", size=size, crop=True))
    assert frames.shape == (1, 3, size, size)
    assert frames.min() >= 0 and frames.max() <= 1


@pytest.mark.parametrize(("name", "least"), [("styleganv", 10), ("videogpt", 10), ("cd-fvd", 16)])
def test_too_few_frames_are_named(name: str, least: int) -> None:
    with pytest.raises(InputError, match=f"convention '{name}' needs videos of {least} frames or more, .* has 9"):
        prepare(noise(9), VIDEO_CONVENTIONS[name])


def test_unknown_conventions_are_listed() -> None:
    assert find("google", VIDEO_CONVENTIONS).multiple == 16
    with pytest.raises(InputError, match="no convention 'fid'; it must be one of pytorch-fid, stylegan, as-is"):
        find("fid", FRAME_CONVENTIONS)


def test_features_of_frames_and_videos(tmp_path: Path) -> None:
    videos = {"a": noise(20), "b": noise(20, seed=1)}
    means = load_extractor(save(Means(), tmp_path / "means.pt"))
    held = frame_features(means, videos.items(), FRAME_CONVENTIONS["as-is"])
    expected = torch.cat([video.mean((2, 3)) for video in videos.values()])
    rows = torch.cat([chunk for _, chunk in held.chunks()])
    assert held.videos == 2 and len(held) == 40
    assert torch.allclose(rows, expected.double(), atol=1e-6)
    maps = frame_features(
        load_extractor(save(Maps(), tmp_path / "maps.pt")), videos.items(), FRAME_CONVENTIONS["as-is"]
    )
    assert torch.allclose(torch.cat([chunk for _, chunk in maps.chunks()]), rows, atol=1e-6)
    whole = video_features(means, videos.items(), VIDEO_CONVENTIONS["as-is"])
    assert len(whole) == whole.videos == 2
    assert torch.allclose(whole.take(torch.tensor([1]))[0], videos["b"].mean((0, 2, 3)).double(), atol=1e-6)


def test_options_of_a_convention_reach_the_network(tmp_path: Path) -> None:
    detector = load_extractor(save(Detector(), tmp_path / "detector.pt"))
    assert video_features(detector, {"a": noise(10)}.items(), VIDEO_CONVENTIONS["styleganv"]).width == 3
    with pytest.raises(InputError, match=r"video 'a': the extractor refuses torch.float32 \[1, 3, 10, 224, 224\]: "):
        video_features(detector, {"a": noise(10)}.items(), VIDEO_CONVENTIONS["videogpt"])
    means = load_extractor(save(Means(), tmp_path / "means.pt"))
    with pytest.raises(InputError, match=r"refuses .* with {'rescale': False, .*}: "):
        video_features(means, {"a": noise(10)}.items(), VIDEO_CONVENTIONS["styleganv"])


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(0, keepdim=True)


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "features"


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 0.0


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Pixels(), r"gives \[4, 3, 20, 30\] for \[4, 3, 20, 30\]; it must give \[n, features\]"),
        (One(), r"gives \[1, 1800\] for \[4, 3, 20, 30\]"),
        (Words(), "gives a str; it must give a tensor"),
        (Broken(), "gives NaN or infinite features"),
    ],
)
def test_extractors_that_give_something_else_are_named(tmp_path: Path, network: nn.Module, message: str) -> None:
    extractor = load_extractor(save(network, tmp_path / "x.pt"))
    with pytest.raises(InputError, match=f"video 'a': the extractor {message}"):
        frame_features(extractor, {"a": noise(4)}.items(), FRAME_CONVENTIONS["as-is"])


def test_files_that_are_no_extractor_are_named(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("weights.pt", "text.pt"):
        with pytest.raises(InputError, match=f"{name} is no TorchScript file; write one with torch.jit.trace"):
            load_extractor(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read extractor .*none\.pt: No such file"):
        load_extractor(tmp_path / "none.pt")
    assert len(checksum(tmp_path / "text.pt")) == 64
