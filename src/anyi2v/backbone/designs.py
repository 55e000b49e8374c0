"""From the description of temporal layers to what fills the UNet's slots."""

from anyi2v.backbone.animatediff import MotionModules
from anyi2v.backbone.config import FactorisedConfig, MotionConfig, RotaryConfig
from anyi2v.backbone.lavie import RotaryAttentions
from anyi2v.backbone.slots import Design
from anyi2v.backbone.videocrafter import Factorised


def make_design(config: MotionConfig | RotaryConfig | FactorisedConfig | None) -> Design:
    """The design that a configuration describes; None is the plain 2D UNet."""
    match config:
        case None:
            return Design()
        case MotionConfig():
            return MotionModules(config)
        case RotaryConfig():
            return RotaryAttentions(config)
        case FactorisedConfig():
            return Factorised(config)
