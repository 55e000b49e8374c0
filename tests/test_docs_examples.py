"""Every Python example of README.md and docs/*.md is run as a reader would, and what it makes is looked at; every
command of theirs is understood, and those of README.md are run."""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import anyi2v
from anyi2v import cli
from anyi2v.cli.subcommands import COMPLETION, SHELLS
from anyi2v.errors import InputError
from anyi2v.images.video import write_video
from anyi2v.job import Result, Run
from anyi2v.method.config import MethodConfig
from anyi2v.method.objective import FeatureAlignment
from anyi2v.micro.benchmark.measure import centroids, find_object, nearest_colours
from anyi2v.micro.world.world import BACKGROUND_COLOURS, OBJECT_COLOURS
from anyi2v.samplers import ddim
from anyi2v.tracks import Track, Tracks, centre, save_tracks

from . import foreign

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
NEAR = 1.0
"""Pixels, on average over the frames, that an object of an example may be off its track: without optimisation it is
more than ten."""
Names = dict[str, Any]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, also those that are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def follows(result: Result, image: torch.Tensor) -> None:
    """The prompted objects are there in every frame, in their colour, where their boxes are."""
    assert result.video.shape[1:] == image.shape
    colours = [word for word in result.prompt.split() if word in OBJECT_COLOURS]
    assert len(colours) == len(result.tracks.objects) > 0
    for colour, track in zip(colours, result.tracks.objects, strict=True):
        wanted = torch.tensor([centre(box) for box in track.boxes])
        off = (centroids(find_object(result.video, colour)) - wanted).norm(dim=-1)
        assert off.mean() < NEAR, (track.name, off)  # NaN where there is no object
        assert (wanted[-1] - wanted[0]).norm() > 5 * NEAR, "it stays where it is"
    background = next(word for word in result.prompt.split() if word in BACKGROUND_COLOURS)
    corner = nearest_colours(result.video)[:, 0, 0]
    assert (corner == [*OBJECT_COLOURS, *BACKGROUND_COLOURS].index(background)).all()


def readme(names: Names, folder: Path) -> None:
    """The job, and the taps: a query of all frames is frame 1's, so the noise is another."""
    result = names["result"]
    follows(result, names["image"])
    assert len(result.masks) == 1 and result.timings and result.losses[-1].loss < result.losses[0].loss
    assert (folder / "ball.mp4").stat().st_size > 1000
    query, z, seen = names["query"], names["z"], names["seen"]
    assert list(seen) == [query] and seen[query].shape[:2] == z.shape[:2]
    plain = names["backbone"].unet(z, 501, names["text"])
    assert names["noise"].shape == plain.shape
    assert not torch.allclose(names["noise"], plain, atol=1e-3)
    again = anyi2v.record(names["backbone"].unet, [query], z, 501, names["text"])
    assert torch.equal(seen[query], again[query])


def inspection(names: Names, _: Path) -> None:
    """The job, a query of the conditional pass of every step, and attention maps, whose rows sum to 1."""
    result, queries = names["result"], names["queries"]
    follows(result, names["image"])
    assert sorted(queries) == list(range(result.config.steps))
    assert {tuple(query.shape[:2]) for query in queries.values()} == {(1, result.video.shape[0])}
    (attention,) = names["maps"].values()
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]), rtol=0, atol=1e-2)


def conditions(names: Names, _: Path) -> None:
    """The photo of 100 x 80 px lies in the middle of 512 x 320, four times as large, and the tracks on it alike."""
    assert names["image"].shape == (3, 320, 512)
    (track,) = names["tracks"].objects
    assert track.boxes[0] == (56 + 8, 8, 56 + 72, 72)
    assert names["fit"].points([(40, 30)]) == ((216, 120),)
    assert names["fit"].back([(216, 120)]) == ((40, 30),)
    chair, mixed = names["chair"], names["mixed"]
    assert (chair[0, 128, 128] > 0) and not chair[:, 0, 0].any(), "a box in the middle of the drawing"
    assert torch.equal(mixed[:, :128], chair[:, :128]) and (mixed[:, 128:] == 1).all()


class PlainMethod:
    """Denoises and nothing else."""

    def start(self, *_: Any) -> Run:
        return Run()


def extending(names: Names, folder: Path) -> None:
    """Each part was used: the objective moves the object, the others make another video, the family is known again."""
    follows(names["gaussian"], names["image"])
    job = [names[key] for key in ("backbone", "image", "prompt", "tracks")]
    few = {"steps": 2, "inject_steps": 1, "optimise_steps": 1, "iterations": 1, "inversion_stride": 100}
    short, masked = (dataclasses.replace(names[key], **few) for key in ("fast", "masked"))
    aligned = FeatureAlignment(masked, cluster=names["very_similar"])
    pairs: dict[str, list[dict[str, Any]]] = {  # short jobs with and without the part that the example is about
        "both": [{"config": short, "sampler": sampler()} for sampler in (names["Multistep"], lambda: ddim)],
        "boxed": [{"config": short, "method": method()} for method in (names["BoxAttention"], PlainMethod)],
        "clustered": [{"config": masked, **parts} for parts in ({"objective": aligned}, {})],
    }
    for name, options in pairs.items():
        own, other = (anyi2v.animate(*job, frames=2, **how).video for how in options)
        assert names[name].video.isfinite().all() and not torch.equal(own, other), name
    parts = {name: {*names[name].parts} for name in pairs}
    assert parts == {"both": {"sampler", "objective"}, "boxed": {"method"}, "clustered": {"objective"}}
    assert len(names["clustered"].masks) == 1
    assert names["again"].config.unet.temporal == names["ShiftConfig"]()
    assert names["again"].unet.temporal_names == names["shifted"].unet.temporal_names
    assert len(names["pictures"]) == 4 and names["pictures"][0].shape == (8, 3, 32, 32)


def comparators(names: Names, _: Path) -> None:
    """Both methods were used, and what is dragged has come to where its box is."""
    assert [names[key].parts for key in ("by_noise", "dragged")] == [{"method": "freetraj"}, {"method": "time-to-move"}]
    assert names["by_noise"].method_settings["edit_steps"] == 2
    video, (x0, y0, x1, y1) = names["dragged"].video, names["dragged"].tracks.objects[0].boxes[-1]
    first, last = ((frame - frame.flatten(1).median(-1).values[:, None, None]).abs().sum(0) for frame in video[[0, -1]])
    box = (slice(int(y0), int(y1)), slice(int(x0), int(x1)))
    # beside it the model paints the prompt's circle, which the drawing does not show
    assert last[box].sum() > 0.25 * last.sum() and first[box].sum() < 0.1 * first.sum()


def photo_and_mesh(folder: Path) -> Names:
    """What docs/conditions.md takes for granted: the reader's own files, and a sketch with its mask."""
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install 'anyi2v[mesh]'")
    pytest.importorskip("embreex", reason="embreex is not installed: pip install 'anyi2v[mesh]'")
    trimesh.creation.box().export(folder / "chair.glb")
    Image.fromarray(np.eye(80, 100, dtype=np.uint8) * 255).save(folder / "photo.png")
    save_tracks(folder / "tracks.json", Tracks(50, 40, (Track("a", ((1, 1, 9, 9),)),)))
    lower = torch.zeros(256, 256)
    lower[128:] = 1
    return {"sketch": torch.ones(3, 256, 256), "mask": lower}


def first_track(folder: Path) -> Names:
    """The track file that docs/tutorial.md shows."""
    (text,) = blocks(ROOT / "docs" / "tutorial.md", "json")
    (folder / "right.json").write_text(text)
    return {}


def tutorial(names: Names, _: Path) -> None:
    """The job moves the circle, and three components of a query are there for every frame and cell."""
    result = names["result"]
    assert names["colours"].shape == (len(result.video), 16, 16, 3)
    assert result.tracks.objects[0].boxes[-1] == (38, 24, 56, 42)
    assert result.losses[-1].loss < result.losses[0].loss


def moving_boxes(folder: Path) -> Names:
    """Two runs with boxes that move, and a tracker for which nothing does."""
    tracks = Tracks(50, 40, (Track("a", ((1, 1, 9, 9), (4, 5, 12, 13))),))
    for name in ("a", "b"):
        (folder / "runs" / name).mkdir(parents=True)
        write_video(folder / "runs" / name / "video.gif", torch.rand(3, 3, 40, 50), fps=8)
        (folder / "runs" / name / "run.json").write_text(json.dumps({"tracks": tracks.to_dict()}))

    def stays(video: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return points[:, None].expand(-1, len(video), 2), torch.ones(len(points), len(video), dtype=torch.bool)

    return {"my_tracker": stays}


def evaluated(names: Names, _: Path) -> None:
    """What stays is as far away as the boxes go: 2.5 px in the second frame, 5 in the third."""
    found = names["evaluation"]
    assert found.scores and found.videos["a"] == found.videos["b"]
    assert all(0 < value <= 5 for value in found.videos["a"].values())


CHECKS: dict[str, tuple[Callable[[Path], Names], Callable[[Names, Path], None]]] = {
    "README.md": (lambda _: {}, readme),
    "docs/comparators.md": (lambda _: {}, comparators),
    "docs/evaluation.md": (moving_boxes, evaluated),
    "docs/inspection.md": (lambda _: {}, inspection),
    "docs/conditions.md": (photo_and_mesh, conditions),
    "docs/tutorial.md": (first_track, tutorial),
    "docs/extending.md": (lambda _: {"__name__": "extending"}, extending),
}
"""By page: what its examples take for granted, and what they must have made."""


def test_every_page_with_python_has_a_check() -> None:
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page, "python")}
    assert pages == CHECKS.keys()


@pytest.mark.parametrize("page", CHECKS)
def test_examples_make_what_they_promise(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in one namespace, in a folder that has the repository's docs."""
    prepare, check = CHECKS[page]
    names = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "docs", "docs")
    for block in blocks(ROOT / page, "python"):
        exec(block, names)
    check(names, tmp_path)


def test_a_box_that_does_not_fit_the_picture_is_noticed() -> None:
    """`follows` itself: a still circle does not follow, nor one of another colour."""
    frame = torch.tensor(BACKGROUND_COLOURS["navy"])[:, None, None].repeat(1, 64, 64)
    video = frame.repeat(8, 1, 1, 1)
    track = Track("ball", tuple((4.0 + 4 * f, 20.0, 20.0 + 4 * f, 36.0) for f in range(8)))
    for f in range(8):
        video[f, :, 20:36, 4 + 4 * f : 20 + 4 * f] = torch.tensor(OBJECT_COLOURS["red"])[:, None, None]

    def job(video: torch.Tensor) -> Result:
        prompt, tracks = "a red square on a navy background", Tracks(64, 64, (track,))
        return Result(video, [], [], {}, prompt, "", tracks, MethodConfig(), 0, 8, {})

    follows(job(video), frame)
    still = video[:1].expand_as(video)
    blue = video.roll(1, 1)
    for wrong in (still, blue):
        with pytest.raises(AssertionError):
            follows(job(wrong), frame)


def shell_lines(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continued lines joined, without empty lines and comments."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands() -> list[tuple[str, str]]:
    """(page, command) of all lines of shell blocks that call the program."""
    lines = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in shell_lines(page)]
    return [(page, line) for page, line in lines if line.startswith("anyi2v ")]


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    if words[0] == COMPLETION:
        assert words[1] in SHELLS and words[2] == ">", page
        return
    absent = [word for word in words if Path(word).suffix in (".json", ".safetensors")]
    if words[0] == "animate" and {"--repeat", "--backbone"} & set(words) and absent:  # whose defaults are read
        with pytest.raises(InputError, match=re.escape(absent[0])):
            cli.parse(words)
    else:
        assert hasattr(cli.parse(words), "run"), page


FEW = shlex.split(
    "--width 32 --height 32 --frames 2 --method.steps 2 --method.inject-steps 1 --method.optimise-steps 1 "
    "--method.iterations 1 --method.inversion-stride 100"
)
"""Flags appended to README's jobs, so that they are quick."""


@pytest.fixture
def readers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What README's commands take for granted: public checkpoints, and the files that I and T stand for.

    The checkpoints have the layout, the tokenizer and the names of layers of the published ones, but are small.
    """
    edges = Image.new("RGB", (64, 64))
    ImageDraw.Draw(edges).ellipse((8, 24, 26, 42), outline="white")
    tracks = Tracks(64, 64, (Track("ball", ((8, 24, 26, 42), (38, 24, 56, 42))),))
    edges.save(tmp_path / "I", "PNG")
    save_tracks(tmp_path / "T", tracks)
    unet = dataclasses.replace(foreign.SMALL.unet, channels=(32, 64, 64), attention=(True, True, False))
    text = dataclasses.replace(foreign.SMALL.text, length=77, vocab_size=49408)
    monkeypatch.setattr(foreign, "SMALL", dataclasses.replace(foreign.SMALL, unet=unet, text=text))
    foreign.backbone.cache_clear()
    foreign.write(foreign.ldm(torch.float16), tmp_path / "v1-5-pruned-emaonly.safetensors")
    foreign.write(foreign.motion("v3", torch.float16), tmp_path / "v3_sd15_mm.ckpt")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    foreign.backbone.cache_clear()


def test_readmes_commands_run_in_order(readers_files: Path) -> None:
    for line in shell_lines(ROOT / "README.md"):
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            continue
        assert program == "anyi2v", f"nothing runs {line!r}"
        if words[0] == "animate" and "--repeat" not in words:
            words += FEW
        assert cli.main(words) == 0, line
    for file in ("seen.png", "seen-tracks.png", "star/report.html", "v3.safetensors", "DIR/video.mp4"):
        assert (readers_files / file).is_file(), file
    first, again = (readers_files / folder / "video.mp4" for folder in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
