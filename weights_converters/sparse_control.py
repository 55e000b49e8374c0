"""Published SparseCtrl encoders: v3_sd15_sparsectrl_rgb.ckpt and v3_sd15_sparsectrl_scribble.ckpt.

Reference: guoyww/AnimateDiff at e92bd56, models/sparse_controlnet.py, and scripts/animate.py, whose loader takes the
entries below the key `controlnet`, drops the position tables, and then loads strictly.
"""

import dataclasses
import re
from collections.abc import Mapping

from anyi2v.backbone.sparse_config import SparseControlConfig
from weights_converters import animatediff, infer
from weights_converters.diffusers_layout import POSITIONS
from weights_converters.keymap import Rule

ZEROED = "of the first convolution: the noisy latents are set to zero before it, so only its bias is left"
_EMBEDDING = "controlnet_cond_embedding"


def rules(shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """Return the rules that rename a file's keys, with or without the prefix `controlnet.`, to ours."""
    blocks = (f"blocks.{i}" for i in range(2 * len(_widths(shapes)) - 2))
    # our indices also count the activations between them
    stack = [(name, str(2 * i)) for i, name in enumerate(("conv_in", *blocks, "conv_out"))]
    return [
        Rule(pattern=rf"(?:controlnet\.)?{rule.pattern}", target=rule.target, why=rule.why)
        for rule in (
            Rule(r"(?:.*)\.pos_encoder\.pe", None, why=POSITIONS),
            Rule(r"conv_in\.weight", None, why=ZEROED),
            Rule(r"conv_in\.bias", "bias"),
            *(
                Rule(rf"{_EMBEDDING}\.{name}\.(weight|bias)", rf"condition_embedding.{place}.\1")
                for name, place in stack
            ),
            Rule(rf"{_EMBEDDING}\.(weight|bias)", r"condition_embedding.\1"),
            Rule(r"controlnet_down_blocks\.(.*)", r"skip_outs.\1"),
            Rule(r"controlnet_mid_block\.(.*)", r"mid_out.\1"),
            Rule(r"(.*)\.motion_modules\.(\d+)\.temporal_transformer\.(.*)", r"\1.temporals.\2.\3"),
            Rule(r"((?:down_blocks|mid_block|time_embedding)\..*)", r"\1"),
        )
    ]


def config(
    shapes: Mapping[str, tuple[int, ...]], planned: Mapping[str, tuple[int, ...] | None], name: str
) -> SparseControlConfig:
    """Infer the architecture from a file's shapes, by its own names, and from `planned`, the same by our names.

    Raises:
        CheckpointError: the architecture cannot be inferred.
    """
    stems = [shape for key, shape in shapes.items() if key.removeprefix("controlnet.") == "conv_in.weight"]
    unet = infer.unet({**planned, "conv_in.weight": stems[0] if stems else None})
    temporal = infer.motion(planned, animatediff.position_rows(shapes) or animatediff.ROWS["v3"])
    infer.check_size(unet, temporal)
    unet = dataclasses.replace(unet, temporal=temporal)
    if "condition_embedding.weight" in planned:
        return SparseControlConfig(name=name, condition="rgb", unet=unet)
    return SparseControlConfig(name=name, condition="scribble", unet=unet, widths=_widths(shapes))


def _widths(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the channels of the scribble convolutions: the first, and those with stride 2; empty for rgb."""
    found = {
        int(match[1] or -1): shape[0]
        for key, shape in shapes.items()
        if (match := re.fullmatch(rf".*{_EMBEDDING}\.(?:conv_in|blocks\.(\d*[13579]))\.bias", key)) and shape
    }
    return tuple(found[i] for i in sorted(found))
