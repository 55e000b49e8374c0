"""Settings of a base model that its weights do not show, from scheduler files, a yaml, metadata and marker tensors.

The prediction type of the UNet is a property of the base, regardless of the schedule: AnimateDiff has its own betas,
but not its own prediction type.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from anyi2v.backbone.config import ScheduleConfig, VAEConfig
from anyi2v.diffusion import alphas_cumprod
from anyi2v.errors import CheckpointError
from anyi2v.files import read_json
from weights_converters.config_fields import expect
from weights_converters.sources import Source

SD = ScheduleConfig(curve="scaled_linear", final_alpha_one=False)
"""Default schedule of SD-1.x."""

_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")
_MARKERS = {
    "v_pred": "v",
    "edm_vpred.sigma_max": "v, with noise levels of EDM",
    "edm_mean": "images, as in EDM",
}
_TOLERANCE = 5e-3
"""Tolerance for alphas_cumprod: half precision causes differences of 1e-3, another schedule more than 2e-2."""

_MOST_STEPS = 100_000


def scheduler_file(base: Path) -> Path | None:
    """Return the scheduler_config.json of a pipeline's folder, or of the one that contains a UNet or a single file."""
    folders = [base]
    if base.name == "unet" or (base.parent / "model_index.json").is_file():
        folders.append(base.parent)
    if base.is_file() and base.parent.name == "unet":
        folders.append(base.parent.parent)
    paths = [folder / "scheduler" / "scheduler_config.json" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def yaml_file(source: Source) -> Path | None:
    """Return the yaml of the same name next to a weights file."""
    path = source.files[0].path.with_suffix(".yaml")
    return path if len(source.files) == 1 and path.is_file() else None


_ENTRY = re.compile(r"""(?:^|[\s{,])["']?(\w+)["']?\s*:\s+("[^"]*"|'[^']*'|[^\s,{}\[\]"']+)""")


def yaml_settings(source: Source) -> dict[str, str]:
    """Read the scalar values in the yaml next to a file, by their last key; the first occurrence of a key is used.

    Lines are searched for `key: value`, which suffices for these files, so PyYAML is not needed.

    Raises CheckpointError if the file is not readable as text.
    """
    path = yaml_file(source)
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}, the yaml next to the weights: {error}") from error
    found: dict[str, str] = {}
    for line in lines:
        for match in _ENTRY.finditer(re.sub(r"(?:^|\s)#.*", "", line)):
            found.setdefault(match[1], match[2].strip("\"'"))
    return found


def predictions(base: Path, source: Source) -> Iterator[tuple[str, str]]:
    """Yield the UNet's prediction type from every place that states it, as (place, value).

    Args:
        base: file or folder given by the user.
        source: source of the UNet.

    Raises InputError or CheckpointError if one of the places is not readable.
    """
    path = scheduler_file(base)
    if path is not None and "prediction_type" in (scheduler := read_json(path)):
        yield f"prediction_type in {path}", str(scheduler["prediction_type"])
    if "parameterization" in (settings := yaml_settings(source)):
        yield f"parameterization in {yaml_file(source)}", settings["parameterization"]
    for key in _METADATA:
        if key in source.metadata:
            yield f"{key} in the metadata", source.metadata[key]
    for key, value in _MARKERS.items():
        if key in source.shapes:
            yield f"the tensor {key}", value


def check_prediction(base: Path, source: Source) -> None:
    """Raise CheckpointError, naming the place, if any place states a prediction type other than the noise."""
    for place, value in predictions(base, source):
        if value.strip().lower() not in ("epsilon", "eps"):
            raise CheckpointError(
                f"{base}: the UNet predicts {value!r} according to {place}; only 'epsilon' (the noise) is supported, "
                "with or without a motion module; choose a base that was trained with it"
            )


def check_yaml(source: Source) -> None:
    """Raise CheckpointError if the yaml next to a single file describes networks other than SD-1.x's."""
    settings = {key: value.lower() for key, value in yaml_settings(source).items()}
    expect(
        settings,
        f"{yaml_file(source)}",
        {
            "num_heads": "8",
            "transformer_depth": "1",
            "use_scale_shift_norm": "false",
            "resblock_updown": "false",
            "use_linear_in_transformer": "false",
            "conditioning_key": "crossattn",
        },
    )


def file_schedule(source: Source) -> ScheduleConfig:
    """Return the schedule of a single file: SD-1.x's, with changes from the yaml next to it.

    Raises CheckpointError for an unsupported schedule, given by a marker, the yaml, or tables left in the file by
    training.
    """
    if "ztsnr" in source.shapes:
        raise CheckpointError(
            f"{source.path}: the tensor ztsnr marks a schedule with zero terminal signal-to-noise ratio, which "
            "is not supported"
        )
    settings, place = yaml_settings(source), yaml_file(source)
    curves = {"linear": "scaled_linear", "sqrt_linear": "linear"}  # LDM's "linear" spaces the square roots evenly
    curve = settings.get("beta_schedule", "linear")
    if curve not in curves:
        raise CheckpointError(f"{place}: beta_schedule {curve!r} is not supported, only {', '.join(curves)}")
    config = dataclasses.replace(
        SD,
        curve=curves[curve],
        beta_start=_number(settings, "linear_start", place, SD.beta_start),
        beta_end=_number(settings, "linear_end", place, SD.beta_end),
        train_steps=round(min(_number(settings, "timesteps", place, SD.train_steps), _MOST_STEPS + 1)),
    )
    if not (0 < config.beta_start <= config.beta_end < 1 and 1 < config.train_steps <= _MOST_STEPS):
        raise CheckpointError(
            f"{place}: invalid noise schedule from linear_start {config.beta_start} to linear_end {config.beta_end} in "
            f"{config.train_steps} timesteps"
        )
    check_tables(source, config)
    return config


def check_tables(source: Source, config: ScheduleConfig) -> None:
    """Raise CheckpointError if a file has tables of a schedule other than `config`."""
    for name in ("alphas_cumprod", "betas"):
        if name not in source.shapes:
            continue
        table = source[name].float()
        theirs = table if name == "alphas_cumprod" else torch.cumprod(1 - table, dim=-1)
        ours = alphas_cumprod(config)
        if theirs.shape != ours.shape or not (theirs - ours).abs().max() <= _TOLERANCE:
            raise CheckpointError(
                f"{source.path}: the table {name} is not that of the schedule {config.curve}, {config.beta_start} to "
                f"{config.beta_end} in {config.train_steps} steps; specify the schedule with --schedule FILE"
            )
    if config.x0_scale != 1 and "scale_arr" in source.shapes:
        shrunk = torch.linspace(1, config.x0_scale, config.x0_scale_steps)
        theirs = source["scale_arr"].float().flatten()[: config.train_steps]
        ours = torch.cat([shrunk, torch.full((config.train_steps - len(shrunk),), config.x0_scale)])
        if theirs.shape != ours.shape or not (theirs - ours).abs().max() <= _TOLERANCE:
            raise CheckpointError(
                f"{source.path}: the table scale_arr does not shrink the image from 1 to {config.x0_scale} over "
                f"{config.x0_scale_steps} steps, as VideoCrafter2's does; another version is not supported"
            )


def latent_scale(source: Source) -> float:
    """Return the latent scale of a single file: its tensor `scale_factor`, that of the yaml next to it, or SD-1.x's.

    Raises CheckpointError if it is not a positive number.
    """
    scale = _number(yaml_settings(source), "scale_factor", yaml_file(source), VAEConfig.scale)
    if "scale_factor" in source.shapes:
        values = source["scale_factor"].flatten().tolist()
        scale = float(values[0]) if len(values) == 1 else math.nan
    if not 0 < scale < math.inf:
        raise CheckpointError(f"scale_factor is {scale}; it must be a positive number")
    # the usual scale is not exact in half precision
    return VAEConfig.scale if math.isclose(scale, VAEConfig.scale, rel_tol=4e-3) else scale


def skips_last_layer(source: Source) -> bool:
    """Return whether the UNet was trained with the text tower's second to last layer ("clip skip 2").

    Raises CheckpointError for any other layer.
    """
    layer = source.metadata.get("modelspec.encoder_layer", "1").strip()
    if layer not in ("1", "2"):
        raise CheckpointError(
            f"{source.path}: modelspec.encoder_layer in the metadata is {layer!r}; only 1 (the last layer of the text "
            "tower) and 2 (the one before it) are supported"
        )
    named = yaml_settings(source).get("layer", "last")
    if named not in ("last", "penultimate"):
        raise CheckpointError(f"{yaml_file(source)}: layer is {named!r}; only 'last' and 'penultimate' are supported")
    return layer == "2" or named == "penultimate"


def pads_with_zero(base: Path) -> bool:
    """Return whether the tokenizer in a pipeline's folder pads prompts with token 0, "!", instead of the end token.

    Raises CheckpointError for any other token.
    """
    path = base / "tokenizer" / "special_tokens_map.json"
    token = read_json(path).get("pad_token") if path.is_file() else None
    text = token.get("content") if isinstance(token, dict) else token
    if text not in (None, "!", "<|endoftext|>"):
        raise CheckpointError(f"{path}: pad_token is {text!r}; only '<|endoftext|>' and '!' are supported")
    return text == "!"


def resolution(source: Source) -> tuple[int, int] | None:
    """Return the training width and height in pixels from a file's metadata; None if missing."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", source.metadata.get("modelspec.resolution", "").strip())
    return (int(match[1]), int(match[2])) if match else None


def _number(settings: Mapping[str, str], name: str, place: Path | None, default: float) -> float:
    try:
        return float(settings.get(name, default))
    except ValueError as error:
        raise CheckpointError(f"{place}: {name} is {settings[name]!r}, which is not a number") from error
