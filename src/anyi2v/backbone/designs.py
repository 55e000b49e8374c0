"""From the description of temporal layers to what fills the UNet's slots."""

from functools import lru_cache

from anyi2v.backbone.config import FactorisedConfig, MotionConfig, RotaryConfig
from anyi2v.backbone.factorised import Factorised
from anyi2v.backbone.rotary import RotaryAttentions
from anyi2v.backbone.slots import Design
from anyi2v.backbone.temporal import MotionModules


@lru_cache(maxsize=64)
def make_design(config: MotionConfig | RotaryConfig | FactorisedConfig | None) -> Design:
    """The design that a configuration describes, the same for equal ones; None is the plain 2D UNet."""
    match config:
        case None:
            return Design()
        case MotionConfig():
            return MotionModules(config)
        case RotaryConfig():
            return RotaryAttentions(config)
        case FactorisedConfig():
            return Factorised(config)
