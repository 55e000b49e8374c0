"""SparseCtrl: the network, its files, the published layout, and jobs under the method."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyi2v import cli
from anyi2v.backbone.config import MotionConfig, UNetConfig
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.backbone.sparse_control import MID, SparseControlNetwork, adding, masked
from anyi2v.backbone.unet import points
from anyi2v.checkpoints.checkpoint import load, save
from anyi2v.checkpoints.sparse_control import load_control, read_control_config, save_control
from anyi2v.comparators import SparseCtrl
from anyi2v.comparators.sparsectrl import SparseCtrlRun, known_frames
from anyi2v.denoiser import Denoiser
from anyi2v.errors import CheckpointError, InputError
from anyi2v.execution.memory import predict
from anyi2v.job import Job, Result
from anyi2v.micro.benchmark.cases import make_case
from anyi2v.pipeline import animate
from anyi2v.taps import Recorder
from anyi2v.tracks import Track, Tracks

from . import foreign
from .networks import SHORT, TINY, inputs, tiny_backbone, tiny_unet

RGB = SparseControlConfig("tiny-control", unet=replace(TINY, temporal=MotionConfig(2, 4, 8, attentions=1)))
SCRIBBLE = replace(RGB, condition="scribble", widths=(2, 3))
IMAGE = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(config: SparseControlConfig = RGB, seed: int = 0) -> SparseControlNetwork:
    """Random in every tensor, those that are zero before training included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = SparseControlNetwork(config)
        for parameter in made.parameters():
            if not parameter.any() or parameter.dim() == 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def condition(frames: int, height: int, width: int, seed: int = 0, at: int = 0) -> Tensor:
    """Latents that are known of one frame, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return masked({at: torch.randn(4, height, width, generator=generator, dtype=torch.float64)}, frames)


# ---------------------------------------------------------------------------------------------------------- the network


@torch.no_grad()
@settings(max_examples=8)
@given(st.integers(1, 2), st.integers(1, 4), st.integers(3, 13), st.integers(3, 13))
def test_residuals_have_the_shapes_of_the_skip_connections(batch: int, frames: int, height: int, width: int) -> None:
    unet, control = tiny_unet(), network().double()
    z, t, text = inputs(batch, frames, height, width)
    residuals = control(condition(frames, height, width), t, text)
    assert tuple(residuals) == control.points
    recorder = Recorder(control.points)
    plain = unet(z, t, text, tap=recorder)
    for name, x in residuals.items():
        # a clip is one entry until the first text, as in the UNet
        assert x.shape[1:] == recorder.seen[name].shape[1:] and x.shape[0] in (1, batch), name
    edited = unet(z, t, text, tap=adding(residuals))
    assert edited.shape == plain.shape and not torch.equal(edited, plain)
    assert torch.equal(unet(z, t, text, tap=adding(residuals, 0.0)), plain)


@torch.no_grad()
def test_before_training_the_unet_is_what_it_was() -> None:
    unet, control = tiny_unet(), SparseControlNetwork(RGB).double()
    z, t, text = inputs()
    residuals = control(condition(3, 8, 8), t, text)
    assert torch.equal(unet(z, t, text, tap=adding(residuals)), unet(z, t, text))
    assert points(unet).keys() >= residuals.keys() == set(control.points)
    assert MID in residuals


@torch.no_grad()
def test_residuals_depend_on_condition_text_timestep_and_frame() -> None:
    control = network().double()
    _, t, text = inputs()

    def mid(known: Tensor, t: int = t, text: Tensor = text, **options: Any) -> Tensor:
        return control(known, t, text, **options)[MID]

    known = condition(3, 8, 8)
    first = mid(known)
    for other in (
        mid(condition(3, 8, 8, seed=1)),
        mid(condition(3, 8, 8, at=2)),
        mid(known, t=5),
        mid(known, text=-text),
        mid(known, window=2),
    ):
        assert (other - first).abs().max() > 1e-3
    nothing = torch.zeros_like(known)
    assert (mid(nothing) - first)[:, 1:].abs().max() > 1e-3  # frames of which nothing is known learn of it
    alone = mid(nothing, temporal=False)
    torch.testing.assert_close(mid(known, temporal=False)[:, 1:], alone[:, 1:])  # by the motion modules alone


def test_the_mask_is_the_last_channel_and_1_where_a_frame_is_known() -> None:
    image = torch.rand(4, 2, 3)
    found = masked({1: image, 2: -image}, 4)
    assert found.shape == (1, 4, 5, 2, 3)
    assert torch.equal(found[0, 1, :4], image) and torch.equal(found[0, 2, :4], -image)
    assert (found[0, 1:3, 4] == 1).all() and not found[0, [0, 3]].any()


@torch.no_grad()
def test_scribbles_come_to_the_grid_of_the_latents() -> None:
    control = network(SCRIBBLE)
    text = torch.randn(1, 5, 8)
    residuals = control(masked({0: IMAGE}, 3), 301, text)
    assert residuals["skips.0"].shape == (1, 3, 8, 8, 8)
    other = control(masked({0: 1 - IMAGE}, 3), 301, text)
    assert all((other[name] - x).abs().max() > 1e-6 for name, x in residuals.items())


def test_too_many_frames_are_refused_unless_in_windows() -> None:
    control, text = network().double(), inputs()[2]
    with pytest.raises(InputError, match=r"9 frames at once, but the sparse control network .* at most 8"):
        control(condition(9, 4, 4), 301, text)
    assert control(condition(9, 4, 4), 301, text, window=8)[MID].shape[1] == 9
    assert control(condition(9, 4, 4), 301, text, temporal=False)[MID].shape[1] == 9


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("config", [RGB, SCRIBBLE])
def test_a_file_holds_the_network(config: SparseControlConfig, tmp_path: Path) -> None:
    made, path = network(config), tmp_path / "control.safetensors"
    save_control(made, path)
    assert read_control_config(path) == config
    loaded = load_control(path)
    assert loaded.config == config and not any(p.requires_grad for p in loaded.parameters())
    state = made.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(x, state[key]) for key, x in loaded.state_dict().items())
    assert {x.dtype for x in load_control(path, dtype=torch.bfloat16).state_dict().values()} == {torch.bfloat16}


def test_backbones_and_sparse_control_networks_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_control(network(), control := tmp_path / "control.safetensors")
    save(tiny_backbone(), backbone := tmp_path / "backbone.safetensors")
    with pytest.raises(CheckpointError, match=r"control.* is a sparse control network, not a backbone"):
        load(control)
    with pytest.raises(CheckpointError, match=r"backbone.* is a backbone, not a sparse control network"):
        load_control(backbone)
    with pytest.raises(InputError, match=r"no sparse control network 'absent'.* shipped .* micro-sparsectrl"):
        load_control("absent")
    assert cli.main(["inspect", str(control)]) == 0
    said = capsys.readouterr().out
    assert "sparse control network (SparseCtrl)" in said and "condition: rgb" in said
    assert f"{sum(p.numel() for p in network().parameters()):,} parameters" in said
    assert cli.main(["inspect", str(control), "--points"]) == 2
    assert "--points is for backbones" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"channels": (8, 16)}, {"layers": 2}, {"context_dim": 9}, {"latent_channels": 3}], ids=str
)
def test_another_unet_is_refused_by_what_differs(change: dict[str, Any]) -> None:
    RGB.check_fits(TINY)
    unet = replace(TINY, attention=(True, True, False)[: len(change.get("channels", "123"))], **change)
    (name,) = change
    with pytest.raises(InputError, match=rf"'tiny-control' is made for UNets with {name}=.*, but the backbone has"):
        RGB.check_fits(unet)


# ------------------------------------------------------------------------------------------------- the published layout


def published(made: SparseControlNetwork) -> dict[str, Tensor]:
    """The network's tensors as the published files name them, and what else is in these."""
    theirs = {"conv_in.weight": torch.rand(made.bias.shape[0], 4, 3, 3)}
    last = 2 * len(made.config.widths) * 2 - 2
    for key, x in made.state_dict().items():
        name = re.sub(r"\.temporals\.(\d+)\.", r".motion_modules.\1.temporal_transformer.", key)
        name = name.replace("skip_outs", "controlnet_down_blocks").replace("mid_out", "controlnet_mid_block")
        if match := re.fullmatch(r"condition_embedding\.(\d+)\.(.*)", name):
            place = int(match[1])
            inner = "conv_in" if place == 0 else "conv_out" if place == last else f"blocks.{place // 2 - 1}"
            name = f"controlnet_cond_embedding.{inner}.{match[2]}"
        name = name.replace("condition_embedding", "controlnet_cond_embedding")
        theirs["conv_in.bias" if name == "bias" else name] = x
        if "attention_blocks.0.to_q" in name and ".motion_modules." in name:
            theirs[name.replace("to_q.weight", "pos_encoder.pe")] = torch.rand(1, 32, x.shape[0])
    return theirs


SMALL = SparseControlConfig(
    "small",
    unet=replace(foreign.SMALL.unet, temporal=MotionConfig(attentions=1)),
)
LAYOUTS = {"rgb": SMALL, "scribble": replace(SMALL, condition="scribble", widths=(3, 4, 5, 6))}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "controlnet", "prefix"])
def test_published_files_are_converted(
    kind: str, wrapper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = network(LAYOUTS[kind])
    theirs = published(made)
    if wrapper == "prefix":
        theirs = {f"controlnet.{key}": x for key, x in theirs.items()}
        source = foreign.write(theirs, tmp_path / "theirs.safetensors")
    else:
        source = foreign.write(theirs, tmp_path / "theirs.ckpt", wrapper)
    out = tmp_path / "ours.safetensors"
    args = ["convert", "--sparse-control", str(source), "--out", str(out), "--dtype", "fp32", "--name", "small"]
    assert cli.main(args) == 0
    said = capsys.readouterr().out
    assert "tensors for the sparse control network" in said and "left out: 1 tensor, of the first convolution" in said
    loaded = load_control(out)
    assert loaded.config == LAYOUTS[kind]
    state = made.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in loaded.state_dict().items())
    assert cli.main(["convert", "--inspect", str(source)]) == 0
    assert "complete: no tensors are missing" in capsys.readouterr().out


def dropped(key: str) -> dict[str, Tensor]:
    theirs = published(network(SMALL))
    theirs.pop(key)
    return theirs


BAD: dict[str, tuple[Any, list[str], str]] = {
    "missing": (
        lambda: dropped("controlnet_mid_block.bias"),
        [],
        "that the network needs but no source has: mid_out.bias",
    ),
    "strange": (
        lambda: published(network(SMALL)) | {"up_blocks.0.x": torch.zeros(1)},
        [],
        "1 without a rule: up_blocks",
    ),
    "shape": (
        lambda: published(network(SMALL)) | {"controlnet_mid_block.bias": torch.zeros(3)},
        [],
        "1 of the wrong shape: controlnet_mid_block.bias",
    ),
    "unmeasured": (lambda: dropped("conv_in.weight"), [], "conv_in.weight is missing"),
    "other option": (lambda: published(network(SMALL)), ["--fps", "8"], "--fps is not for --sparse-control"),
    "base": (lambda: published(network(SMALL)), ["--base", "x.ckpt"], "--base is not for --sparse-control"),
    "kind": (foreign.ldm, [], "--sparse-control takes: SparseCtrl encoder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_converted_is_one_line_and_no_file(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options, message = BAD[case]
    source, out = foreign.write(make(), tmp_path / "theirs.ckpt"), tmp_path / "ours.safetensors"
    assert cli.main(["convert", "--sparse-control", str(source), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1
    assert not out.exists()


# ----------------------------------------------------------------------------------------------------------------- jobs


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("control") / "control.safetensors"
    save_control(network(), path)
    return str(path)


BACKBONE = tiny_backbone()


def run(method: SparseCtrl | None, **options: Any) -> Result:
    changes = {"config": SHORT, "tracks": None} | options
    return animate(BACKBONE, IMAGE, "a red ball", method=method, **changes)


def test_a_job_is_controlled_and_recorded(file: str) -> None:
    result, method = run(SparseCtrl(control=file)), {"control": file, "injection": False}
    assert result.parts == {"method": "sparsectrl"} and method.items() <= result.method_settings.items()
    assert result.method_settings["frames"] == [1]
    strong = run(SparseCtrl(control=file, scale=2.0))
    last = run(SparseCtrl(control=file, frames=(4,)))
    off = run(SparseCtrl(control=file, scale=0.0))
    videos = [x.video for x in (result, strong, last, off)]
    assert all(not torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert torch.equal(run(SparseCtrl(control=file, frames=(-1,))).video, last.video)
    moved = Tracks(16, 16, (Track("red ball", ((1.0, 1.0, 8.0, 8.0), (7.0, 6.0, 14.0, 13.0))),))
    assert torch.equal(run(SparseCtrl(control=file), tracks=moved).video, result.video)  # it moves nothing


def test_injection_can_be_added(file: str) -> None:
    result = run(SparseCtrl(control=file, injection=True))
    assert result.features.keys() == {*SHORT.inject_hidden, *SHORT.inject_query}
    assert not torch.equal(result.video, run(SparseCtrl(control=file)).video)


def started(method: SparseCtrl, scale: float = 2.0) -> SparseCtrlRun:
    config = replace(SHORT, guidance_scale=scale, guidance_steps=2)
    job = Job(BACKBONE, IMAGE, "a red ball", "", Tracks(16, 16, ()), config, 0, 4, 8)
    negative, positive = BACKBONE.encode_text(["", "a red ball"]).split(1)
    return method.start(job, Denoiser(BACKBONE.unet, positive, negative, config))


@torch.no_grad()
def test_each_pass_of_the_guidance_has_the_residuals_of_its_text(file: str) -> None:
    """Computed by the network itself, from the latents that the autoencoder gives."""
    method = SparseCtrl(control=file, scale=0.5, frames=(2, -1))
    made = started(method)
    latents = BACKBONE.vae.encode(2 * IMAGE[None] - 1)[0]
    assert torch.equal(made.condition, masked({1: latents, 3: latents}, 4))
    step, late = made.job.steps[0], made.job.steps[2]
    denoiser = made.denoiser
    z = torch.randn(made.job.latent_shape, generator=torch.Generator().manual_seed(0))
    control = network()
    for tap, text in ((made.tap(step), denoiser.positive), (made.negative_tap(step), denoiser.negative)):
        assert text is not None
        found = BACKBONE.unet(z, step.t, text, tap=tap)
        wanted = BACKBONE.unet(z, step.t, text, tap=adding(control(made.condition, step.t, text), 0.5))
        torch.testing.assert_close(found, wanted)
    assert not hasattr(made.negative_tap(late), "names")  # no guidance from step 2 on, and no pass
    assert not hasattr(started(method, scale=1.0).negative_tap(step), "names")


def test_scribbles_are_the_pixels_of_the_condition(tmp_path: Path) -> None:
    save_control(network(SCRIBBLE), path := tmp_path / "scribble.safetensors")
    assert torch.equal(started(SparseCtrl(control=str(path))).condition, masked({0: IMAGE}, 4))
    assert run(SparseCtrl(control=str(path))).video.isfinite().all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=4), st.integers(1, 4))
def test_frames_count_from_1_or_from_the_end(frames: list[int], count: int) -> None:
    method = SparseCtrl(frames=tuple(frames))
    if all(frame and abs(frame) <= count for frame in frames):
        found = known_frames(method, count)
        assert [list(range(count))[frame - 1 if frame > 0 else frame] for frame in frames] == found
    else:
        with pytest.raises(InputError, match=rf"frames has -?\d, but the video has {count} frames"):
            known_frames(method, count)


def test_what_cannot_work_is_refused_before_any_work(file: str, tmp_path: Path) -> None:
    save_control(network(replace(RGB, unet=replace(RGB.unet, context_dim=4))), other := tmp_path / "other.safetensors")
    cases: list[tuple[SparseCtrl, str]] = [
        (SparseCtrl(control=file, frames=(5,)), "frames has 5, but the video has 4 frames"),
        (SparseCtrl(control=file, frames=()), "frames is empty"),
        (SparseCtrl(control="absent.safetensors"), "no sparse control network 'absent.safetensors'"),
        (SparseCtrl(control=str(other)), "sparsectrl: .* context_dim=4, but the backbone has context_dim=8"),
        (SparseCtrl(), "'micro-sparsectrl' .*; it is the default, give another with --sparsectrl.control"),
    ]
    for method, message in cases:
        with pytest.raises(InputError, match=message):
            method.check(SHORT, BACKBONE.unet, Tracks(16, 16, ()), "a red ball", 4)
        with pytest.raises(InputError, match=message):
            run(method)
    with pytest.raises(InputError, match="must be a list of whole numbers"):
        SparseCtrl.from_dict({"frames": ["1"]})


def test_the_shipped_network_draws_the_condition_in_the_prompts_colours() -> None:
    """By the world's own measure, on a case that training has not seen; nothing else knows the condition image."""
    case, micro = make_case(2001, "depth"), load("micro")
    result = animate(micro, case.image, case.prompt, case.tracks, seed=2001, frames=4, method=SparseCtrl())
    (scores,) = case.scores(result.video[[0] * 8])
    assert scores.first_frame_iou > 0.7 and scores.colour_right and scores.background_right > 0.9


def test_a_published_unet_has_the_published_sparse_control_network() -> None:
    config = SparseControlConfig("x")
    config.check_fits(UNetConfig())
    assert SparseControlConfig.from_json(config.to_json()) == config


def test_the_networks_parameters_are_in_the_predicted_memory(tmp_path: Path) -> None:
    save_control(made := network(), path := tmp_path / "control.safetensors")
    footprint = SparseCtrl(control=str(path)).footprint(SHORT)
    assert footprint.parameters == sum(parameter.numel() for parameter in made.parameters())
    backbone = tiny_backbone()
    alone, controlled = (predict(backbone.config, method, (2, 16, 16)) for method in (footprint.config, footprint))
    assert controlled.weights - alone.weights == 4 * footprint.parameters
