"""Settings of a base that its weights do not show: scheduler files, a yaml, metadata, tensors that are markers.

What the UNet predicts is a property of the base, whichever schedule is used with it: AnimateDiff brings betas of its
own, but no other prediction.
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
"""Schedule of SD-1.x, where nothing says otherwise."""

_METADATA = ("modelspec.prediction_type", "modelspec.predict_key")
_MARKERS = {
    "v_pred": "v",
    "edm_vpred.sigma_max": "v, with noise levels of EDM",
    "edm_mean": "images, as in EDM",
}
_TOLERANCE = 5e-3
"""Largest difference of alphas_cumprod: half precision makes 1e-3 of it, another schedule more than 2e-2."""

_MOST_STEPS = 100_000


def scheduler_file(base: Path) -> Path | None:
    """The scheduler_config.json of a pipeline's folder, or of the one that a UNet or a single file lies in."""
    folders = [base]
    if base.name == "unet" or (base.parent / "model_index.json").is_file():
        folders.append(base.parent)
    if base.is_file() and base.parent.name == "unet":
        folders.append(base.parent.parent)
    paths = [folder / "scheduler" / "scheduler_config.json" for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def yaml_file(source: Source) -> Path | None:
    """The yaml of the same name beside a file of weights."""
    path = source.files[0].path.with_suffix(".yaml")
    return path if len(source.files) == 1 and path.is_file() else None


_ENTRY = re.compile(r"""(?:^|[\s{,])["']?(\w+)["']?\s*:\s+("[^"]*"|'[^']*'|[^\s,{}\[\]"']+)""")


def yaml_settings(source: Source) -> dict[str, str]:
    """The plain values in the yaml beside a file, by their keys without the path to them; the first of a key counts.

    Lines are searched for `key: value`, which is enough for these files, so PyYAML is not needed.

    Raises CheckpointError if the file cannot be read as text.
    """
    path = yaml_file(source)
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}, the yaml beside the weights: {error}") from error
    found: dict[str, str] = {}
    for line in lines:
        for match in _ENTRY.finditer(re.sub(r"(?:^|\s)#.*", "", line)):
            found.setdefault(match[1], match[2].strip("\"'"))
    return found


def predictions(base: Path, source: Source) -> Iterator[tuple[str, str]]:
    """What the UNet predicts, from every place that says so: (place, value).

    Args:
        base: file or folder that the user named.
        source: of the UNet.

    Raises InputError or CheckpointError if one of the places cannot be read.
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
    """Raises CheckpointError, naming the place, if anything says that the UNet predicts something but the noise."""
    for place, value in predictions(base, source):
        if value.strip().lower() not in ("epsilon", "eps"):
            raise CheckpointError(
                f"{base}: the UNet predicts {value!r}, says {place}; only 'epsilon' (the noise) is supported, "
                "with a motion module or without: choose a base that was trained with it"
            )


def check_yaml(source: Source) -> None:
    """Raises CheckpointError if the yaml beside a single file describes networks that SD-1.x does not have."""
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
    """The schedule of a single file: SD-1.x's, with what the yaml beside it changes.

    Raises CheckpointError for a schedule that cannot be expressed: that of a marker, of the yaml, or of the tables
    that training left in the file.
    """
    if "ztsnr" in source.shapes:
        raise CheckpointError(
            f"{source.path}: the tensor ztsnr says that the schedule has a zero terminal signal-to-noise ratio, which "
            "is not supported"
        )
    settings, place = yaml_settings(source), yaml_file(source)
    curves = {"linear": "scaled_linear", "sqrt_linear": "linear"}  # LDM spaces the roots and calls it linear
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
            f"{place}: no noise schedule from linear_start {config.beta_start} to linear_end {config.beta_end} in "
            f"{config.train_steps} timesteps"
        )
    check_tables(source, config)
    return config


def check_tables(source: Source, config: ScheduleConfig) -> None:
    """Raises CheckpointError if a file has tables of another schedule than `config`."""
    for name in ("alphas_cumprod", "betas"):
        if name not in source.shapes:
            continue
        table = source[name].float()
        theirs = table if name == "alphas_cumprod" else torch.cumprod(1 - table, dim=-1)
        ours = alphas_cumprod(config)
        if theirs.shape != ours.shape or not (theirs - ours).abs().max() <= _TOLERANCE:
            raise CheckpointError(
                f"{source.path}: the table {name} is not that of the schedule {config.curve}, {config.beta_start} to "
                f"{config.beta_end} in {config.train_steps} steps; say with --schedule FILE which one it is"
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
    """The scale of a single file's latents: its tensor `scale_factor`, that of the yaml beside it, or SD-1.x's.

    Raises CheckpointError if it is no positive number.
    """
    scale = _number(yaml_settings(source), "scale_factor", yaml_file(source), VAEConfig.scale)
    if "scale_factor" in source.shapes:
        values = source["scale_factor"].flatten().tolist()
        scale = float(values[0]) if len(values) == 1 else math.nan
    if not 0 < scale < math.inf:
        raise CheckpointError(f"scale_factor is {scale}; it must be a positive number")
    # stored in half precision, the usual one is not exact
    return VAEConfig.scale if math.isclose(scale, VAEConfig.scale, rel_tol=4e-3) else scale


def skips_last_layer(source: Source) -> bool:
    """Whether the UNet was trained with the text tower's layer before the last ("clip skip 2").

    Raises CheckpointError if it was another layer.
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
    """Whether the tokenizer in a pipeline's folder fills prompts up with token 0, "!", and not with the end token.

    Raises CheckpointError if it is another token.
    """
    path = base / "tokenizer" / "special_tokens_map.json"
    token = read_json(path).get("pad_token") if path.is_file() else None
    text = token.get("content") if isinstance(token, dict) else token
    if text not in (None, "!", "<|endoftext|>"):
        raise CheckpointError(f"{path}: pad_token is {text!r}; only '<|endoftext|>' and '!' are supported")
    return text == "!"


def resolution(source: Source) -> tuple[int, int] | None:
    """Width and height that a file's metadata say it was trained at, both in pixels; None if they say nothing."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", source.metadata.get("modelspec.resolution", "").strip())
    return (int(match[1]), int(match[2])) if match else None


def _number(settings: Mapping[str, str], name: str, place: Path | None, default: float) -> float:
    try:
        return float(settings.get(name, default))
    except ValueError as error:
        raise CheckpointError(f"{place}: {name} is {settings[name]!r}, which is no number") from error
