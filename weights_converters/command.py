"""The conversion of the user's files to one checkpoint, tensor by tensor."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from anyi2v.backbone.config import BackboneConfig, MotionConfig, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.networks import build, state
from anyi2v.checkpoints.checkpoint import write
from anyi2v.checkpoints.header import read_header
from anyi2v.checkpoints.lora import Delta, added
from anyi2v.cli.convert import Convert
from anyi2v.errors import CheckpointError, InputError, ResourceError
from anyi2v.files import check_place, read_json, with_home
from anyi2v.images.video import MAX_FPS
from anyi2v.tracks.checks import MAX_FRAMES
from weights_converters import base_settings
from weights_converters import diffusers_configs as configs
from weights_converters.account import account
from weights_converters.keymap import refuse
from weights_converters.loras import LoraFile, lora_deltas, read_loras, weights_by_name
from weights_converters.parts import (
    MotionWish,
    Name,
    Part,
    find_parts,
    frame_size,
    motion_config,
    read_part,
    text_config,
    unet_config,
    vae_config,
)
from weights_converters.presets import preset_of, schedule_of

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Supported dtypes of sources."""

Shapes = dict[str, tuple[int, ...]]


class Tensors(Mapping[str, Tensor]):
    """The tensors of a backbone under our keys, fetched lazily from their parts.

    Tensors changed by LoRAs have at least float32 precision, because they are rounded only once, when stored.
    """

    def __init__(self, homes: Mapping[str, tuple[Part, str]], deltas: Mapping[str, list[Delta]]):
        self._homes = homes
        self._deltas = deltas

    def __getitem__(self, key: str) -> Tensor:
        part, name = self._homes[key]
        tensor = part.plan.fetch(name, part.source)
        return added(tensor, self._deltas[key]) if key in self._deltas else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def convert(options: Convert) -> str:
    """Convert according to `options` and return a summary.

    Nothing is written until every key and shape has been checked; the file is written atomically.

    Raises:
        InputError: a path or option is not usable.
        CheckpointError: a source is damaged or of the wrong kind, its tensors are not those of the network, or values
            do not fit into the dtype, including NaN and infinity.
        ResourceError: the disk is full, or the path cannot be written.
    """
    options = with_home(options)
    out = _check_out(options)
    config, parts = assemble(options, out)
    shapes = shapes_of(config)
    homes = place(parts, shapes)
    loras = read_loras(options)
    deltas = lora_deltas(loras, shapes, options)
    dtype = DTYPES[options.dtype]
    check_space(out, sum(map(math.prod, shapes.values())) * dtype.itemsize)
    metadata = {"sources": json.dumps(_hashes(parts, loras)), "converter": f"anyi2v {version('anyi2v')}"}
    if loras:
        metadata["loras"] = json.dumps(weights_by_name(loras))
    try:
        write(Tensors(homes, deltas), config, out, dtype=dtype, metadata=metadata, shapes=shapes)
    except CheckpointError as error:
        paths = dict.fromkeys(str(part.source.path) for part in parts.values())
        raise CheckpointError(f"{', '.join(paths)}: {error}") from error
    lines = [f"{out}: {len(shapes)} tensors, {out.stat().st_size:,} bytes", account(parts)]
    lines.append(f"schedule: {schedule_of(options, parts, config.unet)[1]}")
    if config.text.penultimate and preset_of(parts).schedule is None:
        lines.append("text: the second to last layer of the text tower is used, as set by the base (clip skip 2)")
    if config.vae.scale != VAEConfig.scale:
        lines.append(f"latents: scaled by {config.vae.scale}, as set by the autoencoder's source")
    return "\n".join(lines)


def _check_out(options: Convert) -> Path:
    if options.base is None or options.out is None:
        raise InputError("convert needs both --base and --out")
    for flag, value, most in (("--frames", options.frames, MAX_FRAMES), ("--fps", options.fps, MAX_FPS)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"{flag} {value} is not allowed; it must be 1 to {most}")
    sources = (options.base, options.motion_module, options.vae, options.text)
    check_target(options.out, [path for path in sources if path])
    return options.out


def check_target(out: Path, sources: Iterable[Path]) -> None:
    """Raises InputError or ResourceError unless `out` is a name for a file of ours, and none of `sources`."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end with .safetensors")
    check_place(out.parent)
    if any(path.exists() and out.exists() and path.samefile(out) for path in sources):
        raise InputError(f"--out {out} is also a source; choose another name")
    if out.exists() and "anyi2v" not in _metadata(out):
        raise InputError(f"--out {out} exists and is not an anyi2v checkpoint; move it away, or choose another name")


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for other files."""
    try:
        return read_header(path).metadata
    except (CheckpointError, OSError):
        return {}


def assemble(options: Convert, out: Path) -> tuple[BackboneConfig, dict[Name, Part]]:
    """Determine the architecture and the source of each network.

    Raises InputError and CheckpointError as `convert` does.
    """
    assert options.base is not None
    given: dict[Name, Path] = {}
    if options.vae is not None:
        given["vae"] = options.vae
    if options.text is not None:
        given["text"] = options.text
    parts = find_parts(options.base, given)
    base_settings.check_prediction(options.base, parts["unet"].source)
    unet, vae, text = unet_config(parts["unet"]), vae_config(parts["vae"]), _text(parts, options)
    _check_widths(unet, vae, text, parts)
    if options.motion_module is not None:
        if unet.temporal is not None:
            raise InputError(f"{options.base} has its own temporal layers; remove --motion-module")
        parts["motion"] = read_part("motion", options.motion_module, "--motion-module")
        unet = motion_config(parts["motion"], unet, MotionWish(options.motion_version, options.motion_norm))
    width, height = frame_size(parts["unet"], vae.factor)
    preset = preset_of(parts)
    positions = unet.temporal.max_frames if isinstance(unet.temporal, MotionConfig) else BackboneConfig.frames
    return BackboneConfig(
        name=options.name or out.stem,
        unet=unet,
        vae=vae,
        text=text,
        schedule=schedule_of(options, parts, unet)[0],
        height=round(height * preset.height),
        width=width,
        frames=options.frames or min(BackboneConfig.frames, positions),
        fps=options.fps or preset.fps,
        method=dict(preset.method),
    ), parts


def _text(parts: Mapping[Name, Part], options: Convert) -> TextConfig:
    """Return the text tower's configuration, including the layer that the UNet uses and the padding."""
    text = text_config(parts["text"], None if options.vocab is None else read_json(options.vocab))
    configs.warn_of_added_words(text, str(parts["text"].source.path))
    if options.base is not None and text.words is None and base_settings.pads_with_zero(options.base):
        text = dataclasses.replace(text, pad_zero=True)
    if parts["unet"].finding.kind in ("ldm", "unet") and base_settings.skips_last_layer(parts["unet"].source):
        return dataclasses.replace(text, penultimate=True)
    return text


def _check_widths(unet: UNetConfig, vae: VAEConfig, text: TextConfig, parts: Mapping[Name, Part]) -> None:
    """Raise CheckpointError unless the networks' widths match."""
    pairs = [
        ("text tower", parts["text"], text.width, unet.context_dim),
        ("autoencoder", parts["vae"], vae.latent_channels, unet.latent_channels),
    ]
    for network, part, theirs, needed in pairs:
        if theirs != needed:
            raise CheckpointError(
                f"{part.source.path}: the {network} outputs {theirs} channels, but the UNet in "
                f"{parts['unet'].source.path} needs {needed}; they belong to different families"
            )


def shapes_of(config: BackboneConfig) -> Shapes:
    """Return the tensor shapes of a backbone; raises CheckpointError if the architecture is invalid."""
    try:
        with torch.device("meta"):
            return {key: tuple(tensor.shape) for key, tensor in state(build(config)).items()}
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(f"no network can be built with {config.to_json()}: {error}") from error


def place(parts: Mapping[Name, Part], shapes: Shapes) -> dict[str, tuple[Part, str]]:
    """Map each of our keys to its part and the key there.

    Raises CheckpointError, naming the file, for the first part whose tensors are not exactly those required.
    """
    homes: dict[str, tuple[Part, str]] = {}
    for name, part in parts.items():
        targets = targets_of(name, shapes, whole="motion" not in parts)
        refuse(problems(part, targets), f"{part.source.path} ({part.finding}) does not fit the {name}")
        prefix = "unet." if name == "motion" else f"{name}."
        homes |= {prefix + key: (part, key) for key in targets}
    return homes


def targets_of(name: Name, shapes: Shapes, *, whole: bool = False) -> Shapes:
    """Return the tensors that a part must provide, by key in the network; `whole`: the UNet has a single part."""
    prefix = "unet." if name == "motion" else f"{name}."
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    if whole or name in ("vae", "text"):
        return own
    return {key: shape for key, shape in own.items() if (".temporals." in key) == (name == "motion")}


def problems(part: Part, targets: Shapes) -> dict[str, list[str]]:
    """Return the problems of a part with its targets, by kind."""
    kept = part.plan.report.renamed
    strange = [f"{key} ({part.source.dtypes[key]})" for key in kept if part.source.dtypes[key] not in FLOATS]
    return {**part.plan.problems(targets), f"of a dtype other than {', '.join(FLOATS)}": strange}


def _hashes(parts: Mapping[Name, Part], loras: list[LoraFile]) -> dict[str, str]:
    """Return the SHA-256 of every input file, each read once."""
    sources = {
        source.path: source for source in [*(part.source for part in parts.values()), *(x.source for x in loras)]
    }
    return {name: value for source in sources.values() for name, value in source.hashes().items()}


def check_space(path: Path, size: int) -> None:
    """Raise ResourceError unless the disk of `path` has space for `size` bytes and a header."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    needed, free = size + 2**20, shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{path} needs {needed / 1e9:.2f} GB, but {place} has only {free / 1e9:.2f} GB free; "
            "free some space or choose another --out"
        )
