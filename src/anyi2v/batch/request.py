"""A user's request of one video from files and settings; does not import torch or read files."""

from dataclasses import dataclass, field
from pathlib import Path

from anyi2v.comparators.settings import Settings
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, OperatorKind, SamplerName


@dataclass(frozen=True)
class Request:
    """All inputs of one video, except the machine to compute it on; fields are documented as command-line flags."""

    source: ConditionSource
    prompt: str
    negative_prompt: str = ""
    tracks: Path | None = None
    backbone: str = "micro"
    embeddings: tuple[Path, ...] = ()
    method: MethodConfig = field(default_factory=MethodConfig)
    comparator: Settings | None = None
    """Settings of another method to use instead of AnyI2V."""
    sampler: SamplerName = "ddim"
    operators: OperatorKind = "fast"
    seed: int = 0
    frames: int | None = None
    fps: int | None = None
