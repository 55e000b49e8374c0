"""Finds the networks in sources: which file gives the UNet, the autoencoder, the text tower, the motion modules.

Each part comes with its architecture, from a config.json beside it or from its shapes, and with a plan for its
tensors.
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
"""What each network is taken from."""

FOLDERS: dict[Name, str] = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""Where a pipeline of diffusers has each network."""


@dataclass(frozen=True)
class Part:
    """One network in one source."""

    name: Name
    source: Source
    finding: Finding
    plan: Plan
    """From the keys of the source to ours, without the network's prefix."""
    settings: Mapping[str, Any] | None
    """config.json, where the source is a folder."""


def read_part(name: Name, path: Path, option: str) -> Part:
    """The network `name` in a file or folder that the user gave with `option`.

    Raises:
        InputError: `path` does not exist, or has no (or several) weights.
        CheckpointError: the file is damaged or holds something else.
    """
    settings = read_json(path / "config.json") if path.is_dir() else None
    source = open_source(path)
    finding = read(path, source.shapes, source.metadata, KINDS[name], option)
    if settings is not None and finding.kind in ("unet", "vae"):
        configs.warn_of_unknown(settings, finding.kind, str(path))
    return make_part(name, source, finding, settings)


def make_part(name: Name, source: Source, finding: Finding, settings: Mapping[str, Any] | None) -> Part:
    """The network `name` of an opened source; raises CheckpointError, naming the file, if it cannot be there."""
    try:
        plan = make_plan(source.shapes, rules(name, finding.kind, source))
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    return Part(name, source, finding, plan, settings)


def rules(name: Name, kind: Kind, source: Source) -> list[Rule]:
    """The rules that take the network `name` out of a source of some kind.

    Raises CheckpointError if the source's keys are those of no such network.
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
    """UNet, autoencoder and text tower from `base`, except those that the user has `given` by themselves.

    Raises as `read_part` does, CheckpointError if the UNet is of another family, and InputError if `base` lacks a
    network.
    """
    if any((base / folder).is_dir() for folder in FOLDERS.values()):
        given = {**{name: base / folder for name, folder in FOLDERS.items() if name != "unet"}, **given}
        base = base / FOLDERS["unet"]
    unet = read_part("unet", base, "--base")
    unet_config(unet)  # the family first: that others have no text tower by its name is no help to a user
    found: dict[Name, Part] = {"unet": unet}
    for name in FOLDERS:
        if name in given:
            found[name] = part = read_part(name, given[name], f"--{name}")
            if not part.plan.report.renamed:
                raise CheckpointError(
                    f"{given[name]} ({part.finding}) holds no {name} that can be read; --{name} needs it"
                )
        elif name not in found:
            if not _holds(unet, name):
                raise InputError(f"{base} has no {name}; name one with --{name} FILE or folder")
            found[name] = make_part(name, unet.source, unet.finding, None)
    return found


def _holds(unet: Part, name: Name) -> bool:
    text = videocrafter.TEXT_PREFIX if unet.finding.kind == "videocrafter" else ldm_layout.TEXT_PREFIX
    prefix = {"vae": ldm_layout.VAE_PREFIX, "text": text}[name]
    return any(key.startswith(prefix) for key in unet.source)


def unet_config(part: Part) -> UNetConfig:
    """The UNet of a part; raises CheckpointError, naming the file, if it is none of SD-1.x, LaVie or VideoCrafter2."""
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
    """Width and height of the pictures that the UNet of a part was trained on, in pixels.

    Args:
        part: with a config.json that says so, or metadata that do; else SD-1.x's 64 latents are assumed.
        factor: pixels per latent.

    Raises CheckpointError for a strange size.
    """
    if part.settings is None and (said := base_settings.resolution(part.source)) and not any(x % factor for x in said):
        return said
    size: Any = (part.settings or {}).get("sample_size") or 64
    sides: list[Any] = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if not all(type(side) is int and 0 < side <= infer.LIMITS["length"] for side in sides):
        raise CheckpointError(f"{part.source.path}: config.json has sample_size {size!r}; it must be a whole number")
    return sides[1] * factor, sides[0] * factor


def vae_config(part: Part) -> VAEConfig:
    """The autoencoder of a part; raises CheckpointError, naming the file, if it is not one of SD-1.x."""
    with _named(part):
        vae = infer.vae(part.plan.shapes) if part.settings is None else configs.vae_config(part.settings)
        if part.finding.kind in ("ldm", "videocrafter"):
            vae = dataclasses.replace(vae, scale=base_settings.latent_scale(part.source))
        infer.check_size(vae)
        return vae


def text_config(part: Part, vocabulary: Mapping[str, Any] | None = None) -> TextConfig:
    """The text tower of a part; raises CheckpointError, naming the file, if it is not one of SD-1.x."""
    with _named(part):
        shapes, settings = part.plan.shapes, part.settings
        if settings is not None and isinstance(settings.get("text_config"), Mapping):
            settings = settings["text_config"]  # of a whole CLIPModel
        text = infer.text(shapes) if settings is None else configs.text_config(settings, vocabulary)
        if part.finding.kind == "videocrafter":
            text = dataclasses.replace(text, quick_gelu=False, penultimate=True, pad_zero=True)
        infer.check_size(text)
        return text


@dataclass(frozen=True)
class MotionWish:
    """What the user said of the motion modules."""

    version: animatediff.Version | None = None
    norm: NormOver | None = None


def motion_config(part: Part, unet: UNetConfig, wish: MotionWish) -> UNetConfig:
    """`unet` with the motion modules of a part.

    AnimateDiff takes the statistics of the modules' norms per frame, diffusers over all frames together. Every
    MotionAdapter of the published size has AnimateDiff's weights and is read in AnimateDiff's way; others were
    trained in diffusers, and the user has to say so: `norm`.

    Raises CheckpointError, naming the file, if version or norm cannot be told, or for another structure.
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
        raise CheckpointError("--motion-norm clip is how diffusers computes; this file is AnimateDiff's own")
    if wish.norm is None and adapter and unet.channels != UNetConfig.channels:
        raise CheckpointError(
            f"a MotionAdapter of unpublished widths {unet.channels}: say with --motion-norm whether it was trained "
            "in diffusers (clip) or in AnimateDiff (frame)"
        )
    return wish.norm or "frame"


def motion_modules(part: Part, unet: UNetConfig, rows: int, norm: NormOver) -> MotionConfig:
    """The motion modules of a part, from config.json or from shapes; `rows` of their position tables."""
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
    """Puts the file's name before what goes wrong with its configuration."""
    try:
        yield
    except AnyI2VError as error:
        raise CheckpointError(f"{part.source.path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{part.source.path}: config.json is not that of a {part.finding} ({error!r})") from error
