"""What a base says of itself outside of its weights: honoured, or refused by name, never ignored."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyi2v.backbone.config import ScheduleConfig
from anyi2v.checkpoints.header import read_config
from anyi2v.errors import CheckpointError
from weights_converters import base_settings
from weights_converters.command import convert
from weights_converters.inspection import describe
from weights_converters.sources import open_source

from . import foreign
from .layouts import SD15_SCHEDULER, Tensors

YAML = """model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    {setting}
    unet_config:
      params: {{in_channels: 4, num_heads: 8, transformer_depth: 1}} # num_heads: 5
"""
SD = ScheduleConfig(curve="scaled_linear", final_alpha_one=False)
MARK = torch.tensor([])


def base(
    folder: Path, *, tensors: Tensors | None = None, metadata: dict[str, str] | None = None, yaml: str = ""
) -> Path:
    """A single file, with more tensors, metadata, and a yaml beside it."""
    path = folder / "base.safetensors"
    save_file({key: x.contiguous() for key, x in (foreign.ldm() | (tensors or {})).items()}, path, metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(YAML.format(setting=yaml))
    return path


def place_scheduler(folder: Path, **changes: object) -> Path:
    """The scheduler of a pipeline's folder."""
    path = folder / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(SD15_SCHEDULER | changes))
    (folder / "model_index.json").write_text("{}")
    return path


V_PREDICTION = {
    "marker": (lambda f: base(f, tensors={"v_pred": MARK}), "the tensor v_pred"),
    "marker of EDM": (lambda f: base(f, tensors={"edm_vpred.sigma_max": torch.tensor(80.0)}), "edm_vpred"),
    "yaml": (lambda f: base(f, yaml='parameterization: "v"  # as SD-2'), r"parameterization in .*base\.yaml"),
    "yaml, inline": (
        lambda f: base(f, yaml="more: {x: 1, parameterization: 'v'}"),
        r"parameterization in .*base\.yaml",
    ),
    "metadata": (lambda f: base(f, metadata={"modelspec.prediction_type": "v"}), r"modelspec\.prediction_type"),
    "other metadata": (lambda f: base(f, metadata={"modelspec.predict_key": "v"}), r"modelspec\.predict_key"),
    "pipeline around the file": (
        lambda f: base(place_scheduler(f, prediction_type="v_prediction").parent.parent),
        r"prediction_type in .*scheduler_config\.json",
    ),
}


@pytest.mark.parametrize("name", V_PREDICTION)
@pytest.mark.parametrize("motion", [False, True])
def test_a_base_that_predicts_v_is_refused_with_a_motion_module_and_without(
    tmp_path: Path, name: str, motion: bool
) -> None:
    make, place = V_PREDICTION[name]
    path, out = make(tmp_path), tmp_path / "out.safetensors"
    extra = {"motion_module": foreign.write(foreign.motion(), tmp_path / "mm.ckpt")} if motion else {}
    epsilon = tmp_path / "epsilon.json"
    epsilon.write_text(json.dumps(SD15_SCHEDULER))
    for schedule in (None, epsilon):  # the schedule is another matter
        with pytest.raises(CheckpointError, match=rf"base\.safetensors: the UNet predicts 'v.*{place}.*only 'epsilon'"):
            convert(foreign.options(path, out, schedule=schedule, **extra))
    assert not out.exists()
    assert "cannot be converted" in describe(path) and "the UNet predicts" in describe(path)


@pytest.mark.parametrize("value", ["epsilon", "eps", "Epsilon "])
def test_a_base_that_says_that_it_predicts_the_noise_is_taken(tmp_path: Path, value: str) -> None:
    path = base(tmp_path, metadata={"modelspec.prediction_type": value}, yaml="parameterization: eps")
    said = convert(foreign.options(path, tmp_path / "out.safetensors"))
    assert said.endswith("schedule: that of Stable Diffusion 1.x")
    assert f"predicts: {value}, according to modelspec.prediction_type in the metadata" in describe(path)


def test_the_schedule_that_was_asked_for_is_checked_and_named(tmp_path: Path) -> None:
    path, mine = base(tmp_path), tmp_path / "mine.json"
    for change, message in (
        ({"prediction_type": "v_prediction"}, "prediction_type is 'v_prediction'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"thresholding": True}, "thresholding is True"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
    ):
        mine.write_text(json.dumps(SD15_SCHEDULER | change))
        with pytest.raises(CheckpointError, match=rf"mine\.json: scheduler: {message}"):
            convert(foreign.options(path, tmp_path / "out.safetensors", schedule=mine))


def test_a_zero_terminal_snr_is_refused_where_the_schedule_is_used(tmp_path: Path) -> None:
    """AnimateDiff brings another schedule; what it is used with is said."""
    out, motion = tmp_path / "out.safetensors", foreign.write(foreign.motion(), tmp_path / "mm.ckpt")
    path = base(tmp_path, tensors={"ztsnr": MARK})
    with pytest.raises(CheckpointError, match=r"ztsnr.*zero terminal"):
        convert(foreign.options(path, out))
    assert "schedule: AnimateDiff's" in convert(foreign.options(path, out, motion_module=motion))
    place_scheduler(tmp_path, rescale_betas_zero_snr=True)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: scheduler: rescale_betas_zero_snr"):
        convert(foreign.options(base(tmp_path), out))
    assert "schedule: AnimateDiff's" in convert(foreign.options(base(tmp_path), out, motion_module=motion))


def test_settings_of_another_sampler_are_named(tmp_path: Path) -> None:
    path = base(tmp_path)
    place_scheduler(tmp_path, timestep_spacing="linspace", use_karras_sigmas=True, _class_name="EulerDiscreteScheduler")
    said = convert(foreign.options(path, tmp_path / "out.safetensors"))
    assert "not used, because the sampler is DDIM: timestep_spacing 'linspace', use_karras_sigmas True" in said


def test_pndm_has_another_default_of_the_last_level(tmp_path: Path) -> None:
    scheduler = place_scheduler(tmp_path)
    data = {key: value for key, value in SD15_SCHEDULER.items() if key != "set_alpha_to_one"}
    for name, one in (("PNDMScheduler", False), ("DDIMScheduler", True)):
        scheduler.write_text(json.dumps(data | {"_class_name": name}))
        convert(foreign.options(base(tmp_path), tmp_path / "out.safetensors"))
        assert read_config(tmp_path / "out.safetensors").schedule.final_alpha_one is one


LINEAR = torch.linspace(0.00085, 0.012, 1000)


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod"])
def test_tables_of_another_schedule_are_refused_where_it_is_used(tmp_path: Path, name: str) -> None:
    table = LINEAR if name == "betas" else torch.cumprod(1 - LINEAR, 0)
    path, out = base(tmp_path, tensors={name: table}), tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=rf"the table {name} is not that of.*--schedule"):
        convert(foreign.options(path, out))
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(SD15_SCHEDULER | {"beta_schedule": "linear"}))
    convert(foreign.options(path, out, schedule=mine))
    assert read_config(out).schedule.curve == "linear"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_in_half_precision_are_those_of_the_schedule(tmp_path: Path, dtype: torch.dtype) -> None:
    table = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    tensors = {"alphas_cumprod": table.to(dtype), "betas": foreign.ldm()["betas"].to(dtype)}
    convert(foreign.options(base(tmp_path, tensors=tensors), tmp_path / "out.safetensors"))


@pytest.mark.parametrize(
    ("yaml", "change"),
    [
        ("linear_start: 0.001", {"beta_start": 0.001}),
        ("{linear_end: 0.02, timesteps: 500}", {"beta_end": 0.02, "train_steps": 500}),
        ("beta_schedule: sqrt_linear", {"curve": "linear"}),
    ],
)
def test_the_schedule_of_a_yaml_is_used(tmp_path: Path, yaml: str, change: dict[str, object]) -> None:
    path = base(tmp_path, yaml=yaml)
    tensors = {key: x for key, x in foreign.ldm().items() if key != "betas"}
    save_file({key: x.contiguous() for key, x in tensors.items()}, path)
    convert(foreign.options(path, tmp_path / "out.safetensors"))
    wanted = dataclasses.replace(SD, **change)  # pyright: ignore[reportArgumentType]
    assert read_config(tmp_path / "out.safetensors").schedule == wanted


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("beta_schedule: cosine", r"base\.yaml: beta_schedule 'cosine'"),
        ("linear_start: few", r"base\.yaml: linear_start is 'few'"),
        ("linear_start: 0.5", r"base\.yaml: invalid noise schedule from linear_start 0\.5"),
        ("timesteps: 1e300", r"base\.yaml: invalid noise schedule"),
        ("num_heads: 5", r"base\.yaml: num_heads is '5'"),
        ("use_linear_in_transformer: True", r"base\.yaml: use_linear_in_transformer is 'true'"),
        ("conditioning_key: hybrid", r"base\.yaml: conditioning_key is 'hybrid'"),
        ("scale_factor: -1", r"scale_factor is -1\.0"),
        ("layer: hidden", r"base\.yaml: layer is 'hidden'"),
    ],
)
def test_what_a_yaml_says_and_we_cannot_compute_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(foreign.options(base(tmp_path, yaml=yaml), tmp_path / "out.safetensors"))


def test_a_yaml_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = base(tmp_path)
    path.with_suffix(".yaml").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(CheckpointError, match=r"cannot read .*base\.yaml"):
        convert(foreign.options(path, tmp_path / "out.safetensors"))


@pytest.mark.parametrize(
    ("extras", "scale"),
    [
        ({"yaml": "scale_factor: 0.5"}, 0.5),
        ({"tensors": {"scale_factor": torch.tensor(0.25)}}, 0.25),
        ({"tensors": {"scale_factor": torch.tensor(0.25)}, "yaml": "scale_factor: 0.5"}, 0.25),
        ({"tensors": {"scale_factor": torch.tensor(0.18215).bfloat16()}}, 0.18215),
        ({}, 0.18215),
    ],
)
def test_the_scale_of_the_latents_is_that_of_the_autoencoders_file(
    tmp_path: Path, extras: dict[str, object], scale: float
) -> None:
    """Also where the autoencoder is taken out of another single file."""
    path, out = base(tmp_path, **extras), tmp_path / "out.safetensors"  # pyright: ignore[reportArgumentType]
    said = convert(foreign.options(path, out))
    assert read_config(out).vae.scale == scale
    assert ("latents: scaled by" in said) == (scale != 0.18215)
    other = foreign.write(foreign.ldm(), tmp_path / "other.safetensors")
    convert(foreign.options(other, out, vae=path))
    assert read_config(out).vae.scale == scale
    convert(foreign.options(path, out, vae=other))
    assert read_config(out).vae.scale == 0.18215


@pytest.mark.parametrize(
    ("extras", "penultimate"),
    [
        ({"metadata": {"modelspec.encoder_layer": "2"}}, True),
        ({"metadata": {"modelspec.encoder_layer": "1"}}, False),
        ({"yaml": "layer: penultimate"}, True),
        ({}, False),
    ],
)
def test_the_layer_of_the_text_tower_is_that_of_the_training(
    tmp_path: Path, extras: dict[str, object], penultimate: bool
) -> None:
    path, out = base(tmp_path, **extras), tmp_path / "out.safetensors"  # pyright: ignore[reportArgumentType]
    said = convert(foreign.options(path, out))
    assert read_config(out).text.penultimate is penultimate
    assert ("clip skip 2" in said) == penultimate
    with pytest.raises(CheckpointError, match=r"encoder_layer in the metadata is '3'"):
        convert(foreign.options(base(tmp_path, metadata={"modelspec.encoder_layer": "3"}), out))


@pytest.mark.parametrize(("text", "size"), [("96x160", (96, 160)), ("97x160", (128, 128)), ("large", (128, 128))])
def test_the_size_of_the_training_is_the_default(tmp_path: Path, text: str, size: tuple[int, int]) -> None:
    """SD-1.x's 64 latents, of the small autoencoder's 2 pixels each, where nothing usable is said."""
    path, out = base(tmp_path, metadata={"modelspec.resolution": text}), tmp_path / "out.safetensors"
    convert(foreign.options(path, out))
    config = read_config(out)
    assert (config.width, config.height) == size


def test_a_yaml_is_read_without_pyyaml(tmp_path: Path) -> None:
    path = base(tmp_path, yaml="a: 'b c'\n    # d: 1\n    - e: \"f\" # g: h\n    i: [1, 2]\n    a: second\n    j: k#l")
    settings = base_settings.yaml_settings(open_source(path))
    assert {key: settings.get(key) for key in "adegij"} == {
        "a": "b c",
        "d": None,
        "e": "f",
        "g": None,
        "i": None,
        "j": "k#l",
    }
    assert settings["num_heads"] == "8"
    assert settings["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
