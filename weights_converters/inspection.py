"""Inspection of weights files: kind, version, parameters, dtype, size, and missing or extra tensors."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from anyi2v.backbone.config import BackboneConfig, MotionConfig, UNetConfig
from anyi2v.checkpoints.embeddings import bundled
from anyi2v.checkpoints.lora_family import family
from anyi2v.checkpoints.lora_kinds import kind_of, misfit
from anyi2v.checkpoints.lora_names import Site, group, parse, sites, unsupported
from anyi2v.errors import AnyI2VError
from weights_converters import animatediff, base_settings, infer, parts
from weights_converters.account import left_out
from weights_converters.command import problems, shapes_of, targets_of
from weights_converters.control_command import control_shapes
from weights_converters.detect import detect
from weights_converters.parts import FOLDERS, KINDS, Name, Part, read_part
from weights_converters.sources import Source, open_source, parameters


def describe(path: Path) -> str:
    """Describe a file, or each network of a diffusers pipeline, in a few lines.

    Raises:
        InputError: the file does not exist, or the folder has no weights.
        CheckpointError: the file is damaged or contains code.
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
    """Describe which weights of SD-1.5 with AnimateDiff v2 (which has all modules) a LoRA changes, and what does not
    fit."""
    unet = dataclasses.replace(UNetConfig(), temporal=MotionConfig(mid=True))
    brought = bundled(source)
    theirs = {key for keys in brought.values() for key in keys}
    shapes = {key: source.shapes[key] for key in source if key not in theirs}
    found = group(shapes, sites(shapes_of(BackboneConfig(name="inspected", unet=unet))))
    whole = {site: names for site, names in found.modules.items() if kind_of(names)}
    fitting = [site for site, names in whole.items() if not _misfit(source, site, names)]
    kinds = Counter(kind_of(names) for site, names in whole.items())
    ranks = Counter(shapes[key][:1] for key in shapes if (side := parse(key)) and side[1] in ("down", "hada_w1_b"))
    lines = [f"  changes {len(fitting)} weights of SD-1.5 with motion modules"]
    if kinds:
        lines.append(f"  kinds: {', '.join(f'{kind} ({count})' for kind, count in kinds.most_common())}")
    if ranks:
        lines.append(f"  ranks: {', '.join(f'{rank[0]} ({count})' for rank, count in ranks.most_common(5) if rank)}")
    made_for = family(shapes, source.metadata)
    if made_for not in ("", "SD-1.x"):
        lines.append(f"    made for {made_for} instead of SD-1.x (not supported)")
    lost = {
        "of another shape than SD-1.5's": [
            " + ".join(f"{key} {shapes[key]}" for key in names.values())
            for site, names in whole.items()
            if site not in fitting
        ],
        "of incomplete modules": [" + ".join(x.values()) for site, x in found.modules.items() if site not in whole],
        "that match no weight": [*found.odd, *found.unmatched],
        "twice": found.twice,
    }
    lines += [f"    {len(keys)} {what}: {', '.join(keys[:5])}" for what, keys in lost.items() if keys]
    strange = Counter(filter(None, map(unsupported, (*found.odd, *found.unmatched))))
    lines += [f"    not supported: {kind} ({count} keys)" for kind, count in strange.items()]
    if brought:
        lines.append(f"    embeddings in it: {', '.join(brought)}; to use them, give the file as --embedding too")
    return lines


def _misfit(source: Source, site: Site, names: Mapping[str, str]) -> str:
    """Describe why a complete module cannot update its weight, judging by shapes alone; empty if it can."""
    parts = {
        side: torch.ones(()) if side == "on_input" else torch.empty(source.shapes[key], device="meta")
        for side, key in names.items()
        if side != "alpha"
    }
    return misfit(parts, site.shape)


def _read(name: Name, path: Path) -> Part | str:
    """Read a network of a file, or return why it is not readable."""
    try:
        return read_part(name, path, "--inspect")
    except AnyI2VError as error:
        return str(error)


def _network(name: Name, part: Part | str) -> list[str]:
    """Describe whether a network is present and complete."""
    if isinstance(part, str):
        return [f"  {name}: {part}"]
    if not part.plan.report.renamed:
        return [f"  {name}: not in this file"]
    try:
        if name == "control":
            wanted = control_shapes(parts.control_config(part, "inspected"))
        else:
            wanted = targets_of(name, shapes_of(_config(part)), whole=name != "motion")
    except AnyI2VError as error:
        return [f"  {name}: {error}"]
    kept = {key: shape for key, shape in part.plan.shapes.items() if shape is not None}
    lines = [f"  {name}: {len(part.plan.report.renamed)} tensors, {parameters(kept):,} parameters"]
    found = {kind: keys for kind, keys in problems(part, wanted).items() if keys}
    lines += [f"    {len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in found.items()]
    return lines if found else [*lines, "    complete: no tensors are missing or left over"]


def _settings(path: Path, source: Source) -> list[str]:
    """Describe the settings of a UNet that its weights do not show, from the files around it."""
    try:
        said = list(base_settings.predictions(path, source))
        base_settings.check_prediction(path, source)
    except AnyI2VError as error:
        return [f"  cannot be converted: {error}"]
    return [f"  predicts: {value}, according to {place}" for place, value in said]


def _config(part: Part) -> BackboneConfig:
    """Return a backbone configuration with the architecture of one part."""
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
