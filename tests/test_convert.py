"""Single files and motion modules to one checkpoint: every tensor accounted for, or an error and no file."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anyi2v.backbone.config import MotionConfig, ScheduleConfig
from anyi2v.backbone.networks import state
from anyi2v.checkpoints import foreign as files_of_others
from anyi2v.checkpoints.checkpoint import load
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import CheckpointError, InputError, ResourceError
from weights_converters import command
from weights_converters.command import convert

from . import foreign
from .layouts import ADAPTER, Tensors, spatial, to_clip_text, to_ldm_vae, to_motion_adapter, to_old_vae

UNET, VAE, TEXT = foreign.networks()
VERSIONS = {
    "v1": dataclasses.replace(foreign.SMALL.unet, temporal=MotionConfig(max_frames=24, mid=False), norm_over="clip"),
    "v2": foreign.SMALL.unet,
    "v3": dataclasses.replace(foreign.SMALL.unet, temporal=MotionConfig(mid=False)),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return foreign.write(foreign.ldm(), tmp_path / "base.safetensors")


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: Any = file.metadata()
    return found


@settings(max_examples=15)
@given(
    source=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    stored=st.sampled_from(sorted(DTYPES)),
    version=st.sampled_from(sorted(VERSIONS)),
    suffixes=st.tuples(*[st.sampled_from([".safetensors", ".ckpt"])] * 2),
    wrapper=st.sampled_from(["", "state_dict"]),
    module=st.booleans(),
    extras=st.booleans(),
)
def test_a_single_file_and_a_motion_module_make_a_backbone(
    tmp_path_factory: pytest.TempPathFactory,
    source: torch.dtype,
    stored: str,
    version: str,
    suffixes: tuple[str, str],
    wrapper: str,
    module: bool,
    extras: bool,
) -> None:
    """Whatever the layout, dtype and wrapper; each stored tensor is the source's, rounded once."""
    folder = tmp_path_factory.mktemp("single")
    theirs, modules = foreign.ldm(source, extras), foreign.motion(version, source)
    base = foreign.write(theirs, folder / f"base{suffixes[0]}", wrapper, module)
    motion = foreign.write(modules, folder / f"motion{suffixes[1]}", wrapper, module)
    out = folder / "out.safetensors"
    said = convert(foreign.options(base, out, motion_module=motion, dtype=stored))
    backbone = load(out)
    assert backbone.config == dataclasses.replace(
        foreign.SMALL, name="out", unet=VERSIONS[version], schedule=ScheduleConfig()
    )
    ours = state(foreign.backbone(source))
    wanted = {key: x for key, x in ours.items() if version == "v2" or "mid_block.temporals" not in key}
    written = load_file(out)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[key], wanted[key].to(DTYPES[stored])) for key in wanted)
    assert f"{len(wanted)} tensors" in said
    assert {path.name for path in folder.iterdir()} == {base.name, motion.name, out.name}


def layout_of(base: str, motion: str, version: str, dtype: torch.dtype) -> dict[str, Tensors]:
    """The files of a base and of motion modules in some layout, by the option that they are given with."""
    unet, vae, text = foreign.networks(dtype)
    files = {"base": foreign.ldm(dtype)}
    if base != "single file":
        files = {
            "base": spatial(unet),
            "vae": {"new names": vae, "old names": to_old_vae(vae), "LDM's": to_ldm_vae(vae, 2)}[base],
            "text": to_clip_text(text, prefix="text_model." if base == "new names" else ""),
        }
    if motion == "AnimateDiff":
        return {**files, "motion_module": foreign.motion(version, dtype)}
    rows = 24 if version == "v1" else 32
    adapter = {
        key: torch.zeros(1, rows, 32) if key.endswith(".pe") else tensor
        for key, tensor in to_motion_adapter(unet).items()
        if version == "v2" or not key.startswith("mid_block")
    }
    return {**files, "motion_module": adapter}


@settings(max_examples=25)
@given(
    base=st.sampled_from(["single file", "new names", "old names", "LDM's"]),
    motion=st.sampled_from(["AnimateDiff", "MotionAdapter"]),
    version=st.sampled_from(sorted(VERSIONS)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    suffix=st.sampled_from([".safetensors", ".ckpt"]),
    wrapper=st.sampled_from(["", "state_dict"]),
    module=st.booleans(),
)
def test_the_way_back_gives_the_original_keys_and_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    base: str,
    motion: str,
    version: str,
    dtype: torch.dtype,
    suffix: str,
    wrapper: str,
    module: bool,
) -> None:
    """Stored in their own dtype, all kept tensors of the sources can be restored from file and plan alone."""
    folder = tmp_path_factory.mktemp("back")
    sources = layout_of(base, motion, version, dtype)
    paths = {name: foreign.write(x, folder / f"{name}{suffix}", wrapper, module) for name, x in sources.items()}
    named = {value: key for key, value in DTYPES.items()}
    out = folder / "out.safetensors"
    norm = "frame" if motion == "MotionAdapter" else None
    asked = foreign.options(paths.pop("base"), out, **paths, dtype=named[dtype], motion_norm=norm)
    convert(asked)
    written = load_file(out)
    _, parts = command.assemble(asked, out)
    found: dict[str, Tensors] = {name: {} for name in sources}
    for name, part in parts.items():
        prefix = "unet." if name == "motion" else f"{name}."
        home = "motion_module" if name == "motion" else name if name in sources else "base"
        for key in part.plan.parts:
            sizes = [part.source.shapes[source][0] for source in part.plan.sources(key)]
            for source, piece in zip(part.plan.sources(key), written[prefix + key].split(sizes), strict=True):
                found[home][part.source.original(source)] = piece.reshape(part.source.shapes[source])
    dropped = {part.source.original(key) for part in parts.values() for key in part.plan.report.dropped}
    for file, originals in sources.items():
        kept = {("module." if module else "") + key: x for key, x in originals.items()}
        assert kept.keys() == found[file].keys() | (kept.keys() & dropped)
        assert all(torch.equal(found[file][key], kept[key]) and found[file][key].dtype == dtype for key in found[file])


def test_sources_and_tensors_are_known_by_their_checksums(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(foreign.options(base, out))
    known = metadata(out)
    sha = hashlib.sha256(base.read_bytes()).hexdigest()
    assert json.loads(known["sources"]) == {f"{tmp_path.name}/base.safetensors": sha}
    tensors = load_file(out)
    order = list(state(load(out)))
    raw = b"".join(tensors[key].numpy().tobytes() for key in order)
    assert known["sha256"] == hashlib.sha256(raw).hexdigest()


def test_equal_sources_give_equal_bytes(base: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(foreign.options(base, tmp_path / f"{name}.safetensors", name="same"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_without_motion_module_the_base_keeps_its_own_schedule(base: Path, tmp_path: Path) -> None:
    convert(foreign.options(base, tmp_path / "out.safetensors"))
    config = read_config(tmp_path / "out.safetensors")
    assert config.unet.temporal is None
    assert config.schedule == ScheduleConfig(curve="scaled_linear", final_alpha_one=False)


def test_version_1_and_3_without_positions_must_be_told_apart_by_the_user(base: Path, tmp_path: Path) -> None:
    motion = foreign.write(foreign.motion("v1", positions=False), tmp_path / "mm.ckpt")
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"mm\.ckpt.*same tensors.*no position tables.*--motion-version"):
        convert(foreign.options(base, out, motion_module=motion))
    assert not out.exists()
    for version in ("v1", "v3"):
        convert(foreign.options(base, out, motion_module=motion, motion_version=version))
        assert read_config(out).unet == VERSIONS[version]
    with pytest.raises(CheckpointError, match=r"v2 contradicts the file.*mid block.*missing"):
        convert(foreign.options(base, out, motion_module=motion, motion_version="v2"))


def test_version_2_needs_no_positions(base: Path, tmp_path: Path) -> None:
    motion = foreign.write(foreign.motion("v2", positions=False), tmp_path / "mm.ckpt")
    convert(foreign.options(base, tmp_path / "out.safetensors", motion_module=motion))
    assert read_config(tmp_path / "out.safetensors").unet == VERSIONS["v2"]


@pytest.mark.parametrize("norm", ["frame", "clip"])
def test_a_motion_adapter_of_another_size_needs_to_be_told_how_it_was_trained(
    base: Path, tmp_path: Path, norm: str
) -> None:
    theirs = to_motion_adapter(UNET)
    tables = {key: torch.zeros(1, 32, 8) for key in theirs if key.endswith(".pe")}
    motion = foreign.write(theirs | tables, tmp_path / "adapter.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors.*unpublished widths.*--motion-norm"):
        convert(foreign.options(base, out, motion_module=motion))
    convert(foreign.options(base, out, motion_module=motion, motion_norm=norm))
    config = read_config(out)
    assert config.unet.temporal == MotionConfig(mid=True, norm_over=norm)  # pyright: ignore[reportArgumentType]
    assert config.schedule.curve == ("linear" if norm == "frame" else "scaled_linear")


@pytest.mark.parametrize(("rows", "version"), [(24, "v1"), (32, "v3")])
def test_the_configuration_of_a_motion_adapter_tells_its_version(
    base: Path, tmp_path: Path, rows: int, version: str
) -> None:
    """Also where its file has lost the position tables."""
    theirs = {key: x for key, x in to_motion_adapter(UNET).items() if not key.endswith(".pe") and "mid_b" not in key}
    foreign.write(theirs, tmp_path / "adapter" / "x.safetensors")
    settings = {"block_out_channels": [32, 64], "motion_layers_per_block": 1, "motion_max_seq_length": rows}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(ADAPTER | settings))
    out = tmp_path / "out.safetensors"
    convert(foreign.options(base, out, motion_module=tmp_path / "adapter", motion_norm="frame"))
    assert read_config(out).unet == VERSIONS[version]


def test_the_norm_of_animatediffs_own_files_is_not_a_question(base: Path, tmp_path: Path) -> None:
    motion = foreign.write(foreign.motion(), tmp_path / "mm.ckpt")
    with pytest.raises(CheckpointError, match="AnimateDiff's own"):
        convert(foreign.options(base, tmp_path / "o.safetensors", motion_module=motion, motion_norm="clip"))


VAES: dict[str, Tensors] = {
    "new": VAE,
    "old": to_old_vae(VAE),
    "ldm": to_ldm_vae(VAE, 2) | {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)},
    "single": foreign.ldm(),
}


@pytest.mark.parametrize("name", VAES)
def test_another_autoencoder_takes_the_place_of_the_bases(tmp_path: Path, name: str) -> None:
    """In all four layouts; that of the base may be missing or broken then."""
    theirs = {key: tensor for key, tensor in foreign.ldm().items() if not key.startswith("first_stage_model.e")}
    base = foreign.write(theirs, tmp_path / "base.safetensors")
    vae = foreign.write(VAES[name], tmp_path / "vae.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"base\.safetensors.*encoder\.conv_in\.weight is missing"):
        convert(foreign.options(base, out))
    convert(foreign.options(base, out, vae=vae, dtype="fp32"))
    assert all(torch.equal(load_file(out)[f"vae.{key}"], VAE[key]) for key in VAE)


def test_a_unet_alone_needs_its_companions(tmp_path: Path) -> None:
    base = foreign.write(spatial(UNET), tmp_path / "unet.safetensors")
    text = foreign.write(to_clip_text(TEXT, prefix=""), tmp_path / "text.safetensors")
    vae = foreign.write(VAE, tmp_path / "vae.safetensors")
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"unet\.safetensors has no text; give a file or folder with --text"):
        convert(foreign.options(base, out, vae=vae))
    convert(foreign.options(base, out, vae=vae, text=text))
    assert load(out).config.text == foreign.SMALL.text


def lose(tensors: Tensors) -> Tensors:
    return {key: x for key, x in tensors.items() if "middle_block.1." not in key}


def misshape(tensors: Tensors) -> Tensors:
    return tensors | {"model.diffusion_model.out.2.weight": torch.zeros(4, 3, 3, 3)}


def whole_numbers(tensors: Tensors) -> Tensors:
    return tensors | {"model.diffusion_model.out.2.weight": torch.zeros(4, 32, 3, 3, dtype=torch.int8)}


def not_finite(tensors: Tensors) -> Tensors:
    key = "model.diffusion_model.out.2.weight"
    return tensors | {key: tensors[key] / 0, "first_stage_model.quant_conv.bias": torch.full((8,), torch.nan)}


BROKEN: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (lose, r"base.*26 that the network needs but no source has: mid_block\.attentions\.0\.norm\.weight"),
    (lambda x: x | {"model.diffusion_model.x": torch.zeros(1)}, r"base.*1 without a rule: model\.diffusion_model\.x"),
    (misshape, r"base.*1 of the wrong shape: model\.diffusion_model\.out\.2\.weight.*\(4, 3, 3, 3\) instead of"),
    (whole_numbers, r"base.*1 of a dtype other than float16.*out\.2\.weight \(int8\)"),
    (not_finite, r"2 tensors do not fit into torch.float16: unet\.conv_out\.weight.*inf.*vae\.quant_conv\.bias.*nan"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN)
@pytest.mark.parametrize("existed", [False, True])
def test_what_is_wrong_is_counted_and_named_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[Tensors], Tensors], message: str, existed: bool
) -> None:
    base = foreign.write(spoil(foreign.ldm()), tmp_path / "base.safetensors")
    out = tmp_path / "out" / "x.safetensors"
    if existed:
        out.parent.mkdir()
        save_file({}, out, metadata={"anyi2v": "of before"})
    before = [path.read_bytes() for path in out.parent.glob("*")]
    with pytest.raises(CheckpointError, match=message):
        convert(foreign.options(base, out))
    assert [path.read_bytes() for path in out.parent.glob("*")] == before
    assert len(before) == existed


def test_a_file_that_is_no_backbone_of_ours_is_not_replaced(tmp_path: Path) -> None:
    base = foreign.write(foreign.ldm(), tmp_path / "base.safetensors")
    out = foreign.write({"lora": torch.zeros(1)}, tmp_path / "x.safetensors")
    before = out.read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=r"x\.safetensors exists and is not an anyi2v checkpoint"):
            convert(foreign.options(base, out))
        assert out.read_bytes() == before
        out.write_bytes(before := b"no weights at all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in": (32, 9, 3, 3)}, "9 channels instead of 4: an inpainting"),
        ({"proj_in": (32, 32)}, "projections are linear: SD-2"),
    ],
)
def test_relatives_are_named(tmp_path: Path, change: dict[str, tuple[int, ...]], message: str) -> None:
    theirs = spatial(UNET)
    for part, shape in change.items():
        theirs |= {key: torch.zeros(shape) for key in theirs if key.endswith(f"{part}.weight")}
    base = foreign.write(theirs, tmp_path / "unet.safetensors")
    other = foreign.write(foreign.ldm(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=message):
        convert(foreign.options(base, tmp_path / "o.safetensors", vae=other, text=other))


def test_a_file_of_another_kind_is_named(base: Path, tmp_path: Path) -> None:
    lora = foreign.write({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors looks like: LoRA, kohya.*--motion-module takes"):
        convert(foreign.options(base, tmp_path / "o.safetensors", motion_module=lora))


def test_a_full_disk_is_noticed_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = command.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(ResourceError, match=r"needs 0\.00 GB, but .* has only 0\.00 GB free"):
        convert(foreign.options(base, tmp_path / "deep" / "out.safetensors"))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(("name", "message"), [("base.safetensors", "also a source"), ("x.ckpt", "must end with")])
def test_a_source_is_never_overwritten(base: Path, tmp_path: Path, name: str, message: str) -> None:
    before = base.read_bytes()
    with pytest.raises(InputError, match=message):
        convert(foreign.options(base, tmp_path / name))
    assert base.read_bytes() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_is_mapped_anew_so_that_little_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """With a window of 100 kB and about 2 MB of weights, the mapping is renewed at least ten times."""
    base = foreign.write(foreign.ldm(), tmp_path / f"base{suffix}")
    kind = files_of_others.SafetensorsFile if suffix == ".safetensors" else files_of_others.PickledFile
    opened: list[Path] = []
    real = kind._open

    def counted(file: Any) -> Any:
        opened.append(file.path)
        return real(file)

    monkeypatch.setattr(kind, "_open", counted)
    monkeypatch.setattr(files_of_others, "WINDOW", 10**5)
    convert(foreign.options(base, tmp_path / "out.safetensors"))
    assert base.stat().st_size > 2e6
    assert len(opened) > 10
