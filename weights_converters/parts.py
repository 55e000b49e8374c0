"""Location of the networks (UNet, autoencoder, text tower, motion modules) in source files.

Each part has a plan for its tensors, and its architecture is read from a config.json or inferred from shapes.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyi2v.backbone.config import MotionConfig, NormOver, TextConfig, UNetConfig, VAEConfig
from anyi2v.backbone.sparse_config import SparseControlConfig
from anyi2v.errors import AnyI2VError, CheckpointError, InputError
from anyi2v.files import read_json
from weights_converters import animatediff, base_settings, infer, lavie, ldm_layout, sparse_control, videocrafter
from weights_converters import diffusers_configs as configs
from weights_converters import diffusers_layout as layout
from weights_converters.detect import Finding, Kind, read
from weights_converters.keymap import Plan, Rule, make_plan
from weights_converters.sources import Source, open_source

Name = Literal["unet", "vae", "text", "motion", "control"]

KINDS: dict[Name, tuple[Kind, ...]] = {
    "unet": ("unet", "ldm", "lavie_unet", "videocrafter"),
    "vae": ("vae", "vae_ldm", "ldm", "videocrafter"),
    "text": ("text", "ldm", "videocrafter"),
    "motion": ("motion_module", "motion_adapter", "animatediff_unet"),
    "control": ("sparsectrl",),
}
"""Kinds of files that can provide each network."""

FOLDERS: dict[Name, str] = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""Subfolder of each network in a diffusers pipeline."""


@dataclass(frozen=True)
class Part:
    """One network in one source."""

    name: Name
    source: Source
    finding: Finding
    plan: Plan
    """Mapping from the source's keys to ours, without the network's prefix."""
    settings: Mapping[str, Any] | None
    """Content of config.json, if the source is a folder."""


def read_part(name: Name, path: Path, option: str) -> Part:
    """Read the network `name` from a file or folder that the user gave with `option`.

    Raises:
        InputError: `path` does not exist, or has no (or several) weights.
        CheckpointError: the file is damaged or of another kind.
    """
    settings = read_json(path / "config.json") if path.is_dir() else None
    source = open_source(path)
    finding = read(path, source.shapes, source.metadata, KINDS[name], option)
    if settings is not None and finding.kind in ("unet", "vae"):
        configs.warn_of_unknown(settings, finding.kind, str(path))
    return make_part(name, source, finding, settings)


def make_part(name: Name, source: Source, finding: Finding, settings: Mapping[str, Any] | None) -> Part:
    """Build the part of network `name` in an opened source; raises CheckpointError, naming the file, on failure."""
    try:
        plan = make_plan(source.shapes, rules(name, finding.kind, source))
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    return Part(name, source, finding, plan, settings)


def rules(name: Name, kind: Kind, source: Source) -> list[Rule]:
    """Return the rules that extract the network `name` from a source of a given kind.

    Raises CheckpointError if the source's keys are not those of such a network.
    """
    if kind == "ldm":
        return ldm_layout.rules(source, name)
    if kind == "videocrafter":
        return videocrafter.rules(source, name)
    if kind == "lavie_unet":
        return lavie.UNET
    if kind == "sparsectrl":
        return sparse_control.rules(source.shapes)
    if kind == "vae_ldm":
        return ldm_layout.vae_rules(source)
    if name == "motion":
        own = {
            "motion_module": animatediff.MOTION,
            "motion_adapter": layout.MOTION,
            "animatediff_unet": [*animatediff.MOTION, animatediff.SPATIAL],
        }
        return own[kind]
    return {"unet": layout.UNET, "vae": layout.VAE, "text": layout.TEXT}[name]


def find_parts(base: Path, given: Mapping[Name, Path]) -> dict[Name, Part]:
    """Find UNet, autoencoder and text tower in `base`, except those that the user has `given` separately.

    Raises as `read_part` does, CheckpointError if the UNet belongs to another family, and InputError if `base` lacks a
    network.
    """
    if any((base / folder).is_dir() for folder in FOLDERS.values()):
        given = {**{name: base / folder for name, folder in FOLDERS.items() if name != "unet"}, **given}
        base = base / FOLDERS["unet"]
    unet = read_part("unet", base, "--base")
    unet_config(unet)  # check the family first: for other families, a missing text tower would be a misleading error
    found: dict[Name, Part] = {"unet": unet}
    for name in FOLDERS:
        if name in given:
            found[name] = part = read_part(name, given[name], f"--{name}")
            if not part.plan.report.renamed:
                raise CheckpointError(f"{given[name]} ({part.finding}) has no readable {name}, as required by --{name}")
        elif name not in found:
            if not _holds(unet, name):
                raise InputError(f"{base} has no {name}; give a file or folder with --{name}")
            found[name] = make_part(name, unet.source, unet.finding, None)
    return found


def _holds(unet: Part, name: Name) -> bool:
    text = videocrafter.TEXT_PREFIX if unet.finding.kind == "videocrafter" else ldm_layout.TEXT_PREFIX
    prefix = {"vae": ldm_layout.VAE_PREFIX, "text": text}[name]
    return any(key.startswith(prefix) for key in unet.source)


def unet_config(part: Part) -> UNetConfig:
    """Return the UNet of a part; raises CheckpointError, naming the file, unless it is SD-1.x, LaVie or
    VideoCrafter2."""
    with _named(part):
        measure, read = {
            "lavie_unet": (infer.lavie, lavie.unet_config),
            "videocrafter": (infer.videocrafter, videocrafter.unet_config),
        }.get(part.finding.kind, (infer.unet, configs.unet_config))
        unet = measure(part.plan.shapes) if part.settings is None else read(part.settings)
        infer.check_size(unet)
        if part.finding.kind == "ldm":
            base_settings.check_yaml(part.source)
        return unet


def frame_size(part: Part, factor: int) -> tuple[int, int]:
    """Return width and height of the images that the UNet of a part was trained on, in pixels.

    Args:
        part: part with the size in its config.json or metadata; otherwise SD-1.x's 64 latent cells are assumed.
        factor: pixels per latent cell.

    Raises CheckpointError for an invalid size.
    """
    if part.settings is None and (said := base_settings.resolution(part.source)) and not any(x % factor for x in said):
        return said
    size: Any = (part.settings or {}).get("sample_size") or 64
    sides: list[Any] = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if not all(type(side) is int and 0 < side <= infer.LIMITS["length"] for side in sides):
        raise CheckpointError(f"{part.source.path}: config.json has sample_size {size!r}; it must be a whole number")
    return sides[1] * factor, sides[0] * factor


def vae_config(part: Part) -> VAEConfig:
    """Return the autoencoder of a part; raises CheckpointError, naming the file, if it is not SD-1.x's."""
    with _named(part):
        vae = infer.vae(part.plan.shapes) if part.settings is None else configs.vae_config(part.settings)
        if part.finding.kind in ("ldm", "videocrafter"):
            vae = dataclasses.replace(vae, scale=base_settings.latent_scale(part.source))
        infer.check_size(vae)
        return vae


def text_config(part: Part, vocabulary: Mapping[str, Any] | None = None) -> TextConfig:
    """Return the text tower of a part; raises CheckpointError, naming the file, if it is not SD-1.x's."""
    with _named(part):
        shapes, settings = part.plan.shapes, part.settings
        if settings is not None and isinstance(settings.get("text_config"), Mapping):
            settings = settings["text_config"]  # the source is a whole CLIPModel
        text = infer.text(shapes) if settings is None else configs.text_config(settings, vocabulary)
        if part.finding.kind == "videocrafter":
            text = dataclasses.replace(text, quick_gelu=False, penultimate=True, pad_zero=True)
        infer.check_size(text)
        return text


@dataclass(frozen=True)
class MotionWish:
    """The user's settings for the motion modules."""

    version: animatediff.Version | None = None
    norm: NormOver | None = None


def motion_config(part: Part, unet: UNetConfig, wish: MotionWish) -> UNetConfig:
    """Return `unet` with the motion modules of a part.

    AnimateDiff computes the statistics of the modules' norms per frame, diffusers over all frames together.
    MotionAdapters of the published size have AnimateDiff's weights and use per-frame statistics; for other sizes the
    user must specify `norm`.

    Raises CheckpointError, naming the file, if version or norm cannot be determined, or for another structure.
    """
    shapes = part.source.shapes
    with _named(part):
        rows = animatediff.position_rows(shapes)
        if rows is None and part.settings is not None:
            rows = part.settings["motion_max_seq_length"]
        norm = _norm(part, unet, wish)
        if norm == "clip":
            return dataclasses.replace(
                unet, temporal=motion_modules(part, unet, rows or animatediff.ROWS["v3"], "clip")
            )
        version = animatediff.version(animatediff.has_mid(shapes), rows, wish.version)
        motion = motion_modules(part, unet, rows or animatediff.ROWS[version], "frame")
        return dataclasses.replace(unet, temporal=motion, norm_over="clip" if version == "v1" else "frame")


def _norm(part: Part, unet: UNetConfig, wish: MotionWish) -> NormOver:
    adapter = part.finding.kind == "motion_adapter"
    if wish.norm == "clip" and not adapter:
        raise CheckpointError("--motion-norm clip is for files trained in diffusers, but this one is AnimateDiff's own")
    if wish.norm is None and adapter and unet.channels != UNetConfig.channels:
        raise CheckpointError(
            f"a MotionAdapter of unpublished widths {unet.channels}: specify with --motion-norm if it was trained "
            "in diffusers (clip) or in AnimateDiff (frame)"
        )
    return wish.norm or "frame"


def motion_modules(part: Part, unet: UNetConfig, rows: int, norm: NormOver) -> MotionConfig:
    """Return the motion modules of a part, from config.json or from shapes and the `rows` of position tables."""
    if part.settings is None:
        modules = infer.motion(part.plan.shapes, rows)
    else:
        size = {"block_out_channels": list(unet.channels), "layers_per_block": unet.layers}
        modules = configs.motion_config(part.settings, size)
    infer.check_size(modules)
    return dataclasses.replace(modules, norm_over=norm)


def control_config(part: Part, name: str) -> SparseControlConfig:
    """The sparse control network of a part; raises CheckpointError, naming the file, if it cannot be told."""
    with _named(part):
        return sparse_control.config(part.source.shapes, part.plan.shapes, name)


@contextlib.contextmanager
def _named(part: Part) -> Iterator[None]:
    """Add the file's name to errors about its configuration."""
    try:
        yield
    except AnyI2VError as error:
        raise CheckpointError(f"{part.source.path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{part.source.path}: config.json is not that of a {part.finding} ({error!r})") from error
