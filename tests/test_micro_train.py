"""The trainer: exact resumption, learning rate, what each stage moves, export."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anyi2v.backbone.config import FactorisedConfig
from anyi2v.backbone.networks import build, state
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.sparse_control import load_control
from anyi2v.errors import InputError
from anyi2v.micro.benchmark.measure import NAMES, find_object, nearest_colours
from anyi2v.micro.training import samples, train
from anyi2v.micro.training.architecture import CONFIG, architecture, controlled, initial, sparse_control
from anyi2v.micro.training.lessons import MICRO, Lessons
from anyi2v.micro.training.objectives import OFFSET_NOISE, STAGES, Stage, agreement_loss, noise_like, recipes, stages
from anyi2v.micro.training.options import Args, Kind
from anyi2v.micro.training.samples import sample
from anyi2v.micro.training.train import Run, export, learning_rate, train_stage
from anyi2v.micro.training.training_data import analytic_latents, known_clip_batch, pair_batch, preview
from anyi2v.reports.plots import SHORT_SIDE


def args(out: Path, **changes: object) -> Args:
    """Few steps of tiny batches; "control" trains a sparse control network for the shipped backbone."""
    return Args(out=out, **{"processes": 1, "steps": 3, "batch": 0.05, "save_every": 0, "samples": 0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["images", "motion", "control"])
def test_an_interrupted_stage_ends_like_an_uninterrupted_one(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    control = 1.0 if stage == "control" else 0.0
    train_stage(stage, args(whole, steps=2, control=control), 0)

    step = Run.train_step

    def stops(run: Run) -> float:
        if run.step == 1:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train_stage(stage, args(broken, steps=2, control=control), 0)
    train_stage(stage, args(broken, steps=2, control=control), 0)

    ours, theirs = (torch.load(folder / f"{stage}.pt", weights_only=True) for folder in (broken, whole))
    assert ours["step"] == theirs["step"] == 2
    for key in ("parameters", "average"):
        assert all(torch.equal(a, b) for a, b in zip(ours[key], theirs[key], strict=True))


def test_loss_falls_on_a_batch_seen_again_and_again(tmp_path: Path) -> None:
    run = Run("vae", args(tmp_path), 0)
    run.planned = 20
    losses = []
    for _ in range(8):
        losses.append(run.train_step())
        run.step = 0
    assert losses[-1] < losses[0]


def test_modalities_agree_where_condition_and_photo_are_one() -> None:
    torch.manual_seed(0)
    backbone = build(CONFIG)

    def loss(lessons: Lessons = MICRO) -> torch.Tensor:
        return agreement_loss(backbone, lessons, "train", 0, 4, torch.Generator().manual_seed(0))

    two = loss()
    assert two > 0.1
    two.backward()
    moved = {name for name, p in backbone.unet.named_parameters() if p.grad is not None and p.grad.any()}
    # up to the last injected query and no further
    assert any(name.startswith("up_blocks.2.attentions.1.") for name in moved)
    assert not any("temporal" in name or name.startswith(("up_blocks.3.", "conv_out.")) for name in moved)

    _, photos, captions = pair_batch("train", 0, 4)
    assert loss(replace(MICRO, pairs=lambda *_: (photos, photos, captions))) < 1e-6


def test_what_begins_with_trained_weights_is_trained_gently(tmp_path: Path) -> None:
    start = export(args(tmp_path))
    assert Run("vae", args(tmp_path / "gentle", start=start), 0).lr == recipes()["vae"].lr / 2
    assert Run("vae", args(tmp_path / "fresh"), 0).lr == recipes()["vae"].lr


def test_stages_move_their_own_parameters_only() -> None:
    with torch.device("meta"):
        backbone = build(CONFIG)
    ids = {stage: {id(p) for p in recipes()[stage].parameters(backbone)} for stage in STAGES}
    everything = {id(p) for network in backbone.networks.values() for p in network.parameters()}
    assert sum(len(found) for found in ids.values()) == len(everything)
    assert set().union(*ids.values()) == everything


@pytest.mark.parametrize("stage", [*STAGES, "control"])
def test_a_sheet_of_samples_is_written_with_each_checkpoint(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "STEPS", 2)
    train_stage(stage, args(tmp_path, steps=1, samples=1, control=1.0 if stage == "control" else 0.0), 0)
    (file,) = (tmp_path / "samples").iterdir()
    assert file.name == f"{stage}-000001.png"
    frames = {"images": 1, "vae": 2, "motion": 8, "control": 8}[stage]
    with Image.open(file) as sheet:
        assert sheet.width >= frames * SHORT_SIDE
        assert sheet.height >= SHORT_SIDE


def test_samples_follow_the_shipped_backbones_captions() -> None:
    """By the world's own measure: the named object on the named background."""
    backbone = load("micro")
    texts = ["a red circle on a navy background", "a yellow square on a teal background"]
    for picture, text in zip(preview(sample(backbone, texts, 1)), texts, strict=True):
        _, colour, _, _, _, background, _ = text.split()
        assert find_object(picture, colour).any()
        assert (nearest_colours(picture) == NAMES.index(background)).float().mean() > 0.5


def test_export_is_a_backbone_of_at_most_12_mb(tmp_path: Path) -> None:
    path = export(args(tmp_path))
    assert path.stat().st_size <= 12_000_000
    backbone = load(path)
    assert backbone.config == CONFIG


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == 0.01
    assert max(rates) == rates[99] == 1
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert rates[99:] == sorted(rates[99:], reverse=True)


def test_offset_noise_moves_means() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = noise_like(torch.zeros(64, 8, 4, 16, 16), generator)
    # a mean of 256 unit normals has variance 1/256; 2048 of them tell it to 3 %
    expected = (1 / 256 + OFFSET_NOISE**2) ** 0.5
    assert noise.mean((-1, -2)).std().item() == pytest.approx(expected, rel=0.1)


def test_steps_are_planned_from_minutes(tmp_path: Path) -> None:
    options = Args(out=tmp_path, processes=1, batch=0.05, vae=0.02)
    run = train.planned(Run("vae", options, 0))
    assert run.planned >= 1
    assert run.step == 0
    count, run.step = run.planned, run.planned
    run.save()
    assert train.planned(Run("vae", options, 0)).planned == count
    # more minutes: the stage goes on
    longer = train.planned(Run("vae", replace(options, vae=0.06), 0))
    assert (longer.step, longer.planned) == (count, 3 * count)
    shorter = train.planned(Run("vae", replace(options, vae=0.01), 0))
    assert shorter.planned == round(count / 2)


def test_a_sparse_control_network_is_trained_for_a_frozen_backbone(tmp_path: Path) -> None:
    options = args(tmp_path, steps=3, control=1.0)
    assert stages(options) == ("control",)
    before, micro = initial(options), load("micro")
    train_stage("control", options, 0)
    run = Run("control", options, 0)  # with the weights of the end
    theirs = state(micro)
    ours = {key: x for key, x in state(run.backbone).items() if not key.startswith("control.")}
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[key]) for key, x in ours.items())
    first = sparse_control(before).state_dict()
    moved = {key for key, x in sparse_control(run.backbone).state_dict().items() if not torch.equal(x, first[key])}
    # clips are in the batch of one step of three, and what lies before a zero convolution learns a step later
    assert {"mid_out.weight", "skip_outs.0.weight", "condition_embedding.weight", "bias"} <= moved
    assert any(".temporals." in key for key in moved)
    path = tmp_path / "micro-sparsectrl.safetensors"
    assert path.stat().st_size <= 4_000_000
    assert load_control(path).config == sparse_control(before).config


@torch.no_grad()
def test_a_sparse_control_network_begins_as_a_copy_of_the_way_down() -> None:
    micro = load("micro")
    control, unet = sparse_control(controlled(micro)), micro.unet.state_dict()
    for key, x in control.state_dict().items():
        if key in unet:
            assert torch.equal(x, unet[key]), key
    image = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = torch.cat([image, torch.ones(2, 1, 8, 8)], dim=1)
    torch.testing.assert_close(
        control.condition_embedding(condition) + control.bias[:, None, None], micro.unet.conv_in(image)
    )
    assert all(not x.any() for x in control(condition[None], 300, torch.zeros(1, 16, 64)).values())
    micro.config = replace(micro.config, unet=replace(micro.config.unet, temporal=FactorisedConfig()))
    with pytest.raises(InputError, match="has no motion modules"):
        controlled(micro)


def test_known_frames_show_the_scene_of_the_clip_in_other_colours() -> None:
    condition, clips, captions = known_clip_batch("train", 0, 64)
    again, *_ = known_clip_batch("train", 60, 4)
    assert torch.equal(again, condition[60:])
    mask = condition[:, :, -1]
    assert torch.equal(mask, mask[..., :1, :1].expand_as(mask)) and set(mask.unique().tolist()) == {0.0, 1.0}
    known = mask[:, :, 0, 0].bool()
    assert not condition[~known].any() and set(known.sum(1).tolist()) == {1, 2}
    # two thirds, and a few of the others; 0.055 is the standard error of 64
    assert known[:, 0].float().mean().item() == pytest.approx(0.73, abs=2 * 0.055)
    shown = analytic_latents(clips)
    assert all(not torch.allclose(condition[known][i, :3], shown[known][i, :3], atol=0.3) for i in range(known.sum()))
    assert {"" in captions, any("red" in text for text in captions)} == {True}


@pytest.mark.parametrize("kind", ["rotary", "factorised"])
def test_other_temporal_layers_are_trained_on_frozen_spatial_weights(kind: Kind, tmp_path: Path) -> None:
    spatial = export(args(tmp_path / "base"))
    options = args(tmp_path / "out", spatial=spatial, temporal=kind, steps=1)
    options.out.mkdir()
    assert stages(options) == ("motion",)
    train_stage("motion", options, 0)
    fresh = build(architecture(options))
    parts = tmp_path / "out" / f"{fresh.config.name}.safetensors"
    ours = load_file(parts)
    assert ours
    assert all("temporal" in key for key in ours)
    # layers that begin as nothing are no longer nothing, or biases that begin at zero have moved
    assert any(tensor.abs().max() > 0 for tensor in ours.values())
    shutil.copy(spatial, tmp_path / "out" / "micro.safetensors")
    whole = load(parts)
    assert whole.config == fresh.config
    theirs = load_file(spatial)
    shared = {key: tensor for key, tensor in state(whole).items() if "temporal" not in key}
    assert all(torch.equal(tensor, theirs[key].float()) for key, tensor in shared.items())


def test_training_goes_on_from_a_finished_backbone(tmp_path: Path) -> None:
    first = args(tmp_path / "first", images=0, vae=0, steps=1)
    first.out.mkdir()
    train_stage("motion", first, 0)
    start = export(first)
    options = replace(first, out=tmp_path / "second", start=start)
    assert stages(options) == ("motion",)
    ours, theirs = state(initial(options)), load_file(start)
    assert all(torch.equal(tensor, theirs[key].float()) for key, tensor in ours.items())


def test_weights_of_something_else_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "micro.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"has micro\.safetensors, but no training record"):
        train.main(args(tmp_path))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
