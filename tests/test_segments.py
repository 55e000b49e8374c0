"""Segments of a condition image, in Python and on the command line."""

from pathlib import Path

import pytest
import torch

from anyi2v import cli
from anyi2v.checkpoints.checkpoint import load, save
from anyi2v.errors import InputError
from anyi2v.images.media import load_image, write_image
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.micro.world.world import object_masks
from anyi2v.segments import segment_tracks, segments
from anyi2v.tracks import load_tracks

from .networks import SHORT, tiny_backbone

BACKBONE = tiny_backbone()
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("clusters", [2, 5])
def test_every_pixel_has_a_segment_and_the_largest_comes_first(clusters: int) -> None:
    labels = segments(BACKBONE, IMAGE, "a red ball", clusters=clusters, config=SHORT)
    assert labels.shape == (16, 16)
    sizes = labels.flatten().bincount(minlength=clusters).tolist()
    assert len(sizes) == clusters and sizes == sorted(sizes, reverse=True)
    assert torch.equal(labels, segments(BACKBONE, IMAGE, "a red ball", clusters=clusters, config=SHORT))


def test_impossible_wishes_are_refused() -> None:
    for clusters in (1, 257):
        with pytest.raises(InputError, match=f"{clusters} segments? requested; choose 2 to 256"):
            segments(BACKBONE, IMAGE, clusters=clusters, config=SHORT)


def test_tracks_hold_each_segment_with_its_box() -> None:
    labels = torch.zeros(6, 8, dtype=torch.long)
    labels[1:3, 4:7] = 1
    tracks = segment_tracks(labels)
    assert [track.name for track in tracks.objects] == ["segment 1", "segment 2"]
    assert tracks.objects[1].boxes == ((4.0, 1.0, 7.0, 3.0),)
    mask = tracks.objects[1].mask
    assert mask is not None and torch.equal(torch.from_numpy(mask.copy()), labels == 1)


def test_an_object_on_plain_ground_is_a_segment() -> None:
    case = make_case(1003, "photo")
    labels = segments(load("micro"), case.image, case.prompt, clusters=3)
    truth = object_masks(case.scene)[0][0].bool()
    overlap = [((labels == k) & truth).sum() / ((labels == k) | truth).sum() for k in range(3)]
    assert max(overlap) > 0.3  # measured 0.34: queries know the object and what is close to it
    (best,) = [k for k in range(3) if overlap[k] == max(overlap)]
    assert ((labels == best) & truth).sum() > 0.9 * truth.sum()


def test_the_command_writes_a_picture_and_tracks_that_animate_takes(tmp_path: Path) -> None:
    save(BACKBONE, tmp_path / "tiny.safetensors")
    write_image(tmp_path / "image.png", IMAGE)
    command = ["segments", str(tmp_path / "image.png"), "--backbone", str(tmp_path / "tiny.safetensors")]
    assert cli.main([*command, "--out", str(tmp_path / "s.png"), "--clusters", "3"]) == 0
    assert load_image(tmp_path / "s.png").shape[0] == 3
    tracks = load_tracks(tmp_path / "s.json")
    assert len(tracks.objects) == 3 and all(track.mask is not None for track in tracks.objects)
    assert cli.main([*command, "--out", str(tmp_path / "s.jpg")]) == 2
