"""Presets of the backbone families, and the choice of the noise schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyi2v.backbone.config import BackboneConfig, MotionConfig, ScheduleConfig, UNetConfig
from anyi2v.cli.convert import Convert
from anyi2v.errors import CheckpointError
from anyi2v.files import read_json
from weights_converters import base_settings, lavie, videocrafter
from weights_converters import diffusers_configs as configs
from weights_converters.detect import Kind
from weights_converters.parts import Name, Part


@dataclass(frozen=True)
class Preset:
    """Default settings of a family of backbones."""

    schedule: ScheduleConfig | None = None
    """Noise schedule; None: AnimateDiff's with its motion modules, else the base's."""
    fps: int = BackboneConfig.fps
    height: float = 1.0
    """Height of the frame as a fraction of its width."""
    method: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[Kind, Preset] = {
    "lavie_unet": Preset(lavie.SCHEDULE, height=320 / 512, method=lavie.METHOD),
    "videocrafter": Preset(videocrafter.SCHEDULE, fps=28, height=320 / 512, method=videocrafter.METHOD),
}


def preset_of(parts: Mapping[Name, Part]) -> Preset:
    """Return the preset of the UNet's family."""
    return PRESETS.get(parts["unet"].finding.kind, Preset())


def schedule_of(options: Convert, parts: Mapping[Name, Part], unet: UNetConfig) -> tuple[ScheduleConfig, str]:
    """Return the noise schedule and a description of its origin.

    It is the user's, that of the family or of AnimateDiff, or that of the base, in this order.

    Raises CheckpointError, naming the file, if it is not supported.
    """
    assert options.base is not None
    source, preset = parts["unet"].source, preset_of(parts)
    path = options.schedule
    if path is None and preset.schedule is not None:
        base_settings.check_tables(source, preset.schedule)
        return preset.schedule, "that of the family"
    if path is None and isinstance(unet.temporal, MotionConfig) and unet.temporal.norm_over == "frame":
        return ScheduleConfig(), "AnimateDiff's, instead of the base's"
    if path is None:
        path = base_settings.scheduler_file(options.base)
    if path is None:
        return base_settings.file_schedule(source), "that of Stable Diffusion 1.x"
    data = read_json(path)
    try:
        config = configs.schedule_config(data)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the configuration of a scheduler ({error!r})") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    unused = configs.unused_settings(data)
    return config, f"from {path}" + (f"; not used, because the sampler is DDIM: {', '.join(unused)}" if unused else "")
