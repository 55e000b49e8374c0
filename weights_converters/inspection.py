"""Says what a file of weights is: kind, version, parameters, dtype, size, and what is missing or extra."""

import dataclasses
from collections import Counter
from pathlib import Path

from anyi2v.backbone.config import BackboneConfig, MotionConfig, UNetConfig
from anyi2v.backbone.lora_names import flatten, parse, sites
from anyi2v.errors import AnyI2VError
from weights_converters import animatediff, base_settings, infer, parts
from weights_converters.account import left_out
from weights_converters.command import problems, shapes_of, targets_of
from weights_converters.detect import detect
from weights_converters.parts import FOLDERS, KINDS, Name, Part, read_part
from weights_converters.sources import Source, open_source, parameters


def describe(path: Path) -> str:
    """Some lines on a file, or on each network of a diffusers pipeline.

    Raises:
        InputError: there is no such file, or a folder without weights.
        CheckpointError: the file is damaged or carries code.
    """
    if any((path / folder).is_dir() for folder in FOLDERS.values()):
        found = [path / folder for folder in FOLDERS.values() if (path / folder).is_dir()]
        return "\n".join([f"{path}: folder of a diffusers pipeline", *map(describe, found)])
    source = open_source(path)
    finding = detect(source.shapes, source.metadata)
    dtypes = Counter(source.dtypes.values())
    lines = [
        f"{path}: {finding}",
        f"  {len(source)} tensors, {parameters(source.shapes):,} numbers, {source.size:,} bytes",
        f"  dtypes: {', '.join(f'{name} ({count})' for name, count in dtypes.most_common())}",
    ]
    networks: dict[Name, Part | str] = {
        name: _read(name, path) for name, kinds in KINDS.items() if finding.kind in kinds
    }
    for name, part in networks.items():
        lines += _network(name, part)
    there = [part for part in networks.values() if isinstance(part, Part)]
    lines += [f"  not needed: {count}, {reason}" for reason, count in left_out(there).most_common()]
    if "unet" in networks:
        lines += _settings(path, source)
    if finding.kind in ("lora", "motion_lora", "domain_adapter"):
        lines += _lora(source)
    return "\n".join(lines)


def _lora(source: Source) -> list[str]:
    """How many weights of SD-1.5 with AnimateDiff v2 (which has all modules) a LoRA changes, and at which ranks."""
    unet = dataclasses.replace(UNetConfig(), temporal=MotionConfig(mid=True))
    table = sites(shapes_of(BackboneConfig(name="inspected", unet=unet)))
    sides = {key: parse(key) for key in source}
    found = {key: table.get(flatten(side[0])) for key, side in sides.items() if side}
    ranks = Counter(source.shapes[key][:1] for key, side in sides.items() if side and side[1] == "down")
    lost = [key for key in source if found.get(key) is None]
    lines = [
        f"  changes {len({site for site in found.values() if site})} weights of SD-1.5 with motion modules",
        f"  ranks: {', '.join(f'{rank[0]} ({count})' for rank, count in ranks.most_common(5) if rank)}",
    ]
    return [*lines, f"    {len(lost)} that match no weight: {', '.join(lost[:5])}"] if lost else lines


def _read(name: Name, path: Path) -> Part | str:
    """A network of a file, or why it cannot be read."""
    try:
        return read_part(name, path, "--inspect")
    except AnyI2VError as error:
        return str(error)


def _network(name: Name, part: Part | str) -> list[str]:
    """Whether a network is there, and whole."""
    if isinstance(part, str):
        return [f"  {name}: {part}"]
    if not part.plan.report.renamed:
        return [f"  {name}: not in this file"]
    try:
        wanted = targets_of(name, shapes_of(_config(part)), whole=name != "motion")
    except AnyI2VError as error:
        return [f"  {name}: {error}"]
    kept = {key: shape for key, shape in part.plan.shapes.items() if shape is not None}
    lines = [f"  {name}: {len(part.plan.report.renamed)} tensors, {parameters(kept):,} parameters"]
    found = {kind: keys for kind, keys in problems(part, wanted).items() if keys}
    lines += [f"    {len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in found.items()]
    return lines if found else [*lines, "    whole: nothing is missing, nothing is left over"]


def _settings(path: Path, source: Source) -> list[str]:
    """What the files around a UNet say of it that its weights do not show."""
    try:
        said = list(base_settings.predictions(path, source))
        base_settings.check_prediction(path, source)
    except AnyI2VError as error:
        return [f"  cannot be converted: {error}"]
    return [f"  predicts: {value}, says {place}" for place, value in said]


def _config(part: Part) -> BackboneConfig:
    """A backbone with the architecture of one part."""
    config = BackboneConfig(name="inspected")
    if part.name == "unet":
        config = dataclasses.replace(config, unet=parts.unet_config(part))
    elif part.name == "vae":
        config = dataclasses.replace(config, vae=parts.vae_config(part))
    elif part.name == "text":
        config = dataclasses.replace(config, text=parts.text_config(part))
    else:
        unet = infer.motion_unet(part.plan.shapes)
        modules = parts.motion_modules(part, unet, animatediff.ROWS["v3"], "frame")
        infer.check_size(unet, modules)
        config = dataclasses.replace(config, unet=dataclasses.replace(unet, temporal=modules))
    return config
