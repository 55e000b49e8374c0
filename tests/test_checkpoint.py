"""Our checkpoint files: what goes in comes out, and nothing else is let in."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import Backbone, build, state
from anyi2v.checkpoints import checkpoint
from anyi2v.checkpoints.checkpoint import load, save, save_parts
from anyi2v.checkpoints.header import read_config, read_header
from anyi2v.errors import CheckpointError, InputError, ResourceError
from anyi2v.method.config import MethodConfig

WORDS = ("<pad>", "<bos>", "<eos>", "a", "red", "circle")
CONFIG = BackboneConfig(
    name="tiny",
    unet=UNetConfig(
        channels=(4, 8),
        attention=(True, False),
        layers=1,
        context_dim=8,
        heads=2,
        groups=2,
        temporal=MotionConfig(heads=2, groups=2, max_frames=4, mid=True),
    ),
    vae=VAEConfig(channels=(4, 4), layers=1, groups=2),
    text=TextConfig(width=8, layers=1, heads=2, length=6, vocab_size=len(WORDS), words=WORDS),
    height=8,
    width=8,
    frames=2,
    method={"pca_dim": 4},
)


def tiny_backbone(config: BackboneConfig = CONFIG) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build(config)
        # motion modules begin as the identity; make them count
        for name, parameter in backbone.unet.named_parameters():
            if "temporals" in name and "proj_out" in name:
                torch.nn.init.normal_(parameter)
    return backbone


def parts_of(path: Path, change: str = "temporals") -> Path:
    """A file of parts on the checkpoint `path`: other values in all tensors whose key contains `change`."""
    other = load(path)
    for key, tensor in state(other).items():
        if change in key:
            tensor.add_(1)
    save_parts(other, path.with_name("parts.safetensors"), path, dtype=torch.float32)
    return path.with_name("parts.safetensors")


def test_parts_hold_what_differs_and_the_rest_comes_from_their_base(path: Path) -> None:
    parts = parts_of(path)
    keys = read_header(parts).shapes
    assert keys
    assert all("temporals" in key for key in keys)
    whole, base = state(load(parts)), state(load(path))
    for key, tensor in base.items():
        torch.testing.assert_close(whole[key], tensor + 1 if key in keys else tensor, rtol=0, atol=0)


def test_parts_without_their_base_say_where_to_put_it(path: Path) -> None:
    parts = parts_of(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"the rest is in 'tiny'; put tiny\.safetensors next to it"):
        load(parts)


def test_parts_on_another_base_are_refused(path: Path) -> None:
    parts = parts_of(path)
    other = load(path)
    other.unet.conv_in.weight.add_(1)
    save(other, path)
    with pytest.raises(CheckpointError, match="made for a different 'tiny'"):
        load(parts)


def test_parts_of_parts_are_refused(path: Path) -> None:
    parts = parts_of(path)
    with pytest.raises(CheckpointError, match="has only parts"):
        save_parts(load(parts), path.with_name("more.safetensors"), parts, dtype=torch.float32)


def test_parts_that_lack_a_tensor_are_refused(path: Path) -> None:
    parts = parts_of(path)
    tensors = load_file(path)
    del tensors["unet.conv_in.bias"]
    header = read_header(parts).metadata
    save_file(tensors, path, metadata={"sha256": header["base_sha256"]})
    with pytest.raises(CheckpointError, match=r"1 missing: unet\.conv_in\.bias"):
        load(parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good checkpoint."""
    path = tmp_path / "tiny.safetensors"
    save(tiny_backbone(), path)
    return path


def rewrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Exchanges the tensors of a checkpoint and keeps its metadata."""
    with safe_open(path, framework="pt") as file:
        metadata: Any = file.metadata()
    save_file(tensors, path, metadata)


@torch.no_grad()
def test_what_was_saved_is_loaded(path: Path) -> None:
    original, loaded = tiny_backbone(), load(path)
    assert loaded.config == original.config == read_config(path)
    before, after = state(original), state(loaded)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # not only the parameters: position tables and masks too; attention has another kernel for training
    for network in original.networks.values():
        network.eval().requires_grad_(False)
    text = loaded.encode_text(["a red circle", ""])
    assert torch.equal(text, original.encode_text(["a red circle", ""]))
    z = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.unet(z, 5, text), original.unet(z, 5, text))
    assert torch.equal(loaded.vae.decode(z[:, 0]), original.vae.decode(z[:, 0]))


def test_loaded_networks_are_for_inference(path: Path) -> None:
    for network in load(path).networks.values():
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])


def test_saving_again_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_the_autoencoder_stays_in_float32(path: Path, dtype: torch.dtype) -> None:
    loaded, moved = load(path, dtype=dtype), load(path).to("cpu", dtype)
    for backbone in (loaded, moved):
        assert backbone.dtype == dtype
        assert backbone.device == torch.device("cpu")
        assert {p.dtype for p in backbone.vae.parameters()} == {torch.float32}
        assert {p.dtype for p in (*backbone.unet.parameters(), *backbone.text.parameters())} == {dtype}
        assert backbone.encode_text(["a circle"]).dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(state(loaded).values(), state(moved).values(), strict=True))


def test_other_readers_of_the_format_agree(path: Path) -> None:
    theirs, ours = load_file(path), state(tiny_backbone())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_brain_floats_are_stored_bit_by_bit(tmp_path: Path) -> None:
    save(tiny_backbone(), tmp_path / "x.safetensors", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(stored[key], tensor.bfloat16()) for key, tensor in state(tiny_backbone()).items())


def test_storing_in_half_precision_rounds_once(path: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    save(load(path), half, dtype=torch.float16)
    assert half.stat().st_size < 0.75 * path.stat().st_size
    stored = load_file(half)
    assert all(torch.equal(stored[key], tensor.half()) for key, tensor in state(load(path)).items())


def test_metadata_is_kept_but_cannot_replace_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(tiny_backbone(), path, metadata={"trained": "on squares", "format": "0"})
    with safe_open(path, framework="pt") as file:
        metadata: Any = file.metadata()
    assert metadata["trained"] == "on squares"
    assert read_config(path) == CONFIG


@settings(max_examples=15, deadline=None)
@given(data=st.data(), how=st.sampled_from(["missing", "unexpected", "wrong shape"]))
def test_any_tampered_tensor_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, how: str
) -> None:
    path = tmp_path_factory.mktemp("tampered") / "x.safetensors"
    save(tiny_backbone(), path)
    tensors = load_file(path)
    key = data.draw(st.sampled_from(sorted(tensors)))
    if how == "missing":
        del tensors[key]
    elif how == "unexpected":
        key += "_ema"
        tensors[key] = torch.zeros(1)
    else:
        tensors[key] = tensors[key][..., None]
    rewrite(path, tensors)
    with pytest.raises(CheckpointError, match=f"1 [a-z ]*{how}: {key}"):
        load(path)


def test_many_problems_are_counted_and_five_are_named(path: Path) -> None:
    tensors = load_file(path)
    lost = [key for key in tensors if key.startswith("text.")]
    rewrite(path, {key: tensor for key, tensor in tensors.items() if key not in lost})
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert f"{len(lost)} missing" in str(caught.value)
    assert sum(key in str(caught.value).replace(",", " ").split() for key in lost) <= 5


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(CheckpointError):
        load(path)


def test_a_foreign_file_is_refused_with_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"single file .*anyi2v convert"):
        load(path)


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_is_left_behind_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    path = tmp_path / "x.safetensors"
    if existed:
        path.write_bytes(b"old")

    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_backbone(), path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.safetensors", b"old")] * existed


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*folder"):
        save(tiny_backbone(), tmp_path / "folder")


def test_a_value_beyond_half_precision_is_refused_by_name(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.unet.conv_out.weight[1] = 1e6
    with pytest.raises(CheckpointError, match=r"float16.*unet\.conv_out\.weight.*1e\+06"):
        save(backbone, tmp_path / "x.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_others_may_read_a_checkpoint_as_any_new_file(path: Path) -> None:
    ordinary = path.with_name("ordinary")
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_a_backbone_without_motion_modules_round_trips(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, unet=dataclasses.replace(CONFIG.unet, temporal=None))
    save(tiny_backbone(config), tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").unet.temporal_names == ()


def test_the_method_of_a_backbone_has_its_own_settings_below_the_callers() -> None:
    backbone = build(dataclasses.replace(CONFIG, method={"steps": 9, "lr": 0.5}))
    assert backbone.method() == MethodConfig(steps=9, lr=0.5)
    assert backbone.method(lr=0.25, pca_dim=None) == MethodConfig(steps=9, lr=0.25, pca_dim=None)
    official = dataclasses.replace(MethodConfig.official(), steps=3, lr=0.5)
    assert backbone.method("official", steps=3) == backbone.method(recipe="official", steps=3) == official
    with pytest.raises(InputError, match="no setting 'step'; the closest are"):
        backbone.method(step=3)
    with pytest.raises(InputError, match="unknown recipe 'officiel'; there are paper, official"):
        backbone.method("officiel")
