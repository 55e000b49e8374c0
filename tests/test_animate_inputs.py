"""What `animate` takes for an image and for tracks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyi2v.errors import AnyI2VWarning
from anyi2v.job import Result
from anyi2v.pipeline import animate
from anyi2v.tracks import Track, Tracks
from tests.networks import SHORT, tiny_backbone

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs


def picture() -> torch.Tensor:
    image = torch.zeros(3, 16, 16)
    image[0, 2:8, 2:8] = 1
    return image


def run(tracks: Any, image: Any = None, config: Any = SHORT, **parts: Any) -> Result:
    image = picture() if image is None else image
    return animate(tiny_backbone(), image, "a red ball", tracks, config=config, **parts)


def pair(*weights: float) -> Tracks:
    """Two objects that contend for the same cells."""
    boxes = ((1, 1, 9, 9), (6, 1, 14, 9)), ((2, 2, 10, 10), (2, 2, 10, 10))
    names = ("moves", "stays")
    return Tracks(16, 16, tuple(Track(n, b, weight=w) for n, b, w in zip(names, boxes, weights, strict=True)))


@pytest.mark.filterwarnings("error")
def test_no_tracks_are_free_motion() -> None:
    assert torch.equal(run(None).video, run(Tracks(16, 16)).video)


def test_weights_of_1_give_the_same_bytes_and_others_another_video() -> None:
    plain = run(pair(1, 1))
    assert torch.equal(plain.video, run(pair(1.0, 1)).video)
    other = run(pair(1, 9))
    assert not torch.equal(plain.video, other.video)
    assert [track.weight for track in other.tracks.objects] == [1, 9]
    assert other.losses[0].loss > plain.losses[0].loss
    with pytest.warns(AnyI2VWarning, match="all objects have weight 0, so none is followed"):
        nothing = run(pair(0, 0))
    assert all(record.loss == 0 for record in nothing.losses)


ROOT = Path(__file__).parents[1]
WRONG = """
import numpy, pathlib
from PIL import Image
from tests.test_animate_inputs import run
from anyi2v.errors import InputError

for image in (Image.new("RGB", (16, 16)), numpy.zeros((16, 16, 3), dtype="uint8"), "photo.png"):
    try:
        run(None, image)
    except InputError as error:
        print(error)
for tracks in ("t.json", pathlib.Path("t.json"), {"objects": []}):
    try:
        run(tracks)
    except InputError as error:
        print(error)
"""


def test_other_things_are_named_with_what_loads_them() -> None:
    """Without the type checker of the test run, as users have it."""
    done = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    lines = done.stdout.splitlines()
    starts = ("the image is a PIL image; ", "the image is a NumPy array; ", "the image is a path; ")
    starts += ("tracks is a str, not Tracks; load a file with anyi2v.load_tracks", "tracks is a ", "tracks is a dict")
    assert len(lines) == 6 and all(map(str.startswith, lines, starts)), lines


KINDS = """
import torch
from tests.test_animate_inputs import run
from tests.networks import tiny_backbone
from anyi2v import Track, Tracks, invert_images, load
from anyi2v.comparators import FreeTraj
from anyi2v.errors import InputError

ball, backbone = Track("ball", ((1, 1, 9, 9),)), tiny_backbone()
for call in (
    lambda: run(None, config={}),
    lambda: invert_images(backbone, [torch.zeros(3, 16, 16)], ["a"], config={}),
    lambda: run(None, sampler="dpm-solver-2m"),
    lambda: run(None, method="freetraj"),
    lambda: run(None, method=FreeTraj),
    lambda: run(None, objective="paper"),
    lambda: Tracks(64, 64, ball),
    lambda: Tracks(64, 64, "ball"),
    lambda: load("micro", dtype="bfloat16"),
    lambda: load("micro", dtype=float),
    lambda: backbone.encode_text("a red ball"),
    lambda: backbone.encode_text([b"a red ball"]),
    lambda: backbone.unet(torch.zeros(3, 4, 8, 8), 1, torch.zeros(1, 8, 8)),
):
    try:
        call()
    except InputError as error:
        print(error)
"""


def test_arguments_of_another_kind_are_named_with_what_is_expected() -> None:
    """Without the type checker of the test run, as users have it."""
    done = subprocess.run([sys.executable, "-c", KINDS], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    starts = (
        "config is a dict; it must be a MethodConfig, for example backbone.method(steps=12)",
        "config is a dict; it must be a MethodConfig",
        "sampler is 'dpm-solver-2m'; it must be an object, for example anyi2v.samplers.DPMSolver2M()",
        "method is 'freetraj'; it must be an object, for example anyi2v.comparators.SGI2V()",
        "method is the class FreeTraj; it must be an object",
        "objective is 'paper'; it must be an object",
        "objects must be a tuple of Track, not Track(",
        "objects must be a tuple of Track, not 'ball'",
        "dtype is 'bfloat16'; pass a torch.dtype, for example torch.bfloat16",
        "dtype is <class 'float'>; pass a torch.dtype, for example torch.float16",
        "prompts must be a list of strings, not 'a red ball'; pass [prompt] for a single one",
        "prompts must be a list of strings, not [b'a red ball']",
        "the latents have shape (3, 4, 8, 8); expected [b f c h w]",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(starts) and all(map(str.startswith, lines, starts)), lines
    assert lines[6].endswith("; pass Tracks(width, height, (track,))")


def test_a_first_box_beside_the_object_is_named() -> None:
    beside = Track("ball", ((9, 9, 15, 15), (5, 9, 11, 15)))
    with pytest.warns(AnyI2VWarning, match=r"object 'ball': its first box \(9, 9, 15, 15\) shows nothing"):
        run(Tracks(16, 16, (beside,)))
