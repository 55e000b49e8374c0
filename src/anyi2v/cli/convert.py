"""The flags of `anyi2v convert`; the work is done by the package weights_converters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from anyi2v.errors import InputError


@dataclass(frozen=True)
class Convert:
    """Turn public checkpoints into one file of ours, or say what a file is.

    Examples:
    $ anyi2v convert --base v1-5-pruned-emaonly.safetensors --motion-module v3_sd15_mm.ckpt --out v3.safetensors
    $ anyi2v convert --base stable-diffusion-v1-5 --motion-module animatediff-motion-adapter-v1-5-3 --out v3.safetensors
    $ anyi2v convert --sparse-control v3_sd15_sparsectrl_rgb.ckpt --out sparsectrl-rgb.safetensors
    $ anyi2v convert --inspect dreambooth.safetensors mm_sd_v15_v2.ckpt
    """

    base: Path | None = None
    """SD-1.x: a single file, a folder of a diffusers pipeline, or a UNet alone (then with --vae and --text); or LaVie's
    UNet (with --vae and --text of SD-1.4), or VideoCrafter2's single file."""
    motion_module: Path | None = None
    """AnimateDiff motion module, or folder of a MotionAdapter; without it the backbone makes images only."""
    sparse_control: Path | None = None
    """SparseCtrl encoder, rgb or scribble, which becomes a file of its own, for animate --sparsectrl.control; without a
    --base."""
    vae: Path | None = None
    """Autoencoder in place of the base's: file or folder."""
    text: Path | None = None
    """Text tower in place of the base's: file or folder."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FILE or FILE:WEIGHT of a LoRA to add for good; 1 as trained, 0 without. May be repeated. LoHa, LoKr, DoRA and IA3
    are LoRAs too."""
    motion_lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The same for AnimateDiff's motion LoRAs (camera movements)."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The same for AnimateDiff's domain adapter (v3)."""
    lora_alpha: Literal["file", "ignored"] = "file"
    """A module's update is scaled by its alpha / rank, or not, as AnimateDiff's loader has it."""
    lora_unmatched: Literal["error", "warning"] = "error"
    """What a LoRA's keys are whose modules the base does not have. The modules that it has are applied whole, or not
    at all."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Of the stored weights."""
    out: Path | None = None
    """The .safetensors file to write."""
    name: str | None = None
    """What the backbone shall be called; None: the name of the file."""
    motion_version: Literal["v1", "v2", "v3"] | None = None
    """Of the motion module; None: read off its position tables, if it has them."""
    motion_norm: Literal["frame", "clip"] | None = None
    """Statistics of the motion modules' norms: per frame (AnimateDiff) or over the clip (trained in diffusers).
    None: per frame; must be said for a MotionAdapter of another size than SD-1.5's."""
    schedule: Path | None = None
    """JSON file of a scheduler; None: AnimateDiff's, or the base's without a motion module."""
    vocab: Path | None = None
    """JSON file {"words": [...]} for a text tower with whole-word tokens."""
    frames: int | None = None
    """Length of a video if nobody asks for another; None: 16, or as many as there are positions."""
    fps: int | None = None
    """Frames per second of a video if nobody asks for another; None: 8, with VideoCrafter2 28."""
    inspect: tuple[Path, ...] = ()
    """Say what these files or folders are, instead of converting."""

    def run(self) -> None:
        """Converts or inspects; raises InputError if neither is asked for or both are."""
        if bool(self.inspect) == bool(self.base or self.out):
            raise InputError("convert needs --base and --out, --sparse-control and --out, or --inspect FILE...")
        if self.inspect:
            from weights_converters.inspection import describe

            for path in self.inspect:
                print(describe(path))
            return
        if self.sparse_control is not None:
            from weights_converters.control_command import convert_control

            print(convert_control(self))
            return
        from weights_converters.command import convert

        print(convert(self))
