"""The command `anyi2v convert`, implemented by the package weights_converters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from anyi2v.cli.messages import result
from anyi2v.errors import InputError


@dataclass(frozen=True)
class Convert:
    """Convert public checkpoints to one file in our format, or identify weights files.

    Examples:
    $ anyi2v convert --base v1-5-pruned-emaonly.safetensors --motion-module v3_sd15_mm.ckpt --out v3.safetensors
    $ anyi2v convert --base stable-diffusion-v1-5 --motion-module animatediff-motion-adapter-v1-5-3 --out v3.safetensors
    $ anyi2v convert --sparse-control v3_sd15_sparsectrl_rgb.ckpt --out sparsectrl-rgb.safetensors
    $ anyi2v convert --inspect dreambooth.safetensors mm_sd_v15_v2.ckpt
    """

    base: Path | None = None
    """Base model: SD-1.x as a single file, a diffusers pipeline folder, or a UNet alone (with --vae and --text);
    LaVie's UNet (with --vae and --text of SD-1.4); or VideoCrafter2's single file."""
    motion_module: Path | None = None
    """AnimateDiff motion module, or folder of a MotionAdapter; without it an SD-1.x backbone only generates images."""
    sparse_control: Path | None = None
    """SparseCtrl encoder (rgb or scribble), converted to its own file for animate --sparsectrl.control; used without
    --base."""
    vae: Path | None = None
    """File or folder of an autoencoder to use instead of the base's."""
    text: Path | None = None
    """File or folder of a text tower to use instead of the base's."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """LoRA to merge permanently, as FILE or FILE:WEIGHT; weight 1 is as trained, 0 has no effect. May be repeated.
    LoHa, LoKr, DoRA and IA3 are supported too."""
    motion_lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """AnimateDiff motion LoRA (camera movements), given like --lora."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """AnimateDiff domain adapter (v3), given like --lora."""
    lora_alpha: Literal["file", "ignored"] = "file"
    """Whether to scale each module's update by its alpha / rank, or not, as in AnimateDiff's loader."""
    lora_unmatched: Literal["error", "warning"] = "error"
    """How to treat LoRA keys whose modules the base does not have. Each module that it has is applied completely or not
    at all."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Dtype of the stored weights."""
    out: Path | None = None
    """Output .safetensors file."""
    name: str | None = None
    """Name of the backbone; None: the name of the file."""
    motion_version: Literal["v1", "v2", "v3"] | None = None
    """Version of the motion module; None: detected from its position tables, if it has them."""
    motion_norm: Literal["frame", "clip"] | None = None
    """Statistics of the motion modules' norms: per frame (AnimateDiff) or over the clip (trained in diffusers). None:
    per frame; required for a MotionAdapter whose size is not SD-1.5's."""
    schedule: Path | None = None
    """JSON file of a scheduler; None: AnimateDiff's, or without a motion module the base's."""
    vocab: Path | None = None
    """JSON file {"words": [...]} for a text tower with whole-word tokens."""
    frames: int | None = None
    """Default number of frames; None: 16, or the number of positions if it is smaller."""
    fps: int | None = None
    """Default frames per second; None: 8, or 28 for VideoCrafter2."""
    inspect: tuple[Path, ...] = ()
    """Identify these files or folders instead of converting."""

    def run(self) -> None:
        """Convert or inspect; raises InputError unless exactly one of them is requested."""
        if bool(self.inspect) == bool(self.base or self.out):
            raise InputError("convert needs --base and --out, --sparse-control and --out, or --inspect FILE...")
        if self.inspect:
            from weights_converters.inspection import describe

            for path in self.inspect:
                print(describe(path))
            return
        if self.sparse_control is not None:
            from weights_converters.control_command import convert_control

            summary = convert_control(self)
        else:
            from weights_converters.command import convert

            summary = convert(self)
        assert self.out is not None  # both refuse to work without
        result(self.out, summary)
