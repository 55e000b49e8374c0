"""Looking inside a run: what is chosen, recorded, drawn, and put on the page."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from anyi2v import cli
from anyi2v.backbone.networks import channels_last
from anyi2v.backbone.unet import points
from anyi2v.checkpoints.checkpoint import save
from anyi2v.errors import InputError
from anyi2v.images.media import from_bytes, load_image, to_bytes
from anyi2v.job import Result
from anyi2v.method.alignment import feature_map
from anyi2v.method.boxes import job_crops
from anyi2v.method.config import MethodConfig
from anyi2v.method.crops import video_masks
from anyi2v.method.objective import FeatureAlignment
from anyi2v.pipeline import animate
from anyi2v.reports.inspection import write_inspection
from anyi2v.reports.record import Origin
from anyi2v.reports.recording import Recording, Selection, select
from anyi2v.reports.writing import write_run
from anyi2v.taps import Pass, no_tap
from anyi2v.tracks import Track, Tracks

from .networks import QUERIES, SHORT, tiny_backbone
from .test_report_page import Reader

pytestmark = pytest.mark.usefixtures("arrays_unchecked")  # whole jobs

BACKBONE = tiny_backbone()
for network in BACKBONE.networks.values():
    channels_last(network)  # as when loaded from a file: another layout of the weights rounds differently
KNOWN = points(BACKBONE.unet)
A = Track("a", ((1.0, 1.0, 8.0, 8.0), (7.0, 6.0, 14.0, 13.0)))
B = Track("b", ((9.0, 2.0, 14.0, 9.0), (2.0, 2.0, 7.0, 9.0)), ((11.0, 4.0),))
IMAGE = from_bytes(to_bytes(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))))


def animated(recording: Recording, config: MethodConfig = SHORT, tracks: Tracks | None = None) -> Result:
    tracks = Tracks(16, 16, (A, B)) if tracks is None else tracks
    with patch("anyi2v.method.anyi2v.points", lambda unet: KNOWN):
        return animate(BACKBONE, IMAGE, "a red ball", tracks, config=config, taps=recording)


@cache
def recorded() -> tuple[Result, Recording]:
    """A run of two objects, all of whose steps are watched."""
    recording = Recording(Selection(("1.0", "2.0"), (0, 1, 3), (0, 3)), SHORT, KNOWN)
    return animated(recording), recording


def test_the_default_is_what_the_run_uses() -> None:
    chosen = select(SHORT, KNOWN, 4)
    assert chosen == Selection(("1.0", "2.0"), (0, 1, 3), (0, 1, 2, 3))
    free = replace(SHORT, inject_hidden=(), inject_query=(), share_kv=(), align=(), optimise_steps=0, steps=1)
    assert select(free, KNOWN, 1) == Selection(("0.0", "0.1", "1.0", "1.1", "2.0", "2.1"), (0,), (0,))
    assert select(SHORT, KNOWN, 30).frames == (0, 4, 8, 12, 17, 21, 25, 29)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layers": ["1.0", "9.0"]}, r"layer 9\.0 is not in this run; it has 0\.0, 0\.1, 1\.0, 1\.1, 2\.0, 2\.1"),
        ({"layers": ["up_blocks.1"]}, r"layer up_blocks\.1 is not in this run"),
        ({"steps": [4]}, "step 4 is not in this run; it has 0 to 3"),
        ({"steps": [-1]}, "step -1 is not in this run"),
        ({"show": [0]}, "frame 0 is not in this run; it has 1 to 4"),
        ({"show": [5]}, "frame 5 is not in this run"),
    ],
)
def test_what_the_run_does_not_have_is_refused(asked: dict[str, list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(SHORT, KNOWN, 4, **asked)  # type: ignore[arg-type]


def test_layers_without_attention_have_their_residual() -> None:
    chosen = select(SHORT, KNOWN, 4, layers=["0.0"], steps=[2], show=[2])
    assert chosen.points(KNOWN) == ("up_blocks.0.resnets.0.hidden",)
    assert (chosen.steps, chosen.frames) == ((2,), (1,))


def test_watching_changes_nothing_and_keeps_the_conditional_pass() -> None:
    result, recording = recorded()
    nothing = Recording(Selection((), (), ()), SHORT, KNOWN)
    assert torch.equal(result.video, animated(nothing).video)
    assert not nothing.denoising and not nothing.optimisation
    assert sorted(recording.denoising) == [0, 1, 3]
    assert sorted(recording.optimisation) == [0, 1]
    # injected queries are in frame 1 of the conditional pass only
    for step, injected in ((0, True), (1, True), (3, False)):
        seen = recording.denoising[step][QUERIES[0]]
        assert seen.shape[:2] == (1, 4)
        assert torch.equal(seen[:, :1], result.features[QUERIES[0]]) == injected
    # shared keys and values have a single frame
    assert recording.denoising[0][QUERIES[0].replace("query", "key")].shape[1] == 1


def test_passes_that_are_not_chosen_are_not_watched() -> None:
    recording = recorded()[1]
    for at in (Pass("denoising", 251, 2), Pass("optimisation", 751, 0, 0), Pass("inversion", 5)):
        assert recording(at) is no_tap


def test_masks_of_the_recording_are_the_runs() -> None:
    result, recording = recorded()
    crops = job_crops(result.tracks, SHORT, BACKBONE.config.vae.factor)
    features = {name: feature_map(name, recording.optimisation[1][name]) for name in SHORT.align}
    made = FeatureAlignment(SHORT)(features, crops)
    assert made.loss.item() == pytest.approx(result.losses[-1].loss, rel=1e-6)
    for mask, expected in zip(video_masks(made.masks, crops, (16, 16)), result.masks, strict=True):
        assert torch.equal(mask, expected)
    # similarities are cosines, and of each salient point to itself 1 (up to the bicubic lattice)
    assert made.similarities.abs().max() <= 1 + 1e-5


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(BACKBONE, path)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone: str) -> Path:
    """The folder of the recorded run, not to be written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    write_run(folder, recorded()[0], IMAGE, Origin(backbone))
    return folder


def write(folder: Path, backbone: str, config: MethodConfig = SHORT, tracks: Tracks | None = None) -> Path:
    recording = Recording(select(config, KNOWN, 4), config, KNOWN)
    result = animated(recording, config, tracks)
    write_run(folder, result, IMAGE, Origin(backbone))
    return write_inspection(folder, BACKBONE, IMAGE, result, recording)


def titles(folder: Path) -> dict[str, list[str]]:
    sections = json.loads((folder / "inspection" / "gallery.json").read_text())["sections"]
    return {section["title"]: [picture["file"] for picture in section["pictures"]] for section in sections}


def test_pictures_and_page(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    page = write_inspection(tmp_path / "run", BACKBONE, IMAGE, *recorded())
    assert titles(tmp_path / "run") == {
        "Features": [f"features_step_0{i}.png" for i in (0, 1, 3)],
        "Similarities and masks": [f"similarity_step_0{i}.png" for i in (0, 1)],
        "Trajectories": ["trajectories.png"],
        "Inversion and back": ["reconstruction.png"],
    }
    text = page.read_text()
    assert "gave the same video, byte for byte" in text
    assert "dB (autoencoder)" in text
    files = {path.name for path in (tmp_path / "run" / "inspection").iterdir()}
    assert files == {file for section in titles(tmp_path / "run").values() for file in section} | {"gallery.json"}
    for file in files - {"gallery.json"}:
        assert len(load_image(tmp_path / "run" / "inspection" / file).flatten(1).unique(dim=1).T) > 20
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    reader = Reader(text)
    sections = json.loads((tmp_path / "run" / "inspection" / "gallery.json").read_text())["sections"]
    inside = [link for link in reader.links if link.startswith("#internals-")]
    assert inside == [f"#internals-{k}" for k in range(1, len(sections) + 1)]
    assert {link.removeprefix("#") for link in inside} <= set(reader.ids)
    captions = {picture["file"]: picture["text"] for section in sections for picture in section["pictures"]}
    assert all(captions.values()) and all("\n" not in caption for caption in captions.values())
    first, last = captions["features_step_00.png"], captions["features_step_03.png"]
    assert first == "Step 0 of 0 to 3: the latents were optimised before it, the condition is injected in it."
    assert last == "Step 3 of 0 to 3: the latents were not optimised before it, the condition is not injected in it."
    assert "K-Means" in next(section["text"] for section in sections if section["title"].startswith("Similarities"))


def test_runs_with_less_to_show(tmp_path: Path, backbone: str) -> None:
    config = replace(SHORT, inversion="noise")
    write(tmp_path / "run", backbone, config, Tracks(16, 16))
    assert list(titles(tmp_path / "run")) == ["Features"]


def test_a_repetition_that_differs_says_so_and_by_how_much(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    result, recording = recorded()[0], Recording(Selection(("1.0",), (3,), (0,)), SHORT, KNOWN)
    recording.denoising = {3: recorded()[1].denoising[3]}
    losses = [replace(loss, loss=loss.loss * 1.5) for loss in result.losses]
    other = replace(result, video=1 - result.video, losses=losses)
    text = write_inspection(tmp_path / "run", BACKBONE, IMAGE, other, recording).read_text()
    assert "its video differs" in text
    assert "differ by at most 50 %" in text


def test_the_command(tmp_path: Path, finished: Path, backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    args = ["inspect", str(run), "--layers", "1.0", "--steps", "1", "3", "--frames", "1", "4"]
    assert cli.main(args) == 0
    assert capsys.readouterr().out == f"page: {run.resolve() / 'report.html'}\n"
    assert titles(run)["Features"] == ["features_step_01.png", "features_step_03.png"]
    assert titles(run)["Similarities and masks"] == ["similarity_step_01.png"]
    assert "byte for byte" in (run / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for wrong, message in (
        (["inspect", str(run), "--points"], "--points is for checkpoints"),
        (["inspect", str(tmp_path)], "has no run: run.json is missing"),
        (["inspect", backbone, "--steps", "1"], "are for folders of runs"),
        (["inspect", str(run), "--layers", "9.9"], "layer 9.9 is not in this run"),
    ):
        assert cli.main(wrong) == 2
        assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_changed_backbone_is_not_inspected(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    data = json.loads((run / "run.json").read_text())
    data["backbone"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(data))
    assert cli.main(["inspect", str(run)]) == 2
    assert "is not the file that" in capsys.readouterr().err
    assert not (run / "inspection").exists()
