"""Detection of unsupported files that resemble supported ones, so that they are rejected by name.

Layouts follow the published loaders; no published file was opened.
"""

import re
from collections.abc import Callable, Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]

_MODULE = r".*\.(?:motion_modules|temporal_transformer)\..*"
_UNET = r"(?:model\.)?diffusion_model\."


def name_of(shapes: Shapes) -> str | None:
    """Describe an unsupported file; None if it may be supported."""
    return next((words for words, belongs in _KINDS.items() if belongs(_Keys(shapes))), None)


def is_embedding(shapes: Shapes) -> bool:
    """Return whether a file is a textual inversion, with word vectors and nothing else."""
    a1111 = any(key == "emb_params" or key.startswith("string_to_param.") for key in shapes)
    widths = {shape[-1] for shape in shapes.values() if 1 <= len(shape) <= 2}
    # diffusers names each vector by its word, such as <cat-toy>; SDXL has clip_l and clip_g
    words = len(shapes) < 10 and all(1 <= len(shape) <= 2 for shape in shapes.values())
    names = all(re.fullmatch(r"<.*>|clip_[lg]|[^.]+", key) for key in shapes)
    return a1111 or (words and names and widths <= {768, 1024, 1280} and bool(widths))


class _Keys:
    """The keys of a file, searched by patterns that match whole keys."""

    def __init__(self, shapes: Shapes):
        self.shapes = shapes

    def any(self, pattern: str) -> bool:
        return any(self.matching(pattern))

    def matching(self, pattern: str) -> Iterator[str]:
        return (key for key in self.shapes if re.fullmatch(pattern, key))

    def width(self, pattern: str) -> set[int]:
        """Return the lengths of the first axes of the matching tensors."""
        return {self.shapes[key][0] for key in self.matching(pattern) if self.shapes[key]}


def _own_input(keys: _Keys) -> bool:
    """Return whether there is an input layer for more than latents, or one without a UNet."""
    stem = keys.shapes.get("conv_in.weight")
    wide = stem is not None and len(stem) == 4 and stem[1] != 4
    return keys.any(_MODULE) and stem is not None and (wide or not keys.any(r"down_blocks\.\d+\.resnets\..*"))


def _three_levels(keys: _Keys) -> bool:
    """Return whether motion modules have SDXL's three levels with SD's first width."""
    first = keys.width(r"down_blocks\.0\.motion_modules\.0\.(?:temporal_transformer\.)?norm\.weight")
    levels = [keys.any(rf"down_blocks\.{i}\.motion_modules\..*") for i in (2, 3)]
    return first == {320} and levels == [True, False]


_KINDS: dict[str, Callable[[_Keys], bool]] = {
    "quantised weights (not supported; use the file in float16 or float32)": lambda keys: keys.any(
        r".*\.(?:scale_weight|weight_scale|absmax|quant_map|quant_state\..*)|scaled_fp8"
    ),
    "IP-Adapter (not supported)": lambda keys: keys.any(r"(?:ip_adapter|image_proj)\..*"),
    "T2I-Adapter (not supported)": lambda keys: keys.any(r"(?:adapter\.)?body\.\d+\..*"),
    "CameraCtrl (not supported)": lambda keys: keys.any(
        r"(?:pose_encoder|attention_processor)_state_dict\..*|encoder_(?:down|mid)_conv_attns\..*"
    ),
    "ControlNet with the Stable Diffusion that it was trained on (not supported; use that model alone)": (
        lambda keys: keys.any(r"control_model\..*") and keys.any(_UNET + ".*")
    ),
    "ControlNet (not supported)": lambda keys: (
        keys.any(
            r"(?:control_model\.)?(?:input_hint_block|zero_convs)\..*|control_model\..*|lora_controlnet"
            r"|controlnet_(?:down_blocks|mid_block)\..*"
        )
        and not keys.any(_MODULE)
    ),
    "PIA or FancyVideo: motion modules with their own input layer, conv_in (not supported)": _own_input,
    "AnimateLCM-I2V: motion modules with an image encoder (not supported)": lambda keys: (
        keys.any(r"img_encoder\..*") and keys.any(_MODULE)
    ),
    "HotshotXL, temporal layers for SDXL (not supported)": lambda keys: keys.any(r".*\.temporal_attentions\..*"),
    "motion module of AnimateDiff for SDXL (not supported)": _three_levels,
    "whole UNet of diffusers with motion modules, UNetMotionModel (not supported; save UNet and MotionAdapter alone)": (
        lambda keys: keys.any(r".*\.motion_modules\..*\.attn1\..*") and keys.any(r".*\.resnets\..*")
    ),
    "UNet of ModelScope or ZeroScope (not supported)": lambda keys: keys.any(r".*\.temp_convs\..*"),
    "Stable Video Diffusion (not supported)": lambda keys: keys.any(
        r".*\.(?:temporal_res_block|time_stack|time_mixer)\..*"
    ),
    "Flux, Stable Diffusion 3 or another transformer (not supported)": lambda keys: keys.any(
        rf"(?:{_UNET})?(?:double_blocks|single_blocks|joint_blocks|single_transformer_blocks)\..*"
    ),
    "SDXL, single file (not supported)": lambda keys: keys.any(rf"conditioner\..*|{_UNET}label_emb\..*"),
    "UNet of SDXL (not supported)": lambda keys: keys.any(r"add_embedding\..*|label_emb\..*"),
    "only moving averages, model_ema.*, without the plain weights (not supported; use the file without them, "
    "often named emaonly or pruned)": lambda keys: (
        keys.any(r"model_ema\.diffusion_model.*") and not keys.any(_UNET + ".*")
    ),
    "UNet alone in the layout of LDM (not supported; use the single file or the one of diffusers)": lambda keys: (
        keys.any(r"(?:diffusion_model\.)?input_blocks\..*")
    ),
    "tiny autoencoder, TAESD (not supported)": lambda keys: (
        keys.any(r"encoder\.layers\.\d+\..*") and keys.any(r"decoder\.layers\.\d+\..*")
    ),
    "text tower of open_clip, as used by SD-2.x and SDXL (not supported)": lambda keys: keys.any(
        r"transformer\.resblocks\..*"
    ),
    "image tower of CLIP (not supported)": lambda keys: (
        keys.any(r"vision_model\..*") and not keys.any(r"text_model\..*")
    ),
}
"""Tests by the description used in errors; the first match is used, so specific kinds come first."""
