"""LoRAs that are baked in by `anyi2v convert`."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from anyi2v import cli
from anyi2v.backbone.networks import state
from anyi2v.checkpoints.checkpoint import load
from anyi2v.errors import CheckpointError, InputError
from weights_converters.command import convert
from weights_converters.loras import file_and_weight

from . import foreign
from .layouts import Tensors

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MOTION = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
TARGETS = {
    "lora": f"unet.{QUERY}.weight",
    "adapter": f"unet.{QUERY}.weight",
    "motion_lora": "unet.down_blocks.0.temporals.0.transformer_blocks.0.attention_blocks.0.to_q.weight",
}


def low_rank(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)


def files(folder: Path) -> dict[str, Path]:
    """One LoRA for each option; kohya's has alpha 1 for rank 2."""
    stems = {"lora": f"lora_unet_{QUERY.replace('.', '_')}.lora_"}
    stems["adapter"] = f"{QUERY.replace('.to_q', '')}.processor.to_q_lora."
    stems["motion_lora"] = f"{MOTION}.processor.to_q_lora."
    paths = {}
    for seed, (name, stem) in enumerate(stems.items()):
        down, up = low_rank(seed)
        tensors: Tensors = {f"{stem}down.weight": down, f"{stem}up.weight": up}
        if name == "lora":
            tensors[f"{stem.removesuffix('.lora_')}.alpha"] = torch.tensor(1.0)
        paths[name] = foreign.write(tensors, folder / f"{name}.safetensors")
    return paths


@settings(max_examples=8)
@given(
    weights=st.fixed_dictionaries({name: st.sampled_from([None, -0.5, 0.0, 0.8]) for name in TARGETS}),
    alpha=st.sampled_from(["file", "ignored"]),
    dtype=st.sampled_from(["fp16", "fp32"]),
)
def test_each_update_is_added_with_its_weight_and_rounded_once(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, float | None], alpha: str, dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("lora")
    base = foreign.write(foreign.ldm(torch.float16), folder / "base.safetensors")
    motion = foreign.write(foreign.motion(dtype=torch.float16), folder / "mm.ckpt")
    out, paths = folder / "out.safetensors", files(folder)
    asked = {name: (f"{paths[name]}:{weight}",) for name, weight in weights.items() if weight is not None}
    convert(foreign.options(base, out, motion_module=motion, dtype=dtype, lora_alpha=alpha, **asked))
    wanted = {key: tensor.double() for key, tensor in state(foreign.backbone(torch.float16)).items()}
    for seed, (name, key) in enumerate(TARGETS.items()):
        down, up = low_rank(seed)
        scale = 0.5 if name == "lora" and alpha == "file" else 1.0
        wanted[key] = wanted[key] + (weights[name] or 0.0) * scale * (up.double() @ down.double())
    written = load_file(out)
    changed = set(TARGETS.values())
    assert all(torch.equal(written[key].double(), wanted[key]) for key in wanted if key not in changed)
    # float32 sums of three products of order one, and half a unit in the last place of numbers up to 16 in float16
    limit = 1e-5 if dtype == "fp32" else 4e-3 + 1e-5
    assert all((written[key].double() - wanted[key]).abs().max() <= limit for key in changed)
    with safe_open(out, framework="pt") as file:
        known = file.metadata()
    assert set(json.loads(known.get("loras", "{}"))) == {paths[name].name for name in asked}
    assert len(json.loads(known["sources"])) == 2 + len(asked)


def test_baking_in_is_the_same_as_adding_while_loading(tmp_path: Path) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    path = files(tmp_path)["lora"]
    convert(foreign.options(base, tmp_path / "plain.safetensors", dtype="fp32", name="x"))
    convert(foreign.options(base, tmp_path / "baked.safetensors", dtype="fp32", name="x", lora=(f"{path}:0.7",)))
    now, before = load(tmp_path / "plain.safetensors", loras=[(path, 0.7)]), load(tmp_path / "baked.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(state(now).values(), state(before).values(), strict=True))


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("adapter", "motion_lora", r"--adapter takes: AnimateDiff domain adapter"),
        ("motion_lora", "lora", r"--motion-lora takes: AnimateDiff motion LoRA"),
        ("lora", "motion_lora", r"--lora takes: LoRA"),
    ],
)
def test_a_lora_of_another_kind_is_named(tmp_path: Path, option: str, name: str, message: str) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    path = files(tmp_path)[name]
    with pytest.raises(CheckpointError, match=message):
        convert(foreign.options(base, tmp_path / "out.safetensors", **{option: (str(path),)}))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_weight_must_be_a_number(tmp_path: Path) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    for text, message in (("x.safetensors:much", "'much' is not a weight"), ("x.safetensors:nan", "finite weight")):
        with pytest.raises(InputError, match=message):
            convert(foreign.options(base, tmp_path / "out.safetensors", lora=(text,)))


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.7", "style.safetensors", 0.7),
        ("style.safetensors:-1e-1", "style.safetensors", -0.1),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:0.5", "a:b.safetensors", 0.5),
        ("folder:1/x.safetensors:2", "folder:1/x.safetensors", 2.0),
        ("name:0.5", "name:0.5", 1.0),
        ("name:0.5:0.25", "name:0.5", 0.25),
        (r"C:\files\x.safetensors:0.7", r"C:\files\x.safetensors", 0.7),
        (r"C:\files\x.safetensors", r"C:\files\x.safetensors", 1.0),
    ],
)
def test_a_name_may_hold_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, weight: float
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert file_and_weight(text, "--lora") == (Path(name), weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C:0.7", "write FILE, or FILE:WEIGHT"),
        (":0.7", "write FILE, or FILE:WEIGHT"),
        ("x:inf", "finite weight"),
        ("x:", "'' is not a weight"),
        (r"C:\absent.safetensors", "there is no such file"),
    ],
)
def test_what_is_no_file_and_weight_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--motion-lora .*{message}"):
        file_and_weight(text, "--motion-lora")


def test_a_weight_that_a_drive_alone_has_needs_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if a file C lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C").write_bytes(b"")
    with pytest.raises(InputError, match="write FILE"):
        file_and_weight("C:0.7", "--lora")
    assert file_and_weight("C", "--lora") == (Path("C"), 1.0)


def test_home_is_found_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x:1.pt").write_bytes(b"")
    assert file_and_weight("~/y.pt:0.5", "--lora") == (tmp_path / "y.pt", 0.5)
    assert file_and_weight("~/x:1.pt", "--lora") == (tmp_path / "x:1.pt", 1.0)


def test_a_flag_that_is_given_twice_adds_both() -> None:
    args = ["convert", "--base", "b", "--lora", "x", "--lora", "y:0.5", "--motion-lora", "m", "--motion-lora", "n"]
    found = cli.parse(args)
    assert (found.lora, found.motion_lora, found.adapter) == (("x", "y:0.5"), ("m", "n"), ())


def test_loras_of_one_name_are_all_recorded_and_one_file_twice_adds_up(tmp_path: Path) -> None:
    base, out = foreign.write(foreign.ldm(), tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    paths = [tmp_path / folder / "x.safetensors" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        files(path.parent)["lora"].rename(path)
    asked = (f"{paths[0]}:0.5", f"{paths[1]}:0.25", f"{paths[1]}:0.5")
    convert(foreign.options(base, out, dtype="fp32", lora=asked))
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["loras"]) == {str(paths[0]): 0.5, str(paths[1]): 0.75}
    down, up = low_rank(0)
    before = state(foreign.backbone())[TARGETS["lora"]].double()
    expected = before + 1.25 * 0.5 * (up.double() @ down.double())
    assert (load_file(out)[TARGETS["lora"]].double() - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["LoHa", "DoRA", "IA3"])
def test_relatives_of_lora_are_baked_in(tmp_path: Path, kind: str) -> None:
    base, out = foreign.write(foreign.ldm(), tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    stem, key = f"lora_unet_{QUERY.replace('.', '_')}", TARGETS["lora"]
    down, up = low_rank(0)
    before = state(foreign.backbone())[key].double()
    if kind == "LoHa":
        names = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up.clone(), "hada_w2_b": down.clone()}
        trained = before + (up.double() @ down.double()) ** 2
    elif kind == "DoRA":
        names = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": torch.full((32, 1), 2.0)}
        total = before + up.double() @ down.double()
        trained = 2 * total / (total**2).sum(1, keepdim=True).sqrt()
    else:
        names = {"weight": torch.full((32,), 0.5), "on_input": torch.tensor(False)}
        trained = 1.5 * before
    path = foreign.write({f"{stem}.{side}": x for side, x in names.items()}, tmp_path / "x.safetensors")
    convert(foreign.options(base, out, dtype="fp32", lora=(f"{path}:0.5",)))
    assert (load_file(out)[key].double() - (before + trained) / 2).abs().max() <= 2e-5


def test_keys_that_match_nothing_are_an_error_or_a_warning(tmp_path: Path) -> None:
    """A motion LoRA for a base without motion modules matches nothing at all."""
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    out, path = tmp_path / "out.safetensors", files(tmp_path)["motion_lora"]
    with pytest.raises(CheckpointError, match="2 of 2 keys match no weight"):
        convert(foreign.options(base, out, motion_lora=(str(path),)))
    assert not out.exists()
    with pytest.warns(UserWarning, match="2 of 2 keys match no weight"):
        convert(foreign.options(base, out, motion_lora=(str(path),), lora_unmatched="warning"))
    assert out.exists()
