"""What a user asks for: one video, from files and settings. Free of torch; no file has been read."""

from dataclasses import dataclass, field
from pathlib import Path

from anyi2v.comparators.settings import Settings
from anyi2v.images.source import ConditionSource
from anyi2v.method.config import MethodConfig, OperatorKind, SamplerName


@dataclass(frozen=True)
class Request:
    """Everything about one video but where it is computed; the command's flags explain each field."""

    source: ConditionSource
    prompt: str
    negative_prompt: str = ""
    tracks: Path | None = None
    backbone: str = "micro"
    embeddings: tuple[Path, ...] = ()
    method: MethodConfig = field(default_factory=MethodConfig)
    comparator: Settings | None = None
    """Of another method than AnyI2V, which is steered by them."""
    sampler: SamplerName = "ddim"
    operators: OperatorKind = "fast"
    seed: int = 0
    frames: int | None = None
    fps: int | None = None
